"""Training data as values: the recipe's table, one record per picture, and the problems found on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval
from PIL import Image

from kbdm_core.keypoints import Pose
from train.data.errors import DataError
from train.data.pictures import picture_size, read_rgb

ERROR_KINDS = ("bad_entry", "missing_caption", "empty_caption", "unreadable_caption", "missing_image", "unreadable_image")  # costs a record
WARNING_KINDS = ("bad_annotation", "missing_pose", "unreadable_pose", "empty_pose", "duplicate")  # the record stays usable without a pose
PROBLEM_KINDS = ERROR_KINDS + WARNING_KINDS


@dataclass(frozen=True)
class DataTable:
    """The recipe's [data] table."""

    root: Path | None = None
    """Folder of the pictures."""
    format: Literal["folder", "coco", "humansd"] = "folder"
    """folder: pictures with same-name .txt captions; coco: COCO or Human-Art JSON; humansd: HumanSD's mapping file with .npz poses."""
    annotations: tuple[Path, ...] = ()
    """coco: one or more JSON files (Human-Art's own, or COCO's captions_*.json and person_keypoints_*.json); humansd: the mapping file."""
    held_out: Annotated[float, Interval(ge=0, lt=1)] = 0.05
    """Share of the pictures that training never learns from, for its report. A picture that is there twice is on one side."""


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """One picture with its caption. `name` is its path below the root, as reports show it; `read_pose(width, height)` reads its pose."""

    name: str
    image: Path
    caption: str
    read_pose: Callable[[int, int], Pose | None] | None = None

    def pose(self) -> Pose | None:
        """The pose in pixels of the upright picture; None = no pose known. Raises PoseError or DataError for broken files."""
        return None if self.read_pose is None else self.read_pose(*picture_size(self.image))


@dataclass(frozen=True)
class Problem:
    """Something wrong with one entry: its kind (one of PROBLEM_KINDS), the entry's name, and a sentence."""

    kind: str
    name: str
    message: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """The records of a source in a fixed order, and the entries that are none. No picture has been decoded."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]


def load_image(record: Record) -> Image.Image:
    """The record's picture, see `read_rgb`. Raises DataError that names the record."""
    try:
        return read_rgb(record.image)
    except DataError as error:
        raise DataError(f"{record.name}: {error}.") from error
