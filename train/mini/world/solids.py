"""Round and boxy solids seen in parallel projection: for any points of the picture their depth, normal and place on the solid.

One round solid does for everything: a tapered capsule, seen in a frame that may be flattened (a trunk, a skull: a capsule without length).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Colour = tuple[float, float, float]  # 0..1
Keep = Callable[[Array, Array], NDArray[np.bool_]]
Paint = Callable[[Array, Array], tuple[tuple[NDArray[np.bool_], Colour], ...]]


class Surface(NamedTuple):
    """What is seen at points [...]: `inside`, depth `z` (larger is nearer), `normal` [3,...] to the viewer (y down), `along` in 0..1 from end to
    end, `local` [3,...]: the unit direction in the solid's own frame (left, up, front)."""

    inside: NDArray[np.bool_]
    z: Array
    normal: Array
    along: Array
    local: Array


@dataclass(frozen=True, eq=False)
class Capsule:
    """A tapered capsule from a to b [3] with radii in pixels; `frame` [3,3] columns are unit axes, `stretch` [3] the radius factor along each.

    keep(along, local) cuts parts away, paint(along, local) colours parts otherwise. `part`: limbs of the same number get no contour between them.
    """

    a: Array
    b: Array
    radius_a: float
    radius_b: float
    colour: Colour
    part: int = 0
    frame: Array | None = None
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    keep: Keep | None = None
    paint: Paint | None = None

    def bounds(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom in pixels."""
        reach = np.ones(2) if self.frame is None else np.sqrt(((self.frame[:2] * self.stretch) ** 2).sum(axis=1))
        low = np.minimum(self.a[:2] - self.radius_a * reach, self.b[:2] - self.radius_b * reach)
        high = np.maximum(self.a[:2] + self.radius_a * reach, self.b[:2] + self.radius_b * reach)
        return low[0], low[1], high[0], high[1]

    def surface(self, x: Array, y: Array) -> Surface:
        """What is seen at x, y (broadcast together)."""
        to, turn = self._straightened()
        (ax, ay, az), (bx, by, bz) = (to @ self.a).tolist(), (to @ self.b).tolist()  # Python's floats leave float32 samples float32
        dx, dy, dz, thick = bx - ax, by - ay, bz - az, float(max(self.radius_a, self.radius_b))
        (xx, xy, _), (yx, yy, _), (zx, zy, zz) = to.tolist()
        px, py = x * xx + (y * xy - ax), x * yx + (y * yy - ay)
        flat = max(dx * dx + dy * dy, 1e-4)
        if flat + dz * dz > 1e-3:
            # of all spheres along the axis the one that reaches nearest to the viewer: it lies before the pixel's foot point on a slanting axis
            across = px * (dy / flat**0.5) - py * (dx / flat**0.5)
            ahead = dz / (flat * (1 + dz * dz / flat) ** 0.5)
            along = px * (dx / flat) + py * (dy / flat) + ahead * np.sqrt(np.maximum(thick * thick - across * across, 0))
            along = np.minimum(np.maximum(along, 0), 1)
            nx, ny = px - along * dx, py - along * dy
            radius = along * float(self.radius_b - self.radius_a) + float(self.radius_a)
        else:  # a ball
            along, nx, ny, radius = np.zeros_like(px), px, py, thick
        height2 = radius * radius - nx * nx - ny * ny
        inside = height2 > 0
        height = np.sqrt(np.maximum(height2, 0))
        normal = np.stack([nx, ny, height])
        normal /= radius
        z = along * dz + (height + az)
        local = normal
        if self.frame is not None:
            z = (z - x * zx - y * zy) / zz
            if self.keep is not None or self.paint is not None:
                local = _turned(turn, normal)
            normal = _turned(to, normal)
            normal /= np.sqrt((normal * normal).sum(axis=0)) + 1e-9
        if self.keep is not None:
            inside &= self.keep(along, local)
        return Surface(inside, z, normal, along, local)

    def _straightened(self) -> tuple[Array, Array]:
        """The affine map [3,3] to a space where the solid is round and the viewer still looks along z, and its rotation."""
        if self.frame is None:
            return np.eye(3), np.eye(3)
        shrink = self.frame.T / np.array(self.stretch)[:, None]
        view = shrink[:, 2] / np.linalg.norm(shrink[:, 2])
        side = np.cross(view, (0.0, 1.0, 0.0) if abs(view[1]) < 0.9 else (1.0, 0.0, 0.0))
        side /= np.linalg.norm(side)
        turn = np.stack([side, np.cross(view, side), view])
        return turn @ shrink, turn


@dataclass(frozen=True, eq=False)
class Box:
    """A box: centre [3], half sizes along the columns of `frame` [3,3], in pixels."""

    centre: Array
    half: tuple[float, float, float]
    frame: Array
    colour: Colour
    part: int = 0
    paint: Paint | None = None

    def bounds(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom in pixels."""
        reach = (np.abs(self.frame[:2]) * self.half).sum(axis=1)
        return (*(self.centre[:2] - reach), *(self.centre[:2] + reach))  # type: ignore[return-value]

    def surface(self, x: Array, y: Array) -> Surface:
        """What is seen at x, y (broadcast together). `along` is the height, 0 at the top; `local` the place in the box, -1..1."""
        x, y = np.broadcast_arrays(x - float(self.centre[0]), y - float(self.centre[1]))
        near, far, face = np.full(x.shape, np.inf), np.full(x.shape, -np.inf), np.zeros(x.shape, dtype=np.intp)
        for axis in range(3):
            over, up, slope = self.frame[:, axis].tolist()
            half, at = float(self.half[axis]), x * over + y * up
            slope = slope if abs(slope) > 1e-4 else 1e-4
            ends = (-half - at) / slope, (half - at) / slope
            first = np.maximum(*ends)
            face = np.where(first < near, axis, face)
            near, far = np.minimum(near, first), np.maximum(far, np.minimum(*ends))
        axes = self.frame * np.where(self.frame[2] < 0, -1, 1)  # the faces that look to the viewer
        place = np.stack([x, y, near])
        local = _turned(self.frame, place) / np.array(self.half).reshape(3, *(1,) * x.ndim)
        return Surface(near > far, near + float(self.centre[2]), axes[:, face], (1 - local[1]) / 2, local)


Solid = Capsule | Box


def _turned(turn: Array, vectors: Array) -> Array:
    """The transposed matrix [3,3] times vectors [3,...]."""
    return (turn.T.astype(vectors.dtype) @ vectors.reshape(3, -1)).reshape(vectors.shape)
