"""Things that touch people: seats under them, and what stands before their legs."""

from __future__ import annotations

import numpy as np

from train.mini.world.kinematics import Array, Body, rotation
from train.mini.world.painting import dark
from train.mini.world.solids import Box, Capsule, Colour, Solid

SEATS = ("box", "chair", "stool")
SCREENS = {  # place -> what may stand before a person there
    "park": ("bush", "bench", "fence"),
    "beach": ("box", "fence", "bench"),
    "street": ("bench", "box", "fence"),
    "room": ("box", "bench"),
    "stage": ("box", "bench"),
    "snowy mountains": ("fence", "bush", "box"),
}
WOODS: tuple[Colour, ...] = ((0.58, 0.42, 0.28), (0.70, 0.55, 0.38), (0.46, 0.34, 0.26))
LEAVES: dict[str, Colour] = {"snowy mountains": (0.34, 0.48, 0.44)}
PART = 30  # parts of things: 30 and above


def seat(kind: str, body: Body, wood: Colour) -> list[Solid]:
    """A seat under the pelvis, standing on the ground and turned with the person."""
    s, frame = body.stature, body.pelvic
    top = s * 0.082  # below the pelvis
    height = (body.ground - body.pelvis[1]) / -frame[1, 1] - top

    def at(left: float, up: float, front: float) -> Array:
        """A point by its distances from the middle of the seat's top."""
        return body.pelvis + frame @ (left, up - top, front - 0.02 * s)

    if kind == "box":
        return [Box(at(0, -height / 2, 0), (0.155 * s, height / 2, 0.125 * s), frame, wood, PART, _planks(wood))]
    plate = Box(at(0, -0.016 * s, 0), (0.14 * s, 0.018 * s, 0.125 * s), frame, wood, PART)
    legs: list[Solid] = [
        Capsule(at(x * s, -0.02 * s, z * s), at(x * s, 0.015 * s - height, z * s), 0.017 * s, 0.015 * s, dark(wood), PART + 1)
        for x in (-0.12, 0.12)
        for z in (-0.105, 0.105)
    ]
    if kind == "stool":
        return [plate, *legs]
    rails: list[Solid] = [Box(at(0, y * s, -0.125 * s), (0.14 * s, 0.035 * s, 0.014 * s), frame, wood, PART + 2) for y in (0.13, 0.25)]
    posts: list[Solid] = [
        Capsule(at(x * s, 0, -0.125 * s), at(x * s, 0.28 * s, -0.125 * s), 0.016 * s, 0.016 * s, dark(wood), PART + 2) for x in (-0.125, 0.125)
    ]
    return [plate, *legs, *rails, *posts]


def screen(kind: str, place: str, x: float, y: float, height: float, wood: Colour) -> list[Solid]:
    """Something `height` px high that stands at x, y (the middle of its foot) before people's legs."""
    frame = np.array([1.0, -1.0, 1.0])[:, None] * (rotation("x", 7) @ rotation("y", 12))
    foot = np.array([x, y, 0.0])

    def at(left: float, up: float, front: float) -> Array:
        return foot + frame @ (left, up, front)

    h = height
    if kind == "box":
        return [Box(at(0, h / 2, 0), (0.75 * h, h / 2, 0.5 * h), frame, wood, PART, _planks(wood))]
    if kind == "bush":
        leaf = LEAVES.get(place, (0.30, 0.50, 0.27))
        balls = ((-1.05, 0.36, 0.38, 0), (0, 0.52, 0.50, 0.1), (1.05, 0.38, 0.40, 0), (-0.5, 0.30, 0.36, 0.3), (0.5, 0.30, 0.36, 0.3))
        return [Capsule(at(a * h, b * h, d * h), at(a * h, b * h, d * h), r * h, r * h, leaf, PART + i % 2) for i, (a, b, r, d) in enumerate(balls)]
    if kind == "bench":
        boards: list[Solid] = [Box(at(0, up * h, 0), (1.35 * h, 0.10 * h, 0.06 * h), frame, wood, PART) for up in (0.9, 0.62)]
        boards.append(Box(at(0, 0.36 * h, -0.3 * h), (1.35 * h, 0.05 * h, 0.35 * h), frame, wood, PART + 1))
        return boards + [
            Box(at(a * h, 0.45 * h, -0.06 * h), (0.06 * h, 0.45 * h, 0.05 * h), frame, (0.25, 0.25, 0.27), PART + 2) for a in (-1.1, 1.1)
        ]
    rails: list[Solid] = [Box(at(0, up * h, -0.05 * h), (2.4 * h, 0.07 * h, 0.03 * h), frame, wood, PART) for up in (0.35, 0.75)]
    return rails + [
        Box(at(a * h, 0.5 * h, 0.04 * h), (0.14 * h, 0.5 * h, 0.05 * h), frame, dark(wood, 1.12), PART + 1) for a in (-2, -1.2, -0.4, 0.4, 1.2, 2)
    ]


def _planks(wood: Colour):
    def paint(along: Array, local: Array) -> tuple:
        return ((np.abs(along - 0.5) < 0.05, dark(wood, 0.72)), ((along < 0.08) | (along > 0.93), dark(wood, 0.86)))

    return paint
