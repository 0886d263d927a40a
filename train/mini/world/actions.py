"""What little people do: every action is a pose with jitter, and the way it stands in the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from train.mini.world.chance import Chance
from train.mini.world.kinematics import SIDES, Angles, Arm, Build, Leg, arm_direction, pose_body

View = Literal["any", "front", "side"]


@dataclass(frozen=True)
class Action:
    """angles(chance) draws a pose. `seat`: what carries the person; `air`: how far above the ground (statures); `view`: the usual yaw."""

    angles: Callable[[Chance], Angles]
    weight: float = 1.0
    seat: Literal["", "seat", "ground"] = ""
    air: float = 0.0
    view: View = "any"


def resting_arm(c: Chance) -> Arm:
    """Hangs at the side, the hand clear of the hip."""
    return Arm(c.between(9, 22), c.between(-10, 25), c.between(5, 24), c.between(20, 80))


def standing_legs(c: Chance) -> tuple[Leg, Leg]:
    """Both feet on the ground, sometimes one knee relaxed."""
    spread, relaxed = c.between(3, 9), c.between(0, 16)
    return Leg(0, spread, 1, c.between(4, 22)), Leg(relaxed * 0.6, spread + relaxed * 0.2, relaxed, c.between(4, 22))


def head(c: Chance, angles: Angles) -> Angles:
    """The head is never quite straight."""
    return replace(angles, nod=angles.nod + c.around(2, 7), tilt=angles.tilt + c.around(0, 7), look=angles.look + c.around(0, 18))


def standing(c: Chance) -> Angles:
    return Angles((resting_arm(c), resting_arm(c)), standing_legs(c), c.around(0, 3), c.around(0, 3), c.around(0, 8))


def waving(c: Chance) -> Angles:
    wave = Arm(c.between(85, 130), c.between(-5, 25), c.between(155, 178), c.pick((c.between(0, 30), c.between(150, 180))))
    return Angles((wave, resting_arm(c)), standing_legs(c), 0, c.between(-6, 2), c.around(0, 6))


def walking(c: Chance) -> Angles:
    step, swing = c.between(20, 32), c.between(18, 36)
    legs = (Leg(step, 3, c.between(2, 8), 5), Leg(-step * 0.7, 3, c.between(14, 30), 5, 18))
    arms = (Arm(swing, -80, swing * 0.5, -70), Arm(swing + 5, 75, swing + c.between(15, 40), 85))
    return Angles(arms, legs, c.between(1, 6), 0, c.between(4, 12))


def running(c: Chance) -> Angles:
    lift = c.between(48, 72)
    legs = (Leg(lift, 4, c.between(60, 95), 4, 15), Leg(c.between(-32, -16), 4, c.between(50, 85), 4, 45))
    arms = (Arm(c.between(42, 62), -72, c.between(45, 70), 70), Arm(c.between(38, 60), 68, c.between(112, 140), 100))
    return Angles(arms, legs, c.between(10, 18), 0, c.between(4, 14), -8)


def hands_in_lap(c: Chance) -> Arm:
    return Arm(c.between(22, 34), c.between(45, 70), c.between(58, 74), c.between(85, 120))


def sitting(c: Chance) -> Angles:
    lift, spread = c.between(76, 86), c.between(6, 14)
    legs = tuple(Leg(lift, spread, lift + c.between(-14, 8), c.between(2, 12)) for _ in SIDES)
    arms = (hands_in_lap(c), c.pick((hands_in_lap(c), resting_arm(c))))
    return Angles(arms, legs, c.between(-3, 8), c.around(0, 3))


def sitting_on_the_ground(c: Chance) -> Angles:
    kind = c.pick(("long", "knees", "crossed"))
    if kind == "long":
        legs = tuple(Leg(c.between(80, 86), c.between(6, 20), c.between(2, 12), 12, -8) for _ in SIDES)
        prop = Arm(c.between(26, 38), c.between(-75, -50), c.between(16, 26), -70)
        return Angles((prop, prop), legs, c.between(-16, -6))
    if kind == "knees":
        legs = tuple(Leg(c.between(126, 134), c.between(5, 12), c.between(110, 119), 4) for _ in SIDES)
        arm = Arm(c.between(44, 56), c.between(66, 80), c.between(60, 76), c.between(100, 125))
        return Angles((arm, arm), legs, c.between(2, 10))
    legs = tuple(Leg(c.between(80, 88), c.between(42, 50), c.between(122, 132), c.between(62, 72)) for _ in SIDES)
    arm = Arm(c.between(28, 38), c.between(15, 40), c.between(40, 54), c.between(80, 110))
    return Angles((arm, arm), legs, c.between(0, 6))


def jumping(c: Chance) -> Angles:
    kind = c.pick(("star", "tuck", "stride"))
    high = [Arm(c.between(120, 160), c.between(-5, 20), c.between(125, 172), c.between(0, 30)) for _ in SIDES]
    if kind == "star":
        legs = tuple(Leg(c.around(4, 6), c.between(26, 42), c.between(2, 20), 15, 40) for _ in SIDES)
    elif kind == "tuck":
        legs = tuple(Leg(c.between(36, 62), c.between(8, 18), c.between(84, 115), 10, 35) for _ in SIDES)
    else:
        legs = (Leg(c.between(45, 70), 8, c.between(20, 60), 5, 30), Leg(c.between(-40, -20), 8, c.between(20, 70), 5, 50))
    return Angles((high[0], high[1]), legs, c.around(2, 5), c.around(0, 6))


def raising_both_arms(c: Chance) -> Angles:
    lift, fore = c.between(138, 162), c.between(150, 174)
    arms = tuple(Arm(lift + c.around(0, 5), c.between(-5, 15), fore + c.around(0, 5), c.between(-10, 20)) for _ in SIDES)
    return Angles((arms[0], arms[1]), standing_legs(c), c.around(0, 3), nod=-6)


def hands_on_hips(c: Chance) -> Angles:
    arms = tuple(Arm(c.between(42, 50), c.between(-25, -8), c.between(38, 46), c.between(142, 160)) for _ in SIDES)
    return Angles((arms[0], arms[1]), standing_legs(c), c.around(-1, 3), c.around(0, 4), c.around(0, 6))


def pointing(c: Chance) -> Angles:
    lift, around = c.between(78, 104), c.pick((c.between(-5, 15), c.between(20, 60)))
    arm = Arm(lift, around, lift + c.around(0, 5), around + c.around(0, 6))
    return Angles((arm, resting_arm(c)), standing_legs(c), 0, c.around(0, 3), c.between(0, 8), look=c.between(10, 35))


def kicking(c: Chance) -> Angles:
    legs = (Leg(c.between(60, 88), c.between(0, 20), c.between(0, 16), 8, 25), Leg(c.between(-4, 4), 5, c.between(4, 14), 12))
    arms = (Arm(c.between(50, 80), c.between(-50, 0), c.between(60, 90), 0), Arm(c.between(50, 85), c.between(10, 60), c.between(70, 110), 60))
    return Angles(arms, legs, c.between(-16, -4), c.between(-8, 0), c.between(-10, 0))


def dancing(c: Chance) -> Angles:
    arms = (
        Arm(c.between(120, 160), c.between(-10, 20), c.between(150, 178), c.between(120, 180)),
        c.pick((Arm(c.between(75, 100), 0, c.between(95, 140), 10), Arm(c.between(44, 52), -15, c.between(38, 46), 155))),
    )
    legs = (Leg(c.between(0, 8), 4, c.between(0, 10), 15), Leg(c.between(8, 34), c.between(20, 36), c.between(10, 60), 30, 35))
    return Angles(arms, legs, c.around(0, 4), c.between(4, 16), c.around(0, 14), tilt=c.between(4, 14))


def kneeling(c: Chance) -> Angles:
    if c.happens(0.55):  # on one knee
        legs = (Leg(c.between(80, 90), 8, c.between(84, 94), 6), Leg(c.between(-8, 2), 6, c.between(84, 94), 2, 60))
        arms = (Arm(c.between(32, 42), c.between(60, 80), c.between(62, 76), c.between(70, 90)), resting_arm(c))
    else:
        legs = tuple(Leg(c.between(4, 22), c.between(6, 12), c.between(96, 116), 0, 60) for _ in SIDES)
        arms = (hands_in_lap(c), hands_in_lap(c))
    return Angles(arms, (legs[0], legs[1]), c.between(0, 6))


def stretching(c: Chance) -> Angles:
    over = Arm(c.between(148, 166), 0, c.between(158, 176), c.between(160, 180))
    other = c.pick((Arm(c.between(46, 52), -15, c.between(40, 46), 152), Arm(c.between(148, 166), 0, c.between(158, 176), c.between(0, 20))))
    spread = c.between(14, 24)
    return Angles((over, other), (Leg(0, spread, 1, 15), Leg(0, spread, 1, 15)), c.around(0, 3), -c.between(24, 38), 0)


def reaching_up(c: Chance) -> Angles:
    lift = c.between(162, 176)
    arm = Arm(lift, c.between(0, 60), lift + c.around(0, 4), c.between(0, 60))
    legs = (Leg(0, 4, 0, 8, 52), Leg(c.between(0, 10), 5, c.between(0, 20), 8, 56))
    return Angles((arm, resting_arm(c)), legs, c.around(0, 3), -c.between(0, 8), nod=-18, look=10)


def arms_crossed(c: Chance) -> Angles:
    left = Arm(c.between(20, 27), c.between(48, 62), c.between(82, 92), c.between(146, 153))
    right = Arm(c.between(20, 27), c.between(56, 70), c.between(90, 100), c.between(142, 150))
    return Angles((left, right), standing_legs(c), c.around(-1, 3), c.around(0, 3), c.around(0, 6))


def squatting(c: Chance) -> Angles:
    lift = c.between(84, 104)
    legs = tuple(Leg(lift, c.between(14, 24), lift + c.between(14, 26), c.between(10, 24)) for _ in SIDES)
    arm = Arm(c.between(40, 62), c.between(60, 88), c.between(70, 92), c.between(85, 115))
    return Angles((arm, arm), (legs[0], legs[1]), c.between(14, 26), nod=-12)


def balancing(c: Chance) -> Angles:
    arms = tuple(Arm(c.between(80, 104), c.around(0, 8), c.between(84, 112), c.around(0, 8)) for _ in SIDES)
    free = c.pick((Leg(c.between(50, 70), c.between(28, 40), c.between(105, 125), 35, 30), Leg(c.between(60, 85), 4, c.between(75, 100), 5, 30)))
    return Angles((arms[0], arms[1]), (free, Leg(0, -2, 0, 5)), c.around(0, 2), c.around(0, 4))


def posing(c: Chance) -> Angles:
    """A wild pose within the limits of the joints; drawn again while a hand or forearm would run through head or trunk."""
    for _ in range(24):
        arms = tuple(_wild_arm(c, side) for side in SIDES)
        angles = Angles((arms[0], arms[1]), (_wild_leg(c), _wild_leg(c)), c.between(-14, 34), c.around(0, 24), c.around(0, 28))
        if all(_is_free(angles, i) for i in range(2)):
            break
    return replace(angles, tilt=c.around(0, 14), look=c.around(0, 30))


def _wild_arm(c: Chance, side: float) -> Arm:
    lift, around, bend, roll = c.between(8, 172), c.between(-45, 105), c.between(0, 125), c.between(-40, 100)
    upper = arm_direction(side, lift, around)
    front = np.array([0, 0, 1.0]) - upper[2] * upper if abs(upper[2]) < 0.8 else np.array([0, 1.0, 0]) - upper[1] * upper
    front /= np.linalg.norm(front)
    inward = np.cross(upper, front)
    inward *= -np.sign(inward[1]) if abs(inward[1]) > 0.3 else np.sign(inward[0] or 1.0) * -side
    fold = np.cos(np.radians(roll)) * front - np.sin(np.radians(roll)) * inward
    fore = np.cos(np.radians(bend)) * upper + np.sin(np.radians(bend)) * fold
    return Arm(lift, around, float(np.degrees(np.arccos(np.clip(-fore[1], -1, 1)))), float(np.degrees(np.arctan2(fore[2], side * fore[0]))))


def _wild_leg(c: Chance) -> Leg:
    lift = c.pick((c.between(-25, 15), c.between(-10, 40), c.between(30, 95)))
    return Leg(lift, c.between(2, 34), c.between(0, 30) + c.between(0, 1) * max(lift, 20), c.between(0, 25), c.pick((0, 30)))


def _is_free(angles: Angles, i: int) -> bool:
    """Whether forearm and hand of that side stay out of the head and the trunk."""
    body = pose_body(Build(), angles, 0)
    elbow, wrist, hand = body.joints[7 + i], body.joints[9 + i], body.hands[i]
    spine = body.pelvis + np.linspace(0.1, 0.92, 5)[:, None] * (body.neck - body.pelvis)
    for point in (wrist, hand, (elbow + wrist) / 2):
        off = (point - spine) @ body.trunk  # left, up, front
        if (np.hypot(off[:, 0] / 0.13, off[:, 2] / 0.10) < 1).any() and (np.abs(off[:, 1]) < 0.06).any():
            return False
        if np.linalg.norm(point - body.head) < 0.14:
            return False
    return True


ACTIONS: dict[str, Action] = {
    "standing": Action(standing, 1.4),
    "waving": Action(waving, 1.2, view="front"),
    "walking": Action(walking, 1.2, view="side"),
    "running": Action(running, 1.1, view="side"),
    "sitting": Action(sitting, 1.1, seat="seat"),
    "sitting on the ground": Action(sitting_on_the_ground, 0.7, seat="ground"),
    "jumping": Action(jumping, 1.1, air=0.12),
    "raising both arms": Action(raising_both_arms, 1.1, view="front"),
    "hands on hips": Action(hands_on_hips, 1.1, view="front"),
    "pointing": Action(pointing, 1.0),
    "kicking": Action(kicking, 1.0, view="side"),
    "dancing": Action(dancing, 1.1, view="front"),
    "kneeling": Action(kneeling, 0.9),
    "stretching": Action(stretching, 0.8, view="front"),
    "reaching up": Action(reaching_up, 0.8),
    "arms crossed": Action(arms_crossed, 0.9, view="front"),
    "squatting": Action(squatting, 0.7),
    "balancing": Action(balancing, 0.8, view="front"),
    "posing": Action(posing, 3.2),
}


def draw_angles(action: str, chance: Chance) -> Angles:
    """A pose of that action, mirrored as often as not, the head turned a little."""
    angles = head(chance, ACTIONS[action].angles(chance))
    return angles.mirrored() if chance.happens(0.5) else angles


def draw_yaw(action: str, chance: Chance) -> float:
    """Where the person faces, in degrees (0 = the viewer, 90 = the picture's right, 180 = away), as the action is usually seen."""
    facing = chance.weighted(
        {
            "any": {"front": 40, "three-quarter": 32, "side": 16, "back": 12},
            "front": {"front": 62, "three-quarter": 25, "side": 3, "back": 10},
            "side": {"front": 14, "three-quarter": 46, "side": 34, "back": 6},
        }[ACTIONS[action].view]
    )
    low, high = {"front": (0, 25), "three-quarter": (25, 65), "side": (65, 110), "back": (140, 180)}[facing]
    return chance.between(low, high) * (1 if chance.happens(0.5) else -1)
