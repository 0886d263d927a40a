"""Format `folder`: pictures anywhere below a root, each with a same-name .txt caption and, if there is one, a same-name pose JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Pose, parse_pose_json
from train.data.entries import clean_caption, printable, read_bytes
from train.data.errors import DataError, EntryError
from train.data.pictures import SUFFIXES
from train.data.records import Dataset, Problem, Record

MAX_CAPTION_BYTES = 1 << 16
MAX_POSE_BYTES = 1 << 24
POSE_SUFFIXES = (".json", "_keypoints.json")  # the second is OpenPose's own


def open_folder(root: Path) -> Dataset:
    """The pictures below root in the order of their names. Suffixes may be in capitals; hidden files and folders are passed over."""
    records: list[Record] = []
    problems: list[Problem] = []
    for folder, names in _folders(root, problems):
        by_name = {stem + suffix.lower(): name for name in sorted(names) for stem, suffix in [os.path.splitext(name)]}
        for name in names:
            stem, suffix = os.path.splitext(name)
            image = folder / name
            if suffix.lower() not in SUFFIXES:
                continue
            shown = printable(os.path.relpath(image, root))
            poses = [folder / by_name[stem + ending] for ending in POSE_SUFFIXES if stem + ending in by_name]
            try:
                caption = _read_caption(folder / by_name[f"{stem}.txt"] if f"{stem}.txt" in by_name else None)
            except EntryError as error:
                problems.append(Problem(error.kind, shown, str(error)))
            else:
                records.append(Record(shown, image, caption, partial(read_json_pose, poses[0]) if poses else None))
    return Dataset(tuple(sorted(records, key=lambda record: record.name)), tuple(sorted(problems, key=lambda problem: problem.name)))


def read_json_pose(path: Path, width: int, height: int) -> Pose:
    """The pose in a JSON file of one frame, scaled to a picture of width x height. Raises PoseError or DataError."""
    try:
        text = read_bytes(path, MAX_POSE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PoseError(f"{path.name} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    poses = parse_pose_json(text, width, height)
    if len(poses) != 1:
        raise PoseError(f"{path.name} holds {len(poses)} frames; the pose file of one picture holds one")
    return poses[0]


def _folders(root: Path, problems: list[Problem]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder once with the names of its files, hidden ones left out; links to folders are followed, loops end."""

    def unreadable(error: OSError) -> None:
        problems.append(Problem("bad_entry", printable(os.path.relpath(error.filename, root)), f"the folder cannot be read ({error.strerror})"))

    seen = set()
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # in order: of two ways to a folder the same one wins always
        yield Path(folder), [name for name in names if not name.startswith(".")]


def _read_caption(path: Path | None) -> str:
    if path is None:
        raise EntryError("missing_caption", "no .txt of the same name lies beside the picture")
    try:
        return clean_caption(read_bytes(path, MAX_CAPTION_BYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise EntryError("unreadable_caption", f"{path.name} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except EntryError:
        raise
    except DataError as error:
        raise EntryError("unreadable_caption", str(error)) from error
