"""A given pose in the plane becomes a dressed figure: depth, frames and flesh are guessed from the 17 joints alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person
from train.mini.world.kinematics import SIDES, Array, Body, Build

TRUNK_OF_STATURE = 0.265  # shoulders to hips
NEEDED = (5, 6, 11, 12)  # shoulders and hips
BONES = ((7, 5, 11), (8, 6, 12), (9, 7, 5), (10, 8, 6), (13, 11, 5), (14, 12, 6), (15, 13, 11), (16, 14, 12))  # joint, its root, the one before
LENGTHS = {7: 0.150, 8: 0.150, 9: 0.140, 10: 0.140, 13: 0.2, 14: 0.2, 15: 0.19, 16: 0.19}


def dress(person: Person, build: Build | None = None) -> Body:
    """The body of a person [17 joints in pixels], for `figure`. Unseen elbows, knees, wrists and ankles continue the bone before them; an unseen
    head stands above the shoulders. Raises PoseError if a shoulder or hip is missing: nothing can be hung on such a trunk."""
    if not (person.body[list(NEEDED), 2] > 0).all():
        raise PoseError("a shoulder or a hip of the person is missing; a figure needs all four to hang its limbs on.")
    build, joints, seen = build or Build(), person.body.copy(), person.body[:, 2] > 0
    joints[:, 2] = 0
    shoulders, hips = joints[[5, 6]].mean(axis=0), joints[[11, 12]].mean(axis=0)
    spans = (np.linalg.norm(shoulders - hips) / TRUNK_OF_STATURE, np.linalg.norm(joints[5] - joints[6]) / (2 * build.shoulders))
    stature = max(*spans, 1.0)
    for joint, root, before in BONES:
        bone = joints[root, :2] - joints[before, :2]
        if not seen[joint]:
            joints[joint, :2] = joints[root, :2] + LENGTHS[joint] * stature * bone / max(np.linalg.norm(bone), 1e-6)
    up = (shoulders - hips)[:2]
    toward = _toward(joints, seen, shoulders, up)
    trunk = _frame(joints[5, :2] - joints[6, :2], up, 2 * build.shoulders * stature, toward)
    pelvic = _frame(joints[11, :2] - joints[12, :2], up, 2 * build.hips * stature, toward)
    neck = shoulders + 0.042 * stature * trunk[:, 1]
    skull, head = _head(joints, seen, trunk, neck, stature * build.head, toward)
    joints[:5] = np.where(seen[:5, None], joints[:5], head)
    front = 0.05 * stature * (np.sign(trunk[2, 2]) or 1.0)  # hands are mostly before the body
    joints[[7, 8], 2] += 0.3 * front
    joints[[9, 10], 2] += 1.6 * front
    joints[[13, 14], 2] += 0.4 * front
    hands, toes = np.zeros((2, 3)), np.zeros((2, 3))
    for i, side in enumerate(SIDES):
        fore = joints[9 + i] - joints[7 + i]
        hands[i] = joints[9 + i] + 0.04 * stature * fore / max(np.linalg.norm(fore), 1e-6)
        toes[i] = joints[15 + i] + 0.07 * stature * (0.5 * side * pelvic[:, 0] + 0.9 * pelvic[:, 2] + (0.0, 0.35, 0.0)) / 1.1
    ground = float(max(joints[15:, 1].max(), joints[13:15, 1].max()) + 0.045 * stature)
    return Body(joints, hands, toes, hips, neck, head, trunk, pelvic, skull, float(stature), ground, build)


def _sideways(up: Array) -> Array:
    """Unit vector [2] to the picture's right for an upright person; it turns with the trunk."""
    return np.array([-up[1], up[0]]) / max(np.linalg.norm(up), 1e-6)


def _toward(joints: Array, seen: NDArray[np.bool_], shoulders: Array, up: Array) -> float:
    """To which side of the picture the person turns, 1 = right: where the nose stands from the ears, or from the shoulders."""
    if not seen[0]:
        return 1.0
    middle = joints[[3, 4]][seen[[3, 4]]].mean(axis=0) if seen[[3, 4]].any() else shoulders
    return float(np.sign((joints[0] - middle)[:2] @ _sideways(up)) or 1.0)


def _frame(across: Array, up: Array, width: float, toward: float) -> Array:
    """A frame [3,3] (left, up, front) whose left axis is seen as `across` and would be `width` long; up and across are [2]."""
    sideways, upward = np.array([*_sideways(up), 0.0]), np.array([*up, 0.0]) / max(np.linalg.norm(up), 1e-6)
    facing = np.clip(float(across @ sideways[:2]) / width, -1, 1)  # 1 = the viewer, -1 = away
    turned, depth = toward * np.sqrt(1 - facing * facing), np.array([0.0, 0.0, 1.0])
    return np.stack([facing * sideways - turned * depth, upward, facing * depth + turned * sideways], axis=1)


def _head(joints: Array, seen: NDArray[np.bool_], trunk: Array, neck: Array, half: float, toward: float) -> tuple[Array, Array]:
    """Frame and middle of the skull, `half` its half width in pixels: from the face's joints that were seen, else as the trunk stands."""
    if not seen[:5].any():
        return trunk, neck + 1.35 * half * trunk[:, 1]
    up, ears = trunk[:2, 1], seen[[3, 4]]
    if ears.all():
        return _frame((joints[3] - joints[4])[:2], up, 2 * half, toward), joints[[3, 4]].mean(axis=0)
    if seen[0]:  # no ear, or one: half or three quarters turned
        frame = _frame((0.4 if ears.any() else 0.9) * 2 * half * _sideways(up), up, 2 * half, toward)
        return frame, joints[0] - half * 1.05 * np.array([*frame[:2, 2], 0.0])
    return trunk, joints[:5][seen[:5]].mean(axis=0)
