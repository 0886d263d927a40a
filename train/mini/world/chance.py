"""Draws from a seed that are the same on every machine: only PCG64's uniform doubles are used, whose stream NumPy guarantees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Chance:
    """A stream of draws; every draw takes one double of the stream (so `weighted` and `pick` do not shift what follows)."""

    def __init__(self, seed: int):
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self._generator.random()

    def around(self, centre: float, spread: float) -> float:
        """Uniform within `spread` of the centre."""
        return self.between(centre - spread, centre + spread)

    def happens(self, probability: float) -> bool:
        """True with that probability."""
        return self._generator.random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[int(self._generator.random() * len(choices))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One of the keys, by weight."""
        point = self._generator.random() * sum(weights.values())
        for choice, weight in weights.items():
            point -= weight
            if point < 0:
                return choice
        return choice

    def some(self, choices: Sequence[T], count: int) -> tuple[T, ...]:
        """`count` different choices, in drawn order."""
        left = list(choices)
        return tuple(left.pop(int(self._generator.random() * len(left))) for _ in range(min(count, len(left))))

    def seed(self) -> int:
        """A seed for a stream of its own (textures): what is drawn there does not shift what follows here."""
        return int(self._generator.random() * 2**32)
