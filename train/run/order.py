"""The order of the data: a function of seed, epoch and step alone, so that a resumed run continues it and any number of processes shares it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on `key` (seed, step, rank ...) alone: randomness without a state to save."""
    mixed = 0
    for part in key:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def fingerprint(*tensors: Tensor) -> str:
    """A hash of the tensors' values: what a stage learns from, so that a checkpoint is not gone on with on other data."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Order:
    """Which of `length` items a step sees: each epoch is a new permutation, cut into batches, its remainder left out.

    With fewer items than `batch` all of them are the batch.
    """

    length: int
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.length // self.batch)

    def step(self, index: int, rank: int = 0, world: int = 1) -> Tensor:
        """Items of step `index` (from 0) for process `rank` of `world`: every world-th of the batch -> int64 [<= batch]."""
        epoch, position = divmod(index, self.steps_per_epoch)
        items = _permutation(self.length, self.seed, epoch)[position * self.batch : (position + 1) * self.batch]
        return items[rank::world]


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=generator(seed, epoch))
