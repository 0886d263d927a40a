"""Augmentation as numbered variants of a picture, so that their latents can be kept: a variant is always the same picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from PIL import Image, ImageEnhance

from kbdm_core.keypoints import Pose
from train.examples.buckets import Bucket
from train.examples.placement import Placement, placement
from train.run.order import generator

CENTRED = 2  # variants 0 and 1; the others are drawn


@dataclass(frozen=True)
class AugmentTable:
    """[augment]: in how many variants each picture is learnt. Their latents are kept, so that each costs disk, and time once."""

    variants: Annotated[int, Ge(1)] = 2
    """1: cropped in the middle; 2: and its mirror image, left and right joints exchanged; more: crops, turns and colours drawn at random."""
    zoom: Annotated[float, Interval(ge=1, le=2)] = 1.25
    """A drawn variant is scaled by up to this times what covers the bucket."""
    rotation: Annotated[float, Interval(ge=0, le=45)] = 5.0
    """A drawn variant is turned by up to so many degrees either way."""
    colour: Annotated[float, Interval(ge=0, le=0.5)] = 0.1
    """Brightness, contrast and saturation of a drawn variant change by up to this share. Captions tell colours: keep it small."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One variant of one picture: where it lies, and its brightness, contrast and saturation as factors."""

    placement: Placement
    colours: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def picture(self, picture: Image.Image) -> Image.Image:
        """The picture (RGB) as this variant, of the bucket's size."""
        placed = self.placement.picture(picture)
        for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), self.colours):
            placed = placed if factor == 1 else enhance(placed).enhance(factor)
        return placed

    def pose(self, pose: Pose) -> Pose:
        """The pose on this variant, see `Placement.pose`."""
        return self.placement.pose(pose)


def variant(table: AugmentTable, key: str, number: int, size: tuple[int, int], bucket: Bucket) -> Variant:
    """Variant `number` of the picture of that content key (64 hexadecimal digits) and size (width, height), for a bucket.

    0: covers the bucket, cropped in the middle; 1: its mirror image; the others are drawn, by key and number alone.
    """
    if number < CENTRED:
        return Variant(placement(size, bucket, mirror=number == 1))
    draws = torch.rand(8, generator=generator(int(key[:15], 16), number), dtype=torch.float64).tolist()
    zoom, angle = 1 + (table.zoom - 1) * draws[0], table.rotation * (2 * draws[1] - 1)
    colours = tuple(1 + table.colour * (2 * draw - 1) for draw in draws[5:])
    return Variant(placement(size, bucket, draws[2] < 0.5, zoom, angle, (draws[3], draws[4])), colours)


def settings(table: AugmentTable, number: int) -> str:
    """What decides variant `number` besides picture and bucket, for content keys: other settings leave variants 0 and 1 as they are."""
    return str(number) if number < CENTRED else f"{number} {table.zoom} {table.rotation} {table.colour}"
