"""The judge of the miniature's pictures: the frozen estimator finds their people, whose poses are scored against those that were asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torchvision.utils import make_grid

from kbdm_core.keypoints import Pose
from train.adapter.validation import save_png
from train.features.store import FeatureStore
from train.files import write_text
from train.mini.estimator import PoseEstimator
from train.mini.evaluation import LATENT, ColumnDrawing, decoded, people_in
from train.mini.evaluation_report import detections
from train.mini.pose_score import PoseScore, pose_score
from train.run.loop import Run

SHOWN, PER_ROW = 16, 4  # pictures in a grid
LATENTS, PEOPLE, GRIDS = "latents", "detections", "pictures"  # in the run's folder


@dataclass(frozen=True, eq=False)
class Judge:
    """The estimator and what it judges by: true poses and ids of the scenes. What it finds is left in `folder`."""

    estimator: PoseEstimator
    truth: Sequence[Pose]
    images: Sequence[int]
    folder: Path

    def score(self, name: str, pictures: Tensor) -> PoseScore:
        """The score of pictures of all scenes, uint8 [scenes,H,W,3]. Leaves their people, as COCO results, and a grid of the first pictures."""
        save_png(self.folder / GRIDS / f"{name}.png", make_grid(pictures[:SHOWN].movedim(-1, 1), PER_ROW).movedim(0, -1))
        found = people_in(self.estimator, pictures)
        write_text(self.folder / PEOPLE / f"{name}.json", json.dumps(detections(found, self.images)))
        return pose_score(found, self.truth)


def judged(run: Run, drawing: ColumnDrawing, autoencoder: AutoencoderKL, judge: Judge, seeds: Sequence[int]) -> dict[str, list[PoseScore]]:
    """The scores of all columns, one per sampling seed; all columns of a seed before those of the next.

    Latents are kept batch by batch in the run's folder, and what is there is not drawn again.
    """
    table = drawing.table
    keys = {(column, seed): drawing.keys(column, seed) for seed in seeds for column in table.columns}
    store = FeatureStore.open(run.folder / LATENTS, LATENT, "float32", {"holds": "latents of drawn scenes"})
    total, kept = len(keys) * table.scenes, sum(key in store for own in keys.values() for key in own)
    scores: dict[str, list[PoseScore]] = {column: [] for column in table.columns}
    with store.writer("0", commit_seconds=0) as writer, run.bar(total, "evaluation", "picture", kept) as bar:
        for (column, seed), own in keys.items():
            bar.set_postfix_str(f"{column}, seed {seed}")
            parts = []
            for start in range(0, table.scenes, table.batch):
                run.signals.check()
                part = own[start : start + table.batch]
                missing = sum(key not in store for key in part)
                if missing:
                    latents = drawing.latents(column, seed, range(start, start + len(part)), check=run.signals.check)
                    writer.append(part, latents.numpy())
                else:
                    latents = torch.from_numpy(store.rows(part)[:])
                parts.append(decoded(autoencoder, latents))
                bar.update(missing)
            scores[column].append(judge.score(f"{column}-seed-{seed}", torch.cat(parts)))
    return scores
