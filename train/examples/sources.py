"""Where pictures, captions and poses come from: a data set on disk, or Mini-Human."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from kbdm_core.keypoints import Pose
from train.data.errors import DataError, EntryError
from train.data.image_keys import ImageKeys
from train.data.pictures import picture_size, refuse_elongated
from train.data.records import Dataset, Problem, Record, load_image
from train.mini.scenes import WorldTable, drawn, rendered
from train.mini.world.scene import Scene, scene

LEAST_SIDE = 8  # px, one latent: what is smaller shows nobody


class Source(Protocol):
    """Pictures by number, each with a caption and perhaps a pose. All methods may be called from any thread."""

    problems: tuple[Problem, ...]
    """What was wrong when the source was opened."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """As reports show it."""

    def caption(self, number: int) -> str: ...

    def size(self, number: int) -> tuple[int, int]:
        """(width, height) in pixels, upright. Raises EntryError for a picture that cannot be used."""

    def picture(self, number: int) -> Image.Image:
        """The picture, upright, RGB. Raises EntryError."""

    def pose(self, number: int, width: int, height: int) -> Pose | None:
        """The pose in pixels of the picture, which has that size; None = no pose known. Raises KBDMError for broken files."""

    def keys(self, folder: Path, name: str) -> AbstractContextManager[Callable[[int], str]]:
        """A function from number to content key (64 hexadecimal digits): equal pictures have equal keys. It raises EntryError.

        What costs time may be remembered in `folder`, which exists; `name` is the process's own.
        """


@dataclass(frozen=True, eq=False)
class DatasetSource:
    """The records of a data set (format folder, coco or humansd)."""

    dataset: Dataset

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.dataset.problems

    def __len__(self) -> int:
        return len(self.dataset.records)

    def name(self, number: int) -> str:
        return self.dataset.records[number].name

    def caption(self, number: int) -> str:
        return self.dataset.records[number].caption

    def size(self, number: int) -> tuple[int, int]:
        record = self.dataset.records[number]
        with _as_entry(record):
            size = picture_size(record.image)
            if min(size) < LEAST_SIDE:
                raise DataError(f"{record.name}: {size[0]} x {size[1]} pixels; expected at least {LEAST_SIDE} on each side.")
            refuse_elongated(record.name, size)
            return size

    def picture(self, number: int) -> Image.Image:
        record = self.dataset.records[number]
        with _as_entry(record):
            return load_image(record)

    def pose(self, number: int, width: int, height: int) -> Pose | None:
        read_pose = self.dataset.records[number].read_pose
        return None if read_pose is None else read_pose(width, height)

    @contextmanager
    def keys(self, folder: Path, name: str) -> Iterator[Callable[[int], str]]:
        with ImageKeys(folder, name, "") as of_files:

            def key(number: int) -> str:
                record = self.dataset.records[number]
                with _as_entry(record):
                    return of_files.of(record.image)

            yield key


@dataclass(frozen=True, eq=False)
class MiniSource:
    """Scenes of Mini-Human from seed `first` on. pictures: uint8 [scenes,128,128,3]."""

    pictures: np.ndarray
    first: int
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, number: int) -> str:
        return f"scene {self.first + number}"

    def caption(self, number: int) -> str:
        return _scene(self.first + number).caption

    def size(self, number: int) -> tuple[int, int]:
        return self.pictures.shape[2], self.pictures.shape[1]

    def picture(self, number: int) -> Image.Image:
        return Image.fromarray(self.pictures[number])

    def pose(self, number: int, width: int, height: int) -> Pose | None:
        return _scene(self.first + number).pose.scaled(width, height)

    @contextmanager
    def keys(self, folder: Path, name: str) -> Iterator[Callable[[int], str]]:
        yield lambda number: hashlib.sha256(self.pictures[number].tobytes()).hexdigest()


def mini_source(world: WorldTable, check: Callable[[], None], dry: int = 0) -> MiniSource:
    """The table's scenes, drawn as far as they are not yet on disk; with `dry`, so many of them, which are not kept. `check` may raise."""
    return MiniSource(drawn(world.first, min(dry, world.scenes)) if dry else rendered(world, check), world.first)


@contextmanager
def _as_entry(record: Record) -> Iterator[None]:
    """A DataError inside is one of this record's picture."""
    try:
        yield
    except DataError as error:
        raise EntryError("unreadable_image" if record.image.is_file() else "missing_image", str(error)) from error


@lru_cache(maxsize=64)
def _scene(seed: int) -> Scene:
    """Caption and pose are asked for one after the other, and composing a scene takes longer than either."""
    return scene(seed)
