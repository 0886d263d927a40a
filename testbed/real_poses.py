"""987 real COCO val2017 poses, from the pocketpose wheel on PyPI. CC BY-NC: fetched into .cache/, never committed, never shipped."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "pocketpose"
MEMBER = "data/coco_sp/annotations/person_keypoints_val2017.json"


@cache
def real_coco_text() -> str:
    """The COCO keypoints JSON: 987 crops with one annotated person each, coordinates relative to the crop.

    Raises RuntimeError if the wheel cannot be fetched: a test without its data has failed, not passed.
    """
    if not list(CACHE.glob("pocketpose-*.whl")):
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:  # moved when whole: test processes may fetch at the same time
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "pocketpose==1.0.0a2.post0"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"the real poses cannot be fetched; {' '.join(command)} said:\n{done.stderr}")
            for wheel in Path(folder).glob("*.whl"):
                wheel.replace(CACHE / wheel.name)
    with zipfile.ZipFile(next(CACHE.glob("pocketpose-*.whl"))) as wheel:
        return wheel.read(MEMBER).decode()


def real_coco() -> dict:
    """The same, parsed anew."""
    return json.loads(real_coco_text())
