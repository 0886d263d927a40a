"""A scene to pixels, and whose pixels they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kbdm_core.pose_mask import mask_from_poses
from train.mini.world.chance import Chance
from train.mini.world.painting import X, Y
from train.mini.world.places import paint_place
from train.mini.world.relief import FINE, SIDE, SIZE, rasterise
from train.mini.world.scene import Scene
from train.mini.world.staging import Actor, layers
from train.mini.world.styles import STYLES, motif


def render(scene: Scene) -> NDArray[np.uint8]:
    """The picture [128,128,3]."""
    background = paint_place(scene.place, scene.time, scene.texture)
    shadow = np.zeros((SIDE, SIDE), np.float32)
    for actor in scene.actors:
        _cast_shadow(shadow, actor)
    drawn = motif(rasterise(layers(scene.actors, scene.screen)), background, shadow)
    picture = STYLES[scene.style](drawn, Chance(scene.texture))
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def mask(scene: Scene) -> Tensor:
    """The pose mask of each person, from left to right [P,128,128] float in {0,1}: see `mask_from_poses`."""
    return mask_from_poses(scene.pose, SIZE, SIZE)


def _cast_shadow(shadow: NDArray[np.float32], actor: Actor) -> None:
    """A soft ellipse on the ground under the person, 0..1, in place."""
    body = actor.body
    feet = body.joints[[11, 12, 15, 16], 0]
    x, width = float(feet.mean()), float(0.10 * body.stature + 0.6 * (feet.max() - feet.min()))
    height = 0.045 * body.stature
    y = body.ground - 0.4 * height
    top, bottom = (min(SIDE, max(0, int(FINE * (y + reach)))) for reach in (-1.4 * height, 1.4 * height + 1))
    soft = 1.3 - np.sqrt(((X - x) / width) ** 2 + ((Y[top:bottom] - y) / height) ** 2)
    np.maximum(shadow[top:bottom], np.clip(1.6 * soft, 0, 1), out=shadow[top:bottom])
