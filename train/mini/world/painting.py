"""Flat shapes on the fine grid of a picture: what the backgrounds are painted with. Coordinates are pixels of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.mini.world.relief import FINE, SIDE, samples
from train.mini.world.solids import Colour

X, Y = samples(0, SIDE)[None, :], samples(0, SIDE)[:, None]  # [1,SIDE], [SIDE,1]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    return tuple((1 - share) * u + share * v for u, v in zip(a, b))  # type: ignore[return-value]


def dark(colour: Colour, factor: float = 0.8) -> Colour:
    """The colour times the factor."""
    return tuple(min(1.0, factor * v) for v in colour)  # type: ignore[return-value]


class Painting:
    """A canvas [SIDE,SIDE,3], 0..1; every call paints over what was there."""

    def __init__(self) -> None:
        self.colour: NDArray[np.float32] = np.zeros((SIDE, SIDE, 3), np.float32)

    def gradient(self, top: float, bottom: float, first: Colour, last: Colour) -> None:
        """Rows top..bottom from the first colour to the last."""
        rows = _slice(top, bottom)
        share = np.linspace(0, 1, max(1, rows.stop - rows.start))[:, None, None]
        self.colour[rows] = (1 - share) * np.array(first) + share * np.array(last)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """An upright rectangle."""
        self.colour[_slice(top, bottom), _slice(left, right)] = colour

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, opacity: float = 1.0) -> None:
        """An ellipse around x, y."""
        rows, columns = _slice(y - ry, y + ry), _slice(x - rx, x + rx)
        inside = ((X[:, columns] - float(x)) / float(rx)) ** 2 + ((Y[rows] - float(y)) / float(ry)) ** 2 < 1
        self._fill(rows, columns, inside, colour, opacity)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour, opacity: float = 1.0) -> None:
        """A convex polygon, its corners in either order."""
        corners = np.array(points)
        rows, columns = _slice(corners[:, 1].min(), corners[:, 1].max()), _slice(corners[:, 0].min(), corners[:, 0].max())
        x, y = X[:, columns], Y[rows]
        least = most = np.float32(0)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]]):
            side = (x - float(ax)) * float(by - ay) - (y - float(ay)) * float(bx - ax)
            least, most = np.minimum(least, side), np.maximum(most, side)
        self._fill(rows, columns, (least == 0) | (most == 0), colour, opacity)

    def below(self, heights: NDArray[np.floating], bottom: float, colour: Colour) -> None:
        """Everything between a ridge (a y for each of the SIDE columns) and the row `bottom`."""
        rows = _slice(float(heights.min()), bottom)
        self.colour[rows][Y[rows] >= heights[None, :]] = colour

    def _fill(self, rows: slice, columns: slice, inside: NDArray[np.bool_], colour: Colour, opacity: float) -> None:
        part = self.colour[rows, columns]
        part[inside] = colour if opacity == 1 else part[inside] * np.float32(1 - opacity) + np.array(colour, np.float32) * np.float32(opacity)


def _slice(low: float, high: float) -> slice:
    first = min(SIDE, max(0, round((low + 0.5) * FINE)))
    return slice(first, min(SIDE, max(first, round((high + 0.5) * FINE))))
