"""Rendered scenes of Mini-Human, kept on disk: drawn once by all cores, then read in any order."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from kbdm_core.keypoints import Pose
from train.mini.world.render import render
from train.mini.world.scene import scene

SIDE = 128
CHUNK = 64  # scenes a worker draws at a time


@dataclass(frozen=True)
class WorldTable:
    """[world]: which scenes of Mini-Human are learnt from. A scene is its seed."""

    first: Annotated[int, Ge(0)] = 0
    """Seed of the first scene."""
    scenes: Annotated[int, Ge(1)] = 20000
    """Number of scenes, 49 kB each on disk."""
    cache: Path = Path(".cache/mini")
    """Folder of the drawn scenes."""
    workers: Annotated[int, Ge(0)] = 0
    """Processes that draw; 0 = one per core."""


def rendered(table: WorldTable, check: Callable[[], None]) -> np.ndarray:
    """All scenes of the table, uint8 [scenes,128,128,3], memory-mapped. What is already drawn is not drawn again.

    `check` is called between chunks and may raise; what was drawn until then stays.
    """
    table.cache.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(drawn(table.first, 4).tobytes()).hexdigest()[:12]  # another world is another file
    path = table.cache / f"scenes-{table.first}-{name}.bin"
    size = SIDE * SIDE * 3
    done = path.stat().st_size // (CHUNK * size) if path.exists() else 0  # whole chunks
    chunks = -(-table.scenes // CHUNK)
    if done < chunks:
        starts = [table.first + number * CHUNK for number in range(done, chunks)]
        pool = ProcessPoolExecutor(table.workers or os.cpu_count(), get_context("spawn"), _ignore_interrupts)
        try:
            with open(path, "ab") as opened:
                opened.truncate(done * CHUNK * size)
                for pictures in tqdm(pool.map(drawn, starts), total=len(starts), desc="drawing", unit=f"x{CHUNK} scenes"):
                    opened.write(pictures.tobytes())
                    opened.flush()
                    check()
        finally:
            pool.shutdown(cancel_futures=True)
    return np.memmap(path, np.uint8, "r", shape=(table.scenes, SIDE, SIDE, 3))


def captions(table: WorldTable) -> list[str]:
    """The captions of the table's scenes."""
    return [scene(table.first + number).caption for number in range(table.scenes)]


def poses(table: WorldTable) -> list[Pose]:
    """The poses of the people in the table's scenes, each person's joints as they can be seen."""
    return [scene(table.first + number).pose for number in range(table.scenes)]


def as_batch(pictures: np.ndarray, items: Tensor, flip: Tensor | None = None) -> Tensor:
    """Pictures of some items [n] -> [n,3,128,128], float32 in -1..1; those where flip [n] is true are mirrored."""
    batch = torch.from_numpy(pictures[items.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch if flip is None else torch.where(flip[:, None, None, None], batch.flip(-1), batch)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the workers, too; the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def drawn(first: int, count: int = CHUNK) -> np.ndarray:
    """Scenes `first` to `first + count`, drawn here and now, uint8 [count,128,128,3]."""
    return np.stack([render(scene(first + number)) for number in range(count)])
