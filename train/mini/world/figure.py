"""A body and a look become solids: head with hair and face, trunk, limbs, clothes. The same for sampled and for given poses."""

from __future__ import annotations

import numpy as np

from train.mini.world.hair import hair_solids
from train.mini.world.kinematics import LEFT, RIGHT, Array, Body, head_size
from train.mini.world.solids import Capsule, Colour, Paint, Solid
from train.mini.world.wardrobe import COLOURS, Look

HEAD, HAIR, TRUNK, SKIRT = 1, 2, 3, 4  # parts: contours stand between parts, not within one
UPPER_ARM, FOREARM, THIGH, SHIN, FOOT = 10, 12, 14, 16, 18  # + LEFT or RIGHT
FLAT = (1.0, 1.0, 0.64)  # a trunk is less deep than wide
EYE, MOUTH = (0.10, 0.08, 0.09), (0.62, 0.22, 0.22)


def figure(body: Body, look: Look) -> list[Solid]:
    """The solids of one person, in any order: nearer ones hide others by depth."""
    return [*_head(body, look), *hair_solids(body, look, HAIR), *_trunk(body, look), *_arms(body, look), *_legs(body, look)]


def _head(body: Body, look: Look) -> list[Solid]:
    size, s = head_size(body.build), body.stature
    eyes = [_unit(side * 0.40, 0.06, 0.90) for side in (1, -1)]
    mouth, beard = _unit(0, -0.48, 0.88), _unit(0, -0.75, 0.66)
    white = (0.97, 0.97, 0.97)

    def face(along: Array, local: Array) -> tuple:
        x, y, z = local
        painted = []
        if look.beard:
            painted.append(((np.einsum("i,i...->...", beard, local) > 0.72) & (y < -0.22), look.hair_colour))
        painted.append(((np.abs(x) < 0.24) & (np.abs(y - mouth[1]) < 0.075) & (z > 0), MOUTH))
        for eye in eyes:
            near = ((x - eye[0]) / 0.16) ** 2 + ((y - eye[1]) / 0.20) ** 2
            painted += [((near < 1.5) & (z > 0), white), ((near < 0.62) & (z > 0), EYE)]
        return tuple(painted)

    skull = Capsule(body.head, body.head, s * size[0], s * size[0], look.skin, HEAD, body.skull, tuple(size / size[0]), paint=face)
    nose = body.head + s * body.skull @ (size * (0, -0.14, 0.98))
    darker = tuple(0.90 * v for v in look.skin)
    ears = [Capsule(j, j, s * 0.024, s * 0.024, darker, HEAD) for j in (body.joints[3, :3], body.joints[4, :3])]
    neck = Capsule(body.neck, body.head, s * 0.040 * body.build.limb, s * 0.038 * body.build.limb, darker, HEAD)
    return [skull, Capsule(nose, nose, s * 0.021, s * 0.021, darker, HEAD), *ears, neck]


def _trunk(body: Body, look: Look) -> list[Solid]:
    b, s, top = body.build, body.stature, COLOURS[look.top_colour]
    bottom = COLOURS[look.bottom_colour] if look.bottom else top
    up = body.trunk[:, 1]
    width = b.shoulders + 0.012
    chest = body.neck - s * (width * 0.72) * up
    waist = body.pelvis + s * 0.085 * up
    front = COLOURS["white"] if look.top_colour != "white" else COLOURS["grey"]

    def jacket(along: Array, local: Array) -> tuple:
        return (((np.abs(local[0]) < 0.26) & (local[2] > 0.1), front),)

    def collar(along: Array, local: Array) -> tuple:
        return ((local[1] > 0.93, tuple(0.72 * v for v in top)),)

    paint: Paint | None = {"jacket": jacket, "sweater": collar}.get(look.top)
    hips = Capsule(waist, body.pelvis, s * b.waist, s * b.pelvis, bottom, TRUNK, body.pelvic, FLAT)
    ribs = Capsule(chest, waist, s * width, s * (b.waist + 0.007), top, TRUNK, body.trunk, FLAT, _open_end, paint)
    low = waist + 0.62 * (body.pelvis - waist)
    hem = Capsule(waist, low, s * (b.waist + 0.007), s * (b.waist + 0.62 * (b.pelvis - b.waist) + 0.009), top, TRUNK, body.pelvic, FLAT, _open_end,
                  jacket if look.top == "jacket" else None)  # fmt: skip
    solids: list[Solid] = [ribs, hem, hips]
    if look.bottom == "skirt" or look.top == "dress":
        solids += _skirt(body, bottom, 0.80 if look.bottom == "skirt" else 0.95)
    return solids


