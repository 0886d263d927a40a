"""What the three formats share: captions, paths below the root, JSON files and COCO-17 bodies, each with its refusals."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Pose, parse_pose_keypoint
from train.data.errors import DataError, EntryError


def clean_caption(value: object) -> str:
    """The caption on one line, stripped. Raises EntryError if it is missing (None), empty or no text."""
    if value is None:
        raise EntryError("missing_caption", "no caption")
    if not isinstance(value, str):
        raise EntryError("unreadable_caption", f"the caption is {reprlib.repr(value)}; expected a text")
    if not _is_text(value):
        raise EntryError("unreadable_caption", "the caption holds NUL characters or half characters: save it as UTF-8")
    caption = " ".join(value.split())
    if not caption:
        raise EntryError("empty_caption", "the caption is empty")
    return caption


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def printable(name: str) -> str:
    """A name as any report can hold it: / between folders; bytes of file names that are not UTF-8, and half characters, as escapes."""
    return name.replace(os.sep, "/").encode("utf-8", "backslashreplace").decode()


def relative_path(root: Path, value: object) -> str:
    """A path below root as an annotation names it; its first folder is dropped if the file is only found without it.

    (Human-Art's names start with HumanArt/, whether root is that folder or the one above.) Raises EntryError for what is no path below root.
    """
    path = PureWindowsPath(value) if isinstance(value, str) and _is_text(value) else None  # knows both kinds of separators
    if path is None or not path.parts or path.drive or path.root or ".." in path.parts:
        raise EntryError("bad_entry", f"the path is {reprlib.repr(value)}; expected one below data.root, without '..'")
    shorter = value.partition("/")[2]
    return shorter if shorter and not os.path.isfile(root / value) and os.path.isfile(root / shorter) else value


def read_bytes(path: Path, at_most: int) -> bytes:
    """The file's bytes. Raises DataError if it cannot be read or is larger."""
    try:
        with open(path, "rb") as opened:
            data = opened.read(at_most + 1)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror})") from error
    if len(data) > at_most:
        raise DataError(f"{path.name} is larger than {at_most} bytes")
    return data


def read_json(path: Path) -> object:
    """The JSON file's value. Raises DataError that names the file."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({error}).") from error


def coco_pose(bodies: Sequence[object], canvas: tuple[object, object], width: int, height: int) -> Pose:
    """Bodies of 17 x 3 numbers (x, y, score or visibility), in pixels of the canvas -> a Pose on the picture of width x height.

    A canvas side that is no size counts as the picture's. Raises PoseError.
    """
    people = []
    for i, body in enumerate(bodies):
        try:
            points = np.array(body, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise PoseError(f"person {i}: keypoints are no numbers ({error}); expected 17 x 3") from error
        if points.shape not in ((51,), (17, 3)):
            raise PoseError(f"person {i}: keypoints have shape {list(points.shape)}; expected 17 x 3 (COCO-17)")
        people.append({"pose_keypoints_2d": points.flatten().tolist()})
    return parse_pose_keypoint({"people": people, "canvas_width": canvas[0], "canvas_height": canvas[1]}, width, height)[0]
