"""The pose estimator's training, on drawn people of its own split, distorted as generated pictures may be; and its own error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kbdm_core.keypoints import Pose
from train.mini.distortion import distorted
from train.mini.estimator import PoseEstimator
from train.mini.pose_maps import UNIT, PoseMaps, encode, joint_table
from train.mini.pose_score import pose_score
from train.mini.scenes import as_batch
from train.run.loop import Run
from train.run.optimisation import Optimisation
from train.run.order import Order, fingerprint, generator


@dataclass(frozen=True)
class EstimatorTable:
    """[estimator]: the miniature's pose estimator, 1.2 M weights."""

    steps: Annotated[int, Ge(1)] = 3000
    """Optimiser steps."""
    batch: Annotated[int, Ge(1)] = 32
    """Pictures per step."""
    learning_rate: Annotated[float, Ge(0)] = 2e-3
    """Of AdamW, falling to 0 along half a cosine."""
    warmup: Annotated[int, Ge(0)] = 100
    """Steps in which the learning rate rises to its full value."""
    people: Annotated[float, Ge(0)] = 10.0
    """Weight of the errors of what is told at a person's centre, joints in 16 px and their visibility, beside those of the maps of peaks."""
    ema: Annotated[float, Ge(0)] = 0.998
    """Decay of the running average of the weights, which is the result."""


class EstimatorObjective(nn.Module):
    """The estimator with the errors of its maps."""

    def __init__(self, people: float):
        super().__init__()
        self.estimator, self.people = PoseEstimator(), people

    def forward(self, pictures: Tensor, truth: PoseMaps, near: Tensor) -> tuple[Tensor, Tensor]:
        """pictures [B,3,H,W] in -1..1, the maps and cells of `encode` -> loss, and the mean error of the offsets in px.

        Cross entropy of all cells of a picture for its centres, and for each of its 17 maps of joints; where offsets are told, cross entropy
        of visibility and mean absolute error of the offsets of visible joints.
        """
        found = self.estimator(pictures)
        centres = _entropy(found.centres, truth.centres).sum((1, 2)).mean()
        joints = _entropy(found.joints, truth.joints).sum((2, 3)).mean()
        seen = _at(truth.visible, near)  # [cells, 17]
        visible = _entropy(_at(found.visible, near), seen).sum() / max(1, seen.numel())
        away = (_at(found.offsets, near) - _at(truth.offsets, near)).abs().mean(-1)  # [cells, 17]
        error = (away * seen).sum() / seen.sum().clamp(min=1)
        return centres + joints + self.people * (visible + error), UNIT * error.detach()


def _at(maps: Tensor, cells: Tensor) -> Tensor:
    """The values of maps [B,...,h,w] at the n cells that are true in [B,h,w] -> [n,...]."""
    return maps.movedim((-2, -1), (1, 2))[cells]


def _entropy(logits: Tensor, truth: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")


class EstimatorTraining:
    """Stage `estimator`. pictures: uint8 [scenes,H,W,3]; poses: those of their people."""

    name = "estimator"

    def __init__(self, run: Run, table: EstimatorTable, pictures: np.ndarray, poses: list[Pose]):
        self.run, self.table, self.pictures, self.steps = run, table, pictures, table.steps
        self.joints = joint_table(poses)
        self.order = Order(len(pictures), max(run.world, table.batch), run.table.seed)
        self.inputs = fingerprint(self.joints, torch.from_numpy(pictures[:: max(1, len(pictures) // 64)].copy()))
        torch.manual_seed(run.table.seed)
        objective = EstimatorObjective(table.people).to(run.device)
        optimiser = torch.optim.AdamW(objective.parameters(), table.learning_rate, weight_decay=0.01)
        self.optimisation = Optimisation(run, objective, optimiser, table.steps, table.warmup, clip=1.0)
        self.average = AveragedModel(self.optimisation.plain.estimator, multi_avg_fn=get_ema_multi_avg_fn(table.ema))

    def finished(self) -> bool:
        return False

    def step(self, index: int) -> dict[str, float | Tensor]:
        run = self.run
        items = self.order.step(index, run.rank, run.world)
        random = generator(run.table.seed, 9, index, run.rank)
        pictures, joints = distorted(as_batch(self.pictures, items), self.joints[items], random)
        truth, near = encode(joints, *pictures.shape[-2:])
        pictures, near = pictures.to(run.device), near.to(run.device)
        truth = PoseMaps(*(value.to(run.device) for value in truth))
        errors = []

        def loss() -> Tensor:
            loss, error = self.optimisation.module(pictures, truth, near)
            errors.append(error)
            return loss

        total = self.optimisation.step(index, [loss], run.check_alone)
        self.average.update_parameters(self.optimisation.plain.estimator)
        return {"loss": total, "offset_px": errors[0]}

    def state(self) -> dict[str, Any]:
        return {**self.optimisation.state(), "average": self.average.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.optimisation.load(state)
        self.average.load_state_dict(state["average"])


def own_error(estimator: PoseEstimator, pictures: np.ndarray, truth: list[Pose]) -> dict[str, Any]:
    """The estimator's score on true pictures, uint8 [scenes,H,W,3]: the best that pictures made of these poses can be expected to reach."""
    found = [pose for items in torch.arange(len(pictures)).split(32) for pose in estimator.estimate(as_batch(pictures, items))]
    return pose_score(found, truth).as_dict()
