"""Mini-Human as data: which seeds are for what, one example of each, and a folder of them in the formats that the trainer reads.

The sizes are frozen: pictures of 128 px, and these ranges of seeds. Nothing trained on one range is measured on the same range.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kbdm_core.keypoints import Pose
from train.data.errors import DataError
from train.files import write_text
from train.mini.world.captions import Facts
from train.mini.world.relief import SIZE
from train.mini.world.render import render
from train.mini.world.scene import scene

SPLITS = {
    "training": range(0, 10_000_000),  # CLIP, autoencoder, UNet, knowledge base, adapter
    "held-out": range(10_000_000, 11_000_000),  # what the bars are measured on
    "estimator": range(20_000_000, 30_000_000),  # the pose estimator's own training, before any adapter
}
ANNOTATIONS = "annotations.json"


@dataclass(frozen=True, eq=False)
class Example:
    """One picture [128,128,3] uint8 with its caption, the pose of its people from left to right, and what may be said of it."""

    seed: int
    image: NDArray[np.uint8]
    caption: str
    pose: Pose
    facts: Facts


def split_seed(split: str, number: int) -> int:
    """The seed of the example of that number in a split. Raises DataError for an unknown split or a number outside it."""
    if split not in SPLITS:
        raise DataError(f"the split is '{split}'; expected one of {', '.join(SPLITS)}.")
    if not 0 <= number < len(SPLITS[split]):
        raise DataError(f"example {number} of the split '{split}' was asked for; it holds {len(SPLITS[split])}.")
    return SPLITS[split][number]


def example(split: str, number: int) -> Example:
    """One example of a split, the same on every machine. Raises DataError, see `split_seed`."""
    drawn = scene(split_seed(split, number))
    return Example(drawn.seed, render(drawn), drawn.caption, drawn.pose, drawn.facts)


def write_folder(root: Path, split: str, numbers: Iterable[int]) -> Path:
    """Pictures as PNG with their captions as .txt (format `folder`) and all poses and captions in annotations.json (format `coco`) -> root."""
    images, annotations = [], []
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        one, name = example(split, number), f"{number:07d}"
        unfinished = root / f".{name}.png.part"
        Image.fromarray(one.image).save(unfinished, format="PNG")
        unfinished.replace(root / f"{name}.png")
        write_text(root / f"{name}.txt", one.caption)
        images.append({"id": number, "file_name": f"{name}.png", "width": SIZE, "height": SIZE, "description": one.caption})
        for person in one.pose.people:
            annotations.append(_annotation(len(annotations) + 1, number, person.body))
    write_text(root / ANNOTATIONS, json.dumps({"images": images, "annotations": annotations}))
    return root


def _annotation(number: int, image: int, joints: NDArray[np.float64]) -> dict:
    """COCO's record of one person: v = 2 for a visible joint, else 0, 0, 0; the box is that of the visible joints."""
    seen = joints[joints[:, 2] > 0]
    (left, top), (right, bottom) = seen[:, :2].min(axis=0), seen[:, :2].max(axis=0)
    points = np.column_stack([joints[:, :2].round(2), 2 * (joints[:, 2] > 0)])
    width, height = round(float(right - left), 2), round(float(bottom - top), 2)
    box = [round(float(left), 2), round(float(top), 2), width, height]
    record = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "num_keypoints": len(seen)}
    return {**record, "keypoints": points.flatten().tolist(), "bbox": box, "area": round(width * height, 2)}
