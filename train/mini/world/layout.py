"""Where people stand: sizes and places on the picture for one, two or three bodies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.mini.world.chance import Chance
from train.mini.world.kinematics import Array, Body, head_size
from train.mini.world.relief import SIZE

HEIGHTS = {1: (0.55, 0.95), 2: (0.50, 0.80), 3: (0.45, 0.68)}  # a person's height by the number of people, of the picture's
TALLEST = 1.06  # stature over the picture's height: a crouching person's head must not fill the picture
CHILD = 0.80


def extent(body: Body) -> tuple[float, float, float, float]:
    """left, top, right, bottom of a body with its flesh, in pixels."""
    s, skull = body.stature, body.stature * head_size(body.build)[1] * 1.15
    points = [body.joints[5:, :2] - 0.045 * s, body.joints[5:, :2] + 0.045 * s, body.hands[:, :2] + 0.03 * s, body.hands[:, :2] - 0.03 * s]
    points += [body.toes[:, :2] + 0.035 * s, body.toes[:, :2] - 0.035 * s, body.head[None, :2] - skull, body.head[None, :2] + skull]
    spread: Array = np.concatenate(points)
    return spread[:, 0].min(), spread[:, 1].min(), spread[:, 0].max(), spread[:, 1].max()


def place_bodies(bodies: Sequence[Body], children: Sequence[bool], chance: Chance) -> list[Body]:
    """Bodies in statures (the ground at their own y) -> on the picture: heights in HEIGHTS, all on it but for a hand or a foot, left to right."""
    count = len(bodies)
    low, high = (SIZE * h for h in HEIGHTS[count])
    target, grown = chance.between(low, high), []
    for body, child in zip(bodies, children):
        left, top, right, bottom = extent(body)
        tall = target * (CHILD if child and count > 1 else 1.0) * (chance.around(1.0, 0.08) if count > 1 else 1.0)
        scale = min(np.clip(tall, low, high) / (bottom - top), TALLEST * SIZE, (SIZE - 4) / (right - left), (SIZE - 6) / (body.ground - top))
        grown.append((body, scale))
    middles = {1: (0.5,), 2: (0.28, 0.72), 3: (0.19, 0.5, 0.81)}[count]
    placed, closeness = [], chance.between(0.62, 1.0)  # the closer, the more they hide of one another
    for (body, scale), middle in zip(grown, middles):
        left, top, right, _ = (scale * edge for edge in extent(body))
        centre = SIZE * (0.5 + closeness * (middle - 0.5)) + chance.around(0, {1: 26, 2: 8, 3: 5}[count]) - (left + right) / 2
        margin = -5 if chance.happens(0.12) else 2  # now and then a hand leaves the picture
        x = np.clip(centre, margin - left, SIZE - 1 - margin - right) if right - left < SIZE - 2 * margin else SIZE / 2 - (left + right) / 2
        highest = 3 + scale * body.ground - top  # the ground's y at which the head touches the upper edge
        y = max(highest, chance.between(100 if count > 1 else max(98, highest), 125))
        placed.append(body.placed(scale, float(x), float(min(y, 126))))
    return placed