def _skirt(body: Body, colour: Colour, length: float) -> list[Solid]:
    """A cone over both thighs, and a sleeve over each, so that it covers them in every pose."""
    b, s = body.build, body.stature
    hips, knees = body.joints[[11, 12], :3], body.joints[[13, 14], :3]
    ends = hips + length * (knees - hips)
    apart = np.linalg.norm(ends[0] - ends[1]) / 2
    below = Capsule(
        body.pelvis, ends.mean(axis=0), s * b.pelvis, max(s * 0.105, min(apart, s * 0.16)), colour, SKIRT, body.pelvic, (1, 1, 0.8), _open_end
    )
    sleeves = [Capsule(hip, end, s * 0.074, s * 0.084, colour, SKIRT, keep=_open_end) for hip, end in zip(hips, ends)]
    return [below, *sleeves]


def _open_end(along: Array, local: Array) -> Array:
    return along < 0.995


def _arms(body: Body, look: Look) -> list[Solid]:
    s, k, top = body.stature, body.stature * body.build.limb, COLOURS[look.top_colour]
    short = look.top in ("t-shirt", "dress")
    solids: list[Solid] = []
    for i in (LEFT, RIGHT):
        shoulder, elbow, wrist = body.joints[[5 + i, 7 + i, 9 + i], :3]
        upper, fore = (look.skin, look.skin) if short else (top, top)
        if look.top == "dress":  # only a strap's width of sleeve
            sleeve = Capsule(shoulder, shoulder + 0.25 * (elbow - shoulder), k * 0.052, k * 0.049, top, UPPER_ARM + i)
        else:
            sleeve = Capsule(shoulder, shoulder + 0.62 * (elbow - shoulder), k * 0.052, k * 0.053, top, UPPER_ARM + i, keep=_open_end)
        solids.append(Capsule(shoulder, elbow, k * 0.047, k * 0.041, upper, UPPER_ARM + i))
        if short:
            solids.append(sleeve)
        thick = 0.040 if short else 0.044
        solids.append(Capsule(elbow, wrist, k * thick, k * (thick - 0.004), fore, FOREARM + i))
        solids.append(Capsule(wrist, wrist + 0.8 * (body.hands[i] - wrist), s * 0.039, s * 0.038, look.skin, FOREARM + i))
    return solids


def _legs(body: Body, look: Look) -> list[Solid]:
    s, k = body.stature, body.stature * body.build.limb
    bare = look.bottom != "trousers"
    colour = look.skin if bare else COLOURS[look.bottom_colour]
    thick = 0.049 if bare else 0.053
    solids: list[Solid] = []
    for i in (LEFT, RIGHT):
        hip, knee, ankle = body.joints[[11 + i, 13 + i, 15 + i], :3]
        solids.append(Capsule(hip, knee, k * 0.062, k * thick, colour, THIGH + i))
        if look.bottom == "shorts":
            leg = Capsule(hip, hip + 0.72 * (knee - hip), k * 0.067, k * 0.071, COLOURS[look.bottom_colour], THIGH + i, keep=_open_end)
            solids.append(leg)
        solids.append(Capsule(knee, ankle, k * thick, k * (thick - 0.008), colour, SHIN + i))
        heel = ankle + 0.1 * (ankle - body.toes[i])
        solids.append(Capsule(heel, body.toes[i], s * 0.043, s * 0.037, look.shoes, FOOT + i))
    return solids


def _unit(x: float, y: float, z: float) -> Array:
    return np.array([x, y, z]) / np.sqrt(x * x + y * y + z * z)
