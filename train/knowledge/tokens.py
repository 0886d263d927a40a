"""The tokens z_e that the stages learn from, [items, N, C], read in slices from a memory-mapped file or a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kbdm_core.errors import KBDMError
from train.run.order import generator

READ_TOKENS = 2048  # tokens read at a time: 6 MB of 768 float32 numbers each
TOKENS_PER_ITEM = 32  # of a sample at least: an item is read as a whole


class TokenRows(Protocol):
    """What tokens are read from: an array, or anything that is indexed like one and gives arrays."""

    shape: tuple[int, int, int]
    dtype: np.dtype

    def __getitem__(self, items: np.ndarray) -> np.ndarray: ...


class RepeatedRows:
    """A few items repeated until there are `items`: what a dry run takes instead of all features."""

    def __init__(self, rows: np.ndarray, items: int):
        self.rows, self.shape, self.dtype = rows, (items, *rows.shape[1:]), rows.dtype

    def __getitem__(self, items: np.ndarray) -> np.ndarray:
        return self.rows[items % len(self.rows)]


def tokens_file(path: Path) -> np.ndarray:
    """A .npy file of tokens [N,C] or [items,N,C], float16 or float32, memory-mapped -> [items,N,C] (N = 1 for a file [N,C]).

    Raises KBDMError for anything else.
    """
    try:
        rows = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise KBDMError(f"{path} cannot be read as a .npy file of tokens ({error}).") from error
    if not isinstance(rows, np.ndarray) or rows.ndim not in (2, 3) or rows.dtype not in (np.float16, np.float32) or 0 in rows.shape:
        found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "an archive"
        raise KBDMError(f"{path} holds {found}; expected tokens [N,C] or [pictures,N,C] in float16 or float32.")
    return rows[:, None] if rows.ndim == 2 else rows


def read_items(rows: TokenRows, items: Tensor, device: torch.device) -> Tensor:
    """The tokens of some items [n] -> [n,N,C], float32, on the device."""
    return torch.from_numpy(rows[items.numpy()]).to(device).float()


def sample_tokens(rows: TokenRows, count: int, seed: int, rank: int, world: int) -> Tensor:
    """This process's part of a random sample of at most `count` tokens, in the rows' type -> [n,C].

    All tokens if there are no more: then an array's own memory, without a copy.
    """
    items, per_item, width = rows.shape
    if items * per_item <= count:
        share = np.arange(rank, items, world)
        if isinstance(rows, np.ndarray) and world == 1:
            return torch.from_numpy(rows.reshape(-1, width))
        taken = per_item
    else:
        taken = min(per_item, max(TOKENS_PER_ITEM, -(-count // items)))
        chosen = torch.randperm(items, generator=generator(seed, 1))[: max(1, count // taken)]
        share = chosen.sort().values.numpy()[rank::world]  # read in the order of the file
    sample = torch.empty(len(share) * taken, width, dtype=torch.from_numpy(np.empty(0, rows.dtype)).dtype)
    step = max(1, READ_TOKENS // per_item)
    for start in range(0, len(share), step):
        tokens = torch.from_numpy(rows[share[start : start + step]])  # [n, N, C]
        if taken < per_item:
            positions = torch.rand(tokens.shape[:2], generator=generator(seed, 2, rank, start)).argsort(-1)[:, :taken, None]  # [n, taken, 1]
            tokens = tokens.gather(1, positions.expand(-1, -1, width))
        sample[start * taken : start * taken + len(tokens) * taken] = tokens.flatten(0, 1)
    return sample
