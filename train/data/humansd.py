"""Format `humansd`: HumanSD's mapping file {id: {img_path, prompt, pose_path}}; the poses are .npz files."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kbdm_core.keypoints import Pose
from train.data.entries import clean_caption, coco_pose, printable, read_json, relative_path
from train.data.errors import DataError, EntryError
from train.data.npz_pose import read_npz_bodies
from train.data.records import Dataset, Problem, Record


def open_humansd(root: Path, paths: Sequence[Path]) -> Dataset:
    """The entries of all mapping files in their order; paths in them are relative to root. Raises DataError for a file that is no mapping."""
    records: list[Record] = []
    problems: list[Problem] = []
    for path in paths:
        mapping = read_json(path)
        if not isinstance(mapping, dict):
            raise DataError(f"{path}: {reprlib.repr(mapping)} is no mapping file; expected a dict id -> {{img_path, prompt, pose_path}}.")
        for key, entry in mapping.items():
            try:
                records.append(_record(root, entry))
            except EntryError as error:
                problems.append(Problem(error.kind, printable(f"{path.name}: {key}"), str(error)))
    return Dataset(tuple(records), tuple(problems))


def read_npz_pose(root: Path, pose_path: object, width: int, height: int) -> Pose | None:
    """The pose of a picture of width x height; None if the file is not there. Raises PoseError or DataError."""
    path = root / relative_path(root, pose_path)
    return coco_pose(read_npz_bodies(path), (width, height), width, height) if os.path.isfile(path) else None


def _record(root: Path, entry: object) -> Record:
    if not isinstance(entry, dict):
        raise EntryError("bad_entry", f"the entry is {reprlib.repr(entry)}; expected a dict with img_path, prompt and pose_path")
    name, pose_path = relative_path(root, entry.get("img_path")), entry.get("pose_path")
    read_pose = None if pose_path is None else partial(read_npz_pose, root, pose_path)
    return Record(printable(name), root / name, clean_caption(entry.get("prompt")), read_pose)
