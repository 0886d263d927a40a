"""Hair and hats: a cap on the skull with a hairline, and what hangs or stands on it."""

from __future__ import annotations

from collections.abc import Callable

from train.mini.world.kinematics import Array, Body, head_size
from train.mini.world.solids import Capsule, Colour, Solid
from train.mini.world.wardrobe import COLOURS, Look

#               width  hairline: kept where (0, up, front) . direction > limit
CAPS: dict[str, tuple[float, tuple[float, float], float]] = {
    "short": (1.09, (0.80, -0.60), 0.02),
    "long": (1.13, (0.52, -0.85), -0.28),
    "bob": (1.20, (0.50, -0.86), -0.30),
    "bun": (1.09, (0.72, -0.69), -0.02),
    "ponytail": (1.09, (0.72, -0.69), -0.04),
    "pigtails": (1.09, (0.72, -0.69), -0.06),
    "curly": (1.30, (0.66, -0.75), 0.02),
    "hat": (1.07, (0.62, -0.78), 0.05),
    "bald": (1.03, (0.30, -0.95), 0.30),
}


def hair_solids(body: Body, look: Look, part: int) -> list[Solid]:
    """The hair and hat of one head."""
    s, size = body.stature, head_size(body.build)
    r = s * size[0]

    def at(x: float, y: float, z: float) -> Array:
        """A point in half sizes of the head: left, up, front."""
        return body.head + s * body.skull @ (size * (x, y, z))

    def ball(centre: Array, radius: float, colour: Colour = look.hair_colour, stretch: tuple[float, float, float] = (1, 1, 1), keep=None) -> Capsule:
        return Capsule(centre, centre, radius * r, radius * r, colour, part, body.skull, stretch, keep)

    stretch = tuple(size / size[0])
    width, line, limit = CAPS[look.hair]
    solids: list[Solid] = []
    if look.hair != "bald":
        solids.append(ball(at(0, 0.02, -0.04), width, stretch=stretch, keep=_hairline(line, limit)))
    down, back = -body.trunk[:, 1], -body.trunk[:, 2]
    if look.hair == "long":
        nape = at(0, -0.1, -0.55)
        solids.append(Capsule(nape, nape + s * (0.19 * down + 0.03 * back), r * 1.0, r * 0.85, look.hair_colour, part, body.trunk, (1, 1, 0.45)))
    elif look.hair == "bob":
        solids.append(ball(at(0, -0.35, -0.35), 1.08, stretch=(1, 0.85, 0.72), keep=lambda along, local: local[1] > -0.62))
    elif look.hair == "bun":
        solids.append(ball(at(0, 1.05, -0.45), 0.46))
    elif look.hair == "ponytail":
        tie = at(0, 0.35, -1.12)
        solids.append(Capsule(tie, tie + s * (0.15 * down + 0.045 * back), r * 0.36, r * 0.22, look.hair_colour, part))
    elif look.hair == "pigtails":
        for side in (1, -1):
            tie = at(side * 1.05, 0.1, -0.3)
            solids.append(Capsule(tie, tie + s * 0.10 * down + s * 0.03 * side * body.skull[:, 0], r * 0.36, r * 0.26, look.hair_colour, part))
    elif look.hair == "hat":
        colour = COLOURS[look.hat]
        solids.append(ball(at(0, 0.16, -0.03), 1.14, colour, stretch, lambda along, local: local[1] > 0.28))
        solids.append(ball(at(0, 0.42, 0.08), 1.0, tuple(0.8 * v for v in colour), (1.45, 0.16, 1.6)))
    return solids


def _hairline(line: tuple[float, float], limit: float) -> Callable[[Array, Array], Array]:
    return lambda along, local: local[1] * line[0] + local[2] * line[1] > limit
