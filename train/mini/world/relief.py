"""Solids to pixels: depth, normals, colours and owners on a grid finer than the picture, for the styles to draw from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.mini.world.solids import Array, Colour, Solid

SIZE = 128  # px of a picture's side; frozen
FINE = 2  # samples per pixel and axis
SIDE = SIZE * FINE
NOBODY, THING = -1, 100  # owners: the background; seats and what stands before people. People are 0, 1, ...
BEHIND = -1e6


@dataclass(frozen=True)
class Layer:
    """Solids that hide one another by depth, with the owner of each; a later layer hides all earlier ones."""

    solids: Sequence[Solid]
    owners: Sequence[int]


@dataclass(eq=False)
class Relief:
    """What is seen at each sample [SIDE,SIDE]: depth `z`, `normal` [3,...] (x right, y down, z to the viewer), `pigment` (a row of `palette`),
    `part` and `owner`."""

    z: NDArray[np.float32]
    normal: NDArray[np.float32]
    pigment: NDArray[np.int16]
    part: NDArray[np.int16]
    owner: NDArray[np.int16]
    palette: list[Colour]

    @property
    def colour(self) -> NDArray[np.float32]:
        """The unlit colours [SIDE,SIDE,3]."""
        return np.take(np.array(self.palette, np.float32), self.pigment, axis=0, mode="clip")


def samples(start: int, stop: int) -> Array:
    """Picture coordinates of the samples start..stop of an axis: pixel j stands at j, its samples around it."""
    return ((np.arange(start, stop) + 0.5) / FINE - 0.5).astype(np.float32)  # exact: halves and quarters


def empty_relief() -> Relief:
    """Nothing anywhere."""
    shape = (SIDE, SIDE)
    z, normal, owner = np.full(shape, BEHIND, np.float32), np.zeros((3, *shape), np.float32), np.full(shape, NOBODY, np.int16)
    return Relief(z, normal, np.zeros(shape, np.int16), np.zeros(shape, np.int16), owner, [(0.0, 0.0, 0.0)])


def rasterise(layers: Sequence[Layer]) -> Relief:
    """All layers, back to front."""
    relief = empty_relief()
    for number, layer in enumerate(layers):
        for solid, owner in zip(layer.solids, layer.owners):
            _add(relief, solid, owner, 1000.0 * number)
    return relief


def _add(relief: Relief, solid: Solid, owner: int, offset: float) -> None:
    left, top, right, bottom = ((edge + 0.5) * FINE for edge in solid.bounds())
    rows = slice(max(0, int(top)), min(SIDE, int(bottom) + 1))
    columns = slice(max(0, int(left)), min(SIDE, int(right) + 1))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    seen = solid.surface(samples(columns.start, columns.stop)[None, :], samples(rows.start, rows.stop)[:, None])
    z = seen.z + offset
    box = (rows, columns)
    shown = seen.inside & (z > relief.z[box])
    if not shown.any():
        return
    np.copyto(relief.z[box], z, where=shown)
    np.copyto(relief.normal[:, rows, columns], seen.normal, where=shown)
    np.copyto(relief.pigment[box], _pigment(relief, solid.colour), where=shown)
    if solid.paint is not None:
        for where, other in solid.paint(seen.along, seen.local):
            np.copyto(relief.pigment[box], _pigment(relief, other), where=shown & where)
    np.copyto(relief.part[box], solid.part, where=shown)
    np.copyto(relief.owner[box], owner, where=shown)


def _pigment(relief: Relief, colour: Colour) -> int:
    relief.palette.append(colour)
    return len(relief.palette) - 1
