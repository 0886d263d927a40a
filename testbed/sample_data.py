"""Small training data in all three formats: noise pictures, captions and poses, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 32)  # width, height


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of noise in RGB."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def body(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Keypoints [17,3], float32: x, y inside the picture (never 0), score in 0.5..1."""
    unit = np.random.default_rng(seed).uniform(0.1, 0.9, (17, 3))
    return (unit * (*size, 0.5) + (0, 0, 0.5)).astype(np.float32)


def write_picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    """A picture of noise in the format of the suffix, in a JPEG nearly without loss; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path, quality=95, subsampling=0)  # of these, PNG takes no notice
    return path


def write_captioned(path: Path, seed: int, caption: str, size: tuple[int, int] = SIZE) -> Path:
    """A picture and its .txt."""
    write_picture(path, seed, size).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def openpose_json(bodies: Sequence[np.ndarray], size: tuple[int, int] = SIZE) -> str:
    """OpenPose JSON of one frame with COCO-17 bodies."""
    people = [{"pose_keypoints_2d": points.flatten().tolist()} for points in bodies]
    return json.dumps({"people": people, "canvas_width": size[0], "canvas_height": size[1]})


def write_humansd_pose(path: Path, bodies: Sequence[np.ndarray]) -> Path:
    """HumanSD's .npz as its detector wrote it: a list of dicts with array, numpy scalar and box, so a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, [{"keypoints": points, "score": np.float32(0.7), "area": np.float64(12.5)} for points in bodies])
    return path


def write_folder(root: Path, count: int) -> Path:
    """A folder of `count` pictures in two folders with captions and poses."""
    for i in range(count):
        path = write_captioned(root / f"part {i % 2}" / f"{i:04}.png", i, f"picture number {i}")
        path.with_suffix(".json").write_text(openpose_json([body(i)]))
    return root


def write_humanart(root: Path, count: int) -> Path:
    """Human-Art's layout below root, `count` pictures with one person each -> the annotation file."""
    images, annotations = [], []
    for i in range(count):
        name = f"HumanArt/images/digital_art/{i:012}.jpg"
        write_picture(root / name, i)
        images.append({"file_name": name, "id": i, "width": SIZE[0], "height": SIZE[1], "category": "digital art", "description": f"number {i}"})
        points = body(i) * (1, 1, 0) + (0, 0, 2)
        annotations.append({"id": i, "image_id": i, "keypoints": points.flatten().tolist(), "num_keypoints": 17, "iscrowd": 0})
    path = root / "training_humanart.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def write_humansd(root: Path, count: int) -> Path:
    """HumanSD's layout below root, `count` pictures with one person each -> the mapping file."""
    mapping = {}
    for i in range(count):
        names = {"img_path": f"images/{i:05}.jpg", "pose_path": f"pose/{i:05}.npz"}
        write_picture(root / names["img_path"], i)
        write_humansd_pose(root / names["pose_path"], [body(i)])
        mapping[f"{i:05}"] = {"prompt": f"oil painting, number {i}", **names}
    path = root / "mapping_file_training.json"
    path.write_text(json.dumps(mapping))
    return path
