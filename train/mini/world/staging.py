"""Who stands where: people, seats and screens as layers of solids, and which joints of whom can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kbdm_core.keypoints import Person, Pose
from train.mini.world.figure import figure
from train.mini.world.kinematics import Array, Body
from train.mini.world.relief import SIZE, THING, Layer
from train.mini.world.solids import Colour, Solid
from train.mini.world.things import screen, seat
from train.mini.world.wardrobe import Look

FACE_TURNS = (-0.05, 0.0, 0.0, -0.35, -0.35)  # nose, eyes, ears are seen while their direction's z is above this


@dataclass(frozen=True, eq=False)
class Actor:
    """One person on the picture; `seat` is one of SEATS or ""."""

    look: Look
    action: str
    yaw: float
    body: Body
    seat: str
    wood: Colour


@dataclass(frozen=True)
class Screen:
    """What stands before the people: kind (see SCREENS), foot and height in pixels."""

    kind: str
    place: str
    x: float
    y: float
    height: float
    wood: Colour


def layers(actors: Sequence[Actor], before: Screen | None = None) -> list[Layer]:
    """The solids of a picture, back to front: a person with the seat, the next person, ..., the screen. Owners are the actors' numbers."""
    staged = []
    for number in depth_order(actors):
        actor = actors[number]
        people = figure(actor.body, actor.look)
        things = seat(actor.seat, actor.body, actor.wood) if actor.seat else []
        staged.append(Layer([*people, *things], [number] * len(people) + [THING] * len(things)))
    if before is not None:
        solids = screen(before.kind, before.place, before.x, before.y, before.height, before.wood)
        staged.append(Layer(solids, [THING] * len(solids)))
    return staged


def depth_order(actors: Sequence[Actor]) -> list[int]:
    """The actors' numbers, farthest first: who stands lower in the picture is nearer."""
    return sorted(range(len(actors)), key=lambda i: actors[i].body.ground)


def visible_pose(actors: Sequence[Actor], staged: Sequence[Layer]) -> Pose:
    """COCO-17 of all actors. Confidence 0 (and coordinates 0) for joints off the picture, behind somebody or something else, and for nose, eyes
    and ears on the far side of the head; a body joint that only its own person hides counts as seen, as annotators mark it."""
    people = {}
    for level, number in enumerate(depth_order(actors)):
        joints = actors[number].body.joints
        seen = (joints[:, :2] >= 0).all(axis=1) & (joints[:, :2] <= SIZE - 1).all(axis=1)
        seen[:5] &= _face_turns(actors[number].body) > FACE_TURNS
        for above, layer in enumerate(staged[level:]):
            own = _nearest(layer.solids, layer.owners, number, joints) if above == 0 and THING in layer.owners else None
            for solid, owner in zip(layer.solids, layer.owners):
                if above == 0 and owner == number:
                    continue
                hidden = _covers(solid, joints)
                seen &= ~(np.isfinite(hidden) if own is None else hidden > own)
        people[number] = Person(np.where(seen[:, None], np.column_stack([joints[:, :2], np.ones(17)]), 0.0))
    return Pose(tuple(people[i] for i in range(len(actors))), SIZE, SIZE)


def _face_turns(body: Body) -> Array:
    """How much nose, eyes, ears turn to the viewer [5]: z of their directions."""
    directions = np.array([(0, 0, 1), (0.42, 0, 0.9), (-0.42, 0, 0.9), (1, 0, 0), (-1, 0, 0)])
    return directions @ body.skull[2]


def _covers(solid: Solid, points: Array) -> Array:
    """Depth of the solid's front at points [N,3] -> [N], NaN where it does not cover them."""
    depth = np.full(len(points), np.nan)
    left, top, right, bottom = solid.bounds()
    near = (points[:, 0] >= left) & (points[:, 0] <= right) & (points[:, 1] >= top) & (points[:, 1] <= bottom)
    if near.any():
        seen = solid.surface(points[near, 0], points[near, 1])
        depth[near] = np.where(seen.inside, seen.z, np.nan)
    return depth


def _nearest(solids: Sequence[Solid], owners: Sequence[int], number: int, points: Array) -> Array:
    """Depth of the person's own front at points [N]."""
    return np.fmax.reduce([_covers(s, points) for s, owner in zip(solids, owners) if owner == number] + [np.full(len(points), -np.inf)])
