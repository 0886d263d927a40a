"""Patterns that styles lay over pictures: brush strokes, panes of glass, grain. Drawn once from fixed seeds, then shifted per picture."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from train.mini.world.relief import SIZE
from train.mini.world.solids import Array


@cache
def grain(side: int) -> NDArray[np.float32]:
    """Uniform noise [side,side] in -0.5..0.5."""
    return np.random.Generator(np.random.PCG64(7)).random((side, side)).astype(np.float32) - np.float32(0.5)


@cache
def strokes(long: float, thick: float) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Brush strokes of so many pixels: for each pixel the flat index of its stroke's middle [SIZE,SIZE], and the bristles' relief in -1..1.

    The strokes' middles are jittered grid points; the winner at a pixel is the nearest in a metric stretched along each stroke.
    """
    draw = np.random.Generator(np.random.PCG64(11))
    step = max(2.0, (long * thick) ** 0.5)
    count = int(SIZE / step)
    grid = (np.arange(count) + 0.5) * SIZE / count
    jitter = (draw.random((2, count, count)) - 0.5) * step
    xs, ys = np.clip(grid[None, :] + jitter[0], 0, SIZE - 1).ravel(), np.clip(grid[:, None] + jitter[1], 0, SIZE - 1).ravel()
    swirl = np.sin(2 * np.pi * xs / SIZE) + np.cos(2 * np.pi * (ys + xs) / SIZE)  # neighbouring strokes run alike, across the edges too
    angles = 0.9 * swirl + (draw.random(xs.size) - 0.5) * 0.9
    best, winner, relief = np.full((SIZE, SIZE), np.inf), np.zeros((SIZE, SIZE), np.intp), np.zeros((SIZE, SIZE))
    tone = draw.random(xs.size) - 0.5
    near = np.arange(-int(1.6 * long) - 1, int(1.6 * long) + 2)
    for i, (cx, cy, angle) in enumerate(zip(xs, ys, angles)):
        box = np.ix_((int(cy) + near) % SIZE, (int(cx) + near) % SIZE)  # wraps round, as the pattern is shifted
        dx, dy = near[None, :] - cx % 1, near[:, None] - cy % 1
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        distance = (along / long) ** 2 + (across / thick) ** 2
        nearer = distance < best[box]
        best[box] = np.where(nearer, distance, best[box])
        winner[box] = np.where(nearer, int(cy) * SIZE + int(cx), winner[box])
        relief[box] = np.where(nearer, np.clip(0.9 * across / thick, -1, 1) * 0.6 + tone[i], relief[box])
    return winner, relief.astype(np.float32)


@cache
def panes(size: float) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Panes of glass about `size` pixels wide on a field twice as large as the picture: per pixel the pane's number [2 SIZE, 2 SIZE], and the
    distance to the pane's border in pixels (half the difference to the second nearest middle)."""
    draw = np.random.Generator(np.random.PCG64(13))
    side = 2 * SIZE
    count = int(side / size)
    grid = (np.arange(count) + 0.5) * side / count
    jitter = (draw.random((2, count, count)) - 0.5) * size * 0.75
    xs, ys = (grid[None, :] + jitter[0]).ravel(), (grid[:, None] + jitter[1]).ravel()
    x, y = np.arange(side)[None, :], np.arange(side)[:, None]
    first, second, winner = np.full((side, side), 1e9), np.full((side, side), 1e9), np.zeros((side, side), np.intp)
    for i, (cx, cy) in enumerate(zip(xs, ys)):
        distance = np.hypot(x - cx, y - cy)
        nearer = distance < first
        second = np.where(nearer, first, np.minimum(second, distance))
        winner[nearer] = i
        first = np.minimum(first, distance)
    return winner, ((second - first) / 2).astype(np.float32)


def window(field: Array, x: int, y: int) -> Array:
    """A picture-sized cut of a larger field."""
    return field[y : y + SIZE, x : x + SIZE]
