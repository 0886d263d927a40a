"""A skeleton in three dimensions: joint angles and a build give a body, a camera turns it and puts it on the picture.

The person's own axes: x to the person's left, y up, z to the front, in statures; the picture's: x right, y down, z to the viewer, in pixels.
Facing the viewer, the person's left is the picture's right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEFT, RIGHT = 0, 1
SIDES = (1.0, -1.0)  # sign of x
CAMERA_HEIGHT = 7.0  # degrees by which the camera looks down


@dataclass(frozen=True)
class Arm:
    """Directions of upper arm and forearm in degrees: `lift` 0 = down, 90 = level, 180 = up; `round` 0 = outward, 90 = to the front,
    180 = across the body, -90 = to the back."""

    lift: float = 8
    round: float = 10
    fore_lift: float = 14
    fore_round: float = 60


@dataclass(frozen=True)
class Leg:
    """Hip: `lift` to the front (negative: back), `spread` outward, `twist` turns knee and toes outward. `bend` of the knee, 0 = straight.
    `point` stretches the foot. Degrees."""

    lift: float = 0
    spread: float = 5
    bend: float = 2
    twist: float = 10
    point: float = 0


@dataclass(frozen=True)
class Angles:
    """A pose: the trunk leans to the front, sways to the person's left, turns its shoulders left against the hips; the head likewise."""

    arms: tuple[Arm, Arm] = (Arm(), Arm())  # left, right
    legs: tuple[Leg, Leg] = (Leg(), Leg())
    lean: float = 0
    sway: float = 0
    turn: float = 0
    nod: float = 0
    tilt: float = 0
    look: float = 0

    def mirrored(self) -> Angles:
        """The pose with left and right exchanged."""
        return Angles(self.arms[::-1], self.legs[::-1], self.lean, -self.sway, -self.turn, self.nod, -self.tilt, -self.look)


@dataclass(frozen=True)
class Build:
    """Bone lengths and radii in statures: cute rather than anatomical, the head is a fifth of the height, limbs a twelfth thick."""

    head: float = 0.100  # half the head's width
    shoulders: float = 0.112  # half width, joint to joint
    hips: float = 0.062
    trunk: float = 0.295  # pelvis to the base of the neck
    upper_arm: float = 0.150
    forearm: float = 0.140
    thigh: float = 0.200
    shin: float = 0.190
    limb: float = 1.0  # factor of limb radii
    waist: float = 0.084
    pelvis: float = 0.098


@dataclass(frozen=True, eq=False)
class Body:
    """Where a body's points stand in the picture: pixels, x right, y down, z to the viewer.

    joints [17,3] in COCO order; hands, toes [2,3] (left, right): fingertips and tips of the feet; pelvis, neck, head [3] centres;
    trunk, pelvic and skull [3,3] frames whose columns point to the person's left, up and front; `stature` in pixels; `ground`: the picture's
    y of the ground under the pelvis.
    """

    joints: Array
    hands: Array
    toes: Array
    pelvis: Array
    neck: Array
    head: Array
    trunk: Array
    pelvic: Array
    skull: Array
    stature: float
    ground: float
    build: Build = field(default_factory=Build)

    def placed(self, scale: float, x: float, y: float) -> Body:
        """The body in statures (see `pose_body`) on the picture: stature of `scale` px, the ground under its pelvis at x, y."""
        move = np.array([x - scale * self.pelvis[0], y - scale * self.ground, 0.0])
        points = {name: scale * getattr(self, name) + move for name in ("joints", "hands", "toes", "pelvis", "neck", "head")}
        return Body(**points, trunk=self.trunk, pelvic=self.pelvic, skull=self.skull, stature=scale, ground=y, build=self.build)


def rotation(axis: str, degrees: float) -> Array:
    """Rotation matrix [3,3] about x, y or z, right-handed."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = c
    turn[i, j], turn[j, i] = -s, s
    return turn


def arm_direction(side: float, lift: float, around: float) -> Array:
    """The unit vector of an arm's angles, see `Arm` -> [3]."""
    lift, around = np.radians(lift), np.radians(around)
    return np.array([side * np.sin(lift) * np.cos(around), -np.cos(lift), np.sin(lift) * np.sin(around)])


