"""How well the people of each column take their poses, found by the miniature's pose estimator."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kbdm_core.keypoints import Pose
from train.mini.estimator import PoseEstimator, read_estimator
from train.mini.pose_score import pose_score

FIGURES = ("pictures", "joints", "pck@0.2", "pck@0.1", "pck@0.2_one_person", "pck@0.2_several_people", "people_error", "joint_error_px")


def pose_error(estimator: PoseEstimator, pictures: Sequence[bytes], poses: Sequence[Pose]) -> dict[str, float | None]:
    """Figures of the people found in PNG pictures against the poses asked for, one of each per picture; see `PoseScore`."""
    found = estimator.estimate(torch.stack([as_input(content) for content in pictures]))
    score = pose_score(found, poses).as_dict()
    return {name: score[name] for name in FIGURES}


def as_input(content: bytes) -> Tensor:
    """A picture file -> [3,H,W] in -1..1, as the estimator takes it."""
    return torch.from_numpy(np.array(open_picture(content))).permute(2, 0, 1).float() / 127.5 - 1


def open_picture(content: bytes) -> Image.Image:
    """A picture file as RGB."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def judge(path: Path) -> tuple[PoseEstimator, dict[str, Any]]:
    """The estimator, and its own error on scenes that it has not seen, as its file tells it. Raises FileFormatError."""
    estimator, config = read_estimator(path)
    judged = config.get("judged") or {}
    return estimator, {name: {key: value for key, value in figures.items() if key in FIGURES} for name, figures in judged.items()}
