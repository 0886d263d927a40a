"""What an evaluation leaves: figures with their spread over the sampling seeds, a table of them, and the people found as COCO detections."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kbdm_core.keypoints import Pose
from train.mini.pose_score import PoseScore

PCK = tuple(f"pck@{threshold}{people}" for threshold in ("0.2", "0.1") for people in ("", "_one_person", "_several_people"))
FIGURES = (*PCK, "people_error", "joint_error_px")
SHARED, SHARE = "of_reconstructions", "PCK@0.2 / reconstructions"
HEADINGS = ("", *(heading for pck in ("PCK@0.2", "PCK@0.1") for heading in (pck, "one person", "several")), "people error", "joint error, px", SHARE)


def summary(columns: Mapping[str, Sequence[PoseScore]], true_pictures: PoseScore, reconstructions: PoseScore) -> dict[str, Any]:
    """The figures of all columns, each scored once per sampling seed, as JSON can hold them.

    mean, spread: over the sampling seeds; spread is the sample's standard deviation, None for a single seed. of_reconstructions: the mean
    over the same estimator's figure on the autoencoder's reconstructions of the true pictures, which is the best that the base's decoder can
    draw. What could not be measured is None.
    """
    best, found = reconstructions.as_dict(), {}
    for name, scores in columns.items():
        each = [score.as_dict() for score in scores]
        mean = {figure: _mean([one[figure] for one in each]) for figure in FIGURES}
        spread = {figure: _spread([one[figure] for one in each]) for figure in FIGURES}
        shares = {figure: _share(mean[figure], best[figure]) for figure in PCK}
        found[name] = {"mean": mean, "spread": spread, SHARED: shares, "seeds": each}
    return {"true_pictures": true_pictures.as_dict(), "reconstructions": best, "columns": found}


def markdown(figures: Mapping[str, Any]) -> str:
    """A table of a summary's figures: mean ± spread of each column."""
    rows = [HEADINGS, ("---",) * len(HEADINGS)]
    for name in ("true_pictures", "reconstructions"):
        shares = "1" if name == "reconstructions" else _text(_share(figures[name][PCK[0]], figures["reconstructions"][PCK[0]]))
        rows.append((name.replace("_", " "), *(_text(figures[name][figure]) for figure in FIGURES), shares))
    for name, column in figures["columns"].items():
        rows.append((name, *(_text(column["mean"][figure], column["spread"][figure]) for figure in FIGURES), _text(column[SHARED][PCK[0]])))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def detections(poses: Sequence[Pose], images: Sequence[int]) -> list[dict[str, Any]]:
    """People found in pictures, as COCO's list of keypoint results: one record a person, none for a picture without people.

    images: the pictures' ids. Each joint is x, y, confidence; 0, 0, 0 if it was not found. score: mean confidence of the joints found.
    """
    records = []
    for image, pose in zip(images, poses, strict=True):
        for person in pose.people:
            confidence = person.body[person.body[:, 2] > 0, 2]
            joints, score = person.body.flatten().tolist(), round(float(confidence.mean()), 3)
            records.append({"image_id": image, "category_id": 1, "keypoints": joints, "score": score})
    return records


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else round(statistics.fmean(values), 4)


def _spread(values: Sequence[float | None]) -> float | None:
    return None if None in values or len(values) < 2 else round(statistics.stdev(values), 4)


def _share(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else round(value / of, 4)


def _text(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"