def head_size(build: Build) -> Array:
    """Half width, half height and half depth of the skull [3], in statures."""
    return build.head * np.array([1.0, 1.13, 1.02])


def pose_body(build: Build, angles: Angles, yaw: float, air: float = 0.0) -> Body:
    """The body in statures, its pelvis at x = 0, turned by `yaw` degrees (0 = facing the viewer, 90 = to the picture's right, 180 = away).

    The lowest point stands on the ground, or `air` statures above it.
    """
    trunk = rotation("x", angles.lean) @ rotation("z", -angles.sway) @ rotation("y", angles.turn)
    skull = trunk @ rotation("y", angles.look) @ rotation("z", -angles.tilt) @ rotation("x", angles.nod)
    pelvis, joints, hands, toes = np.zeros(3), np.zeros((17, 3)), np.zeros((2, 3)), np.zeros((2, 3))
    neck = trunk @ (0, build.trunk, 0)
    size = head_size(build)
    head = neck + trunk @ (0, 0.025, 0.008) + skull @ (0, size[1] * 0.93, 0.012)
    face = np.array([(0, -0.13, 1.08), (0.36, 0.05, 0.90), (-0.36, 0.05, 0.90), (0.97, -0.06, 0.02), (-0.97, -0.06, 0.02)]) * size
    joints[:5] = head + face @ skull.T
    for i, side in enumerate(SIDES):
        arm, leg = angles.arms[i], angles.legs[i]
        shoulder = neck + trunk @ (side * build.shoulders, -0.042, 0)
        elbow = shoulder + build.upper_arm * trunk @ arm_direction(side, arm.lift, arm.round)
        fore = trunk @ arm_direction(side, arm.fore_lift, arm.fore_round)
        wrist = elbow + build.forearm * fore
        hands[i] = wrist + 0.04 * fore
        hip = np.array([side * build.hips, 0, 0])
        turned = rotation("x", -leg.lift) @ rotation("z", side * leg.spread) @ rotation("y", side * leg.twist)
        down, axis = turned @ (0, -1, 0), turned @ (1, 0, 0)
        knee = hip + build.thigh * down
        bend = np.radians(leg.bend)
        shin = np.cos(bend) * down + np.sin(bend) * np.cross(axis, down)
        ankle = knee + build.shin * shin
        point = np.radians(leg.point)
        toes[i] = np.cos(point) * np.cross(shin, axis) + np.sin(point) * shin  # direction; placed below
        joints[[5 + i, 7 + i, 9 + i, 11 + i, 13 + i, 15 + i]] = shoulder, elbow, wrist, hip, knee, ankle
    for i in range(2):  # a foot near the ground lies flat on it
        if joints[15 + i, 1] < joints[15:17, 1].min() + 0.06 and toes[i, 1] > -0.5 and angles.legs[i].point == 0:
            toes[i, 1] = 0
        toes[i] = joints[15 + i] + (0, -0.012, 0) + 0.078 * toes[i] / np.linalg.norm(toes[i])
    low = min(
        (joints[15:17, 1] - 0.045).min(), (toes[:, 1] - 0.033).min(), (joints[13:15, 1] - 0.047).min(), pelvis[1] - 0.095, (hands[:, 1] - 0.03).min()
    )
    ground = np.array([0, low - air, 0])
    camera = rotation("x", CAMERA_HEIGHT) @ rotation("y", yaw)
    flip = np.array([1.0, -1.0, 1.0])  # y down

    def seen(points: Array) -> Array:
        return points @ camera.T * flip

    frames = [flip[:, None] * (camera @ frame) for frame in (trunk, np.eye(3), skull)]
    return Body(
        seen(joints), seen(hands), seen(toes), seen(pelvis), seen(neck), seen(head), *frames, stature=1.0, ground=seen(ground)[1], build=build
    )
