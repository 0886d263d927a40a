"""The grid's rows: prompts and poses of Mini-Human scenes that nothing was trained on, and of a real photograph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person, Pose, parse_pose_json
from train.mini.world.dataset import split_seed
from train.mini.world.scene import scene

from . import pose
from .miniature import SIDE

SPLIT = "held-out"
# Chosen by their captions alone, before any adapter was trained: each of the six styles, one with two people. The README shows the first three.
SCENES = (59, 57, 30, 1, 49, 5, 27)
README_ROWS = 3
REAL_PROMPT = "a colour photo of a man in a red t-shirt and blue shorts running in the park in daylight"
REAL_SHARE = 0.72  # of the picture's side: how long the real person is at most
FIRST_SEED = 20260101


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt, a pose on the miniature's canvas, where both come from, and the seed of all the row's pictures."""

    name: str
    prompt: str
    pose: Pose
    source: str
    seed: int


def demo_rows() -> list[Row]:
    """All rows. Raises PoseError if the real pose cannot be fetched."""
    scenes = [held_out(number, FIRST_SEED + i) for i, number in enumerate(SCENES)]
    return [*scenes, real(pose.coco_json(), FIRST_SEED + len(scenes))]


def held_out(number: int, seed: int) -> Row:
    """Caption and pose of a scene of Mini-Human's held-out split."""
    drawn = scene(split_seed(SPLIT, number))
    return Row(f"scene-{number}", drawn.caption, drawn.pose, f"Mini-Human, {SPLIT} scene {number}", seed)


def real(coco: str, seed: int) -> Row:
    """The person of a COCO JSON, brought onto the miniature's canvas; the prompt is in the words that the miniature has learnt."""
    (found,) = parse_pose_json(coco)
    return Row("coco", REAL_PROMPT, in_square(found, SIDE, REAL_SHARE), pose.SOURCE, seed)


def in_square(found: Pose, side: int, share: float) -> Pose:
    """The people, their proportions kept, in the middle of a square of `side` px, of whose sides the box of all joints takes `share`.

    Raises PoseError if no joint is visible.
    """
    seen = np.concatenate([np.zeros((0, 3)), *(person.body[person.body[:, 2] > 0] for person in found.people)])[:, :2]
    if len(seen) == 0:
        raise PoseError("the pose has no visible joint; expected at least one person.")
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = share * side / max(float((high - low).max()), 1.0)
    people = []
    for person in found.people:
        placed = scale * (person.body[:, :2] - (low + high) / 2) + side / 2
        visible = person.body[:, 2:] > 0
        people.append(Person(np.where(visible, np.concatenate([placed, person.body[:, 2:]], axis=1), 0.0)))
    return Pose(tuple(people), side, side)
