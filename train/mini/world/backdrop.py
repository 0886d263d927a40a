"""What all backgrounds share: skies, ridges, the light of a time of day, and things put at random spots."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train.mini.world.chance import Chance
from train.mini.world.painting import Painting, X, mix
from train.mini.world.relief import SIZE
from train.mini.world.solids import Colour

SKIES: dict[str, tuple[Colour, Colour]] = {
    "day": ((0.52, 0.72, 0.90), (0.84, 0.91, 0.95)),
    "sunset": ((0.55, 0.45, 0.62), (0.98, 0.72, 0.50)),
    "night": ((0.08, 0.10, 0.22), (0.24, 0.28, 0.44)),
}
TINTS: dict[str, Colour] = {"day": (1.0, 1.0, 1.0), "sunset": (0.98, 0.82, 0.74), "night": (0.46, 0.52, 0.72), "": (1.0, 1.0, 1.0)}
HAZE = (0.80, 0.81, 0.82)


def sky(p: Painting, c: Chance, horizon: float, time: str) -> None:
    """Sky with clouds, sun or stars down to the horizon."""
    p.gradient(-1, horizon, *SKIES[time])
    if time == "night":
        for _ in range(14):
            p.ellipse(c.between(0, SIZE), c.between(0, horizon - 12), 0.8, 0.8, (0.85, 0.86, 0.80))
        p.ellipse(c.between(12, 116), c.between(8, 24), 6, 6, (0.93, 0.92, 0.80))
    elif time == "sunset":
        x = c.between(20, 108)
        p.ellipse(x, horizon - c.between(0, 12), 11, 11, (1.0, 0.86, 0.58))
    for _ in range(0 if time == "night" else int(c.between(0, 4))):
        x, y, w = c.between(0, SIZE), c.between(5, horizon * 0.5), c.between(7, 13)
        cloud = mix(SKIES[time][1], (1.0, 1.0, 1.0), 0.6)
        for dx, dy, r in ((-0.8, 0.2, 0.6), (0, 0, 0.8), (0.8, 0.2, 0.65)):
            p.ellipse(x + dx * w, y + dy * w * 0.5, r * w, r * w * 0.5, cloud)


def ridge(c: Chance, base: float, height: float, waves: tuple[float, ...] = (1.3, 2.7, 5.1)) -> np.ndarray:
    """A soft outline: y of each column."""
    x = X[0] / SIZE
    return base - height * sum((0.5 + 0.5 * np.sin(2 * np.pi * (w * x + c.between(0, 1)))) / (i + 1) for i, w in enumerate(waves)) / 1.8


def lit_by(time: str) -> Callable[[Colour], Colour]:
    """Muted and tinted by the time of day."""
    return lambda colour: tuple(t * v for t, v in zip(TINTS[time], mix(colour, HAZE, 0.18)))


def put_things(c: Chance, props: dict[Callable[[float, float], None], float], y: float, least: int = 1) -> None:
    """One to three things, spread over the width, farther ones first."""
    count = least + int(c.between(0, 4 - least))
    start = c.between(0, 1)
    spots = sorted((y + c.between(0, 9), 8 + 112 * ((start + (i + c.around(0.5, 0.3)) / count) % 1)) for i in range(count))
    for foot, x in spots:
        c.weighted(props)(x, foot)
