"""Aspect-ratio buckets: the sizes that pictures are brought to, and which of them a training step sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kbdm_core.errors import KBDMError
from train.run.order import generator

LATENT_STRIDE = 8  # pixels per latent side of SD1.5's autoencoder
LEAST = 32  # px: below, a quarter of the resolution is no latent


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels, multiples of 8."""

    width: int
    height: int

    @property
    def latent(self) -> tuple[int, int]:
        """Rows and columns of its latents."""
        return self.height // LATENT_STRIDE, self.width // LATENT_STRIDE

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def buckets(resolution: int, step: int = 64, most: float = 2.0) -> tuple[Bucket, ...]:
    """The buckets of a resolution in pixels, from upright to wide: sides in multiples of `step`, an area of at most resolution^2, 1:most or less.

    Each width has the greatest height that its area allows; the square is among them. Below 256 px a step is at most a quarter of the resolution
    (a multiple of 8), or the square would stand alone. Raises KBDMError for a resolution below 32, a step that is no multiple of 8 or most < 1.
    """
    if resolution < LEAST or step < LATENT_STRIDE or step % LATENT_STRIDE or most < 1:
        raise KBDMError(
            f"Buckets of {resolution} px in steps of {step} px up to 1:{most} were asked for; "
            f"expected at least {LEAST} px, a multiple of {LATENT_STRIDE} px and at least 1:1."
        )
    step = min(step, resolution // 4 // LATENT_STRIDE * LATENT_STRIDE)
    square = resolution // step * step
    found = {Bucket(square, square)}
    for width in range(step, square + 1, step):
        height = resolution**2 // width // step * step
        if height <= most * width:
            found |= {Bucket(width, height), Bucket(height, width)}
    return tuple(sorted(found, key=lambda bucket: (bucket.width / bucket.height, bucket)))


def nearest(choices: Sequence[Bucket], width: int, height: int) -> Bucket:
    """The bucket whose aspect ratio is nearest to that of a picture, on a logarithmic scale; of two alike the larger one."""
    aspect = math.log(width / height)
    return min(choices, key=lambda bucket: (round(abs(math.log(bucket.width / bucket.height) - aspect), 9), -bucket.width * bucket.height))


@dataclass(frozen=True, eq=False)
class BatchOrder:
    """Which bucket and which of its items a step sees: a function of seed and step alone.

    Each epoch every bucket's items are permuted anew and cut into batches, its remainder left out; the batches of all buckets come in random
    order. A bucket with fewer items than `batch` is one smaller batch. members: int64 item numbers per bucket, none of them empty.
    """

    buckets: tuple[Bucket, ...]
    members: tuple[Tensor, ...]
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch < 1 or not self.members or len(self.members) != len(self.buckets) or not all(map(len, self.members)):
            raise KBDMError(
                f"Batches of {self.batch} from {len(self.buckets)} buckets with {[len(items) for items in self.members]} items were asked for; "
                "expected at least one item in a batch and in each bucket."
            )

    @property
    def steps_per_epoch(self) -> int:
        return sum(_batches(len(items), self.batch) for items in self.members)

    def step(self, index: int, rank: int = 0, world: int = 1) -> tuple[Bucket, Tensor]:
        """Step `index` (from 0) for process `rank` of `world`: its bucket, and every world-th item of the batch -> int64 [<= batch].

        A batch of fewer items than processes goes round among them, so that none has nothing to do.
        """
        epoch, position = divmod(index, self.steps_per_epoch)
        number, places = _epoch(tuple(len(items) for items in self.members), self.batch, self.seed, epoch)[position]
        items = self.members[number][places]
        return self.buckets[number], items[rank % len(items) :: world]


def _batches(items: int, batch: int) -> int:
    return max(1, items // batch)


@lru_cache(maxsize=2)
def _epoch(sizes: tuple[int, ...], batch: int, seed: int, epoch: int) -> tuple[tuple[int, Tensor], ...]:
    """All batches of an epoch in order: the bucket's number, and places in its list of items [<= batch]."""
    cut = []
    for number, size in enumerate(sizes):
        order = torch.randperm(size, generator=generator(seed, epoch, number))
        cut += [(number, order[start * batch : (start + 1) * batch]) for start in range(_batches(size, batch))]
    return tuple(cut[place] for place in torch.randperm(len(cut), generator=generator(seed, epoch, len(sizes))).tolist())
