"""Binary pose masks, from keypoints or from a skeleton picture, and their dilation as a fraction of the picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.morphology import dilation as kornia_dilation
from torch import Tensor

from .errors import PoseError
from .keypoints import MAX_SIDE, Pose
from .skeleton import HUMANSD_LIMBS, THINNEST, capsule, paint

COARSE, FINE = 23, 13  # the baseline's kernels, in pixels of a 512 px picture
LIMB_RADIUS = 5 / 512  # of the shorter side: HumanSD's lines, whose blur gives the baseline's mask
COCO_LIMBS = (*HUMANSD_LIMBS, (1, 2), (5, 6), (11, 12))  # COCO's 19: with the eyes, the shoulders and the hips joined
PICTURE_EPSILON = 1 / 512  # half a step of an 8-bit picture: rounding is not foreground


def dilation_of(size_px_at_512: float, height: int, width: int) -> int:
    """A kernel of so many pixels at 512 px, as a fraction of the shorter side -> pixels, odd, at least 3."""
    return max(3, _odd(round(size_px_at_512 * min(height, width) / 512)))


def mask_from_poses(pose: Pose, width: int, height: int, dilation: int = 0) -> Tensor:
    """One mask per person -> [P,H,W] float in {0,1}; [0,H,W] without people.

    Capsules around the limbs between visible joints, discs on visible joints and on the points of face and hands, dilated by a square
    kernel of `dilation` px (see `dilate`; 0 = 23/512 of the shorter side). Raises PoseError for an impossible size.
    """
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise PoseError(f"a mask of {width} x {height} px was asked for; each side must be 1 to {MAX_SIDE} px.")
    pose = pose.scaled(width, height)
    masks = torch.zeros(len(pose.people), height, width)
    radius = max(THINNEST, LIMB_RADIUS * min(width, height))
    for mask, person in zip(masks, pose.people):
        seen = person.body[:, 2] > 0
        for a, b in COCO_LIMBS:
            if seen[a] and seen[b]:
                paint(mask, person.body[[a, b]], radius, 1.0, capsule)
        for point in (*person.body[seen], *person.extra):
            paint(mask, point[None], radius, 1.0, capsule)
    return dilate(masks, dilation)


def mask_from_picture(image: Tensor, threshold: float, dilation: int = 0) -> Tensor:
    """Skeleton pictures [B,H,W,C] in 0..1 on black -> [B,H,W] float in {0,1}: any of R, G, B above `threshold`, then dilated.

    An alpha channel is ignored. dilation in px, see `dilate`. Raises PoseError for another shape or threshold.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise PoseError(f"a pose picture has shape {tuple(image.shape)}; expected a ComfyUI IMAGE [batch, height, width, channels].")
    if not math.isfinite(threshold):
        raise PoseError(f"the threshold is {threshold}; expected a brightness from 0 to 1.")
    return dilate((image[..., :3] > threshold + PICTURE_EPSILON).any(dim=-1).to(torch.float32), dilation)


def resize_mask(mask: Tensor, width: int, height: int) -> Tensor:
    """Binary mask [B,H,W] to another size by adaptive max pooling: a thin limb does not vanish -> [B,height,width]."""
    return mask if mask.shape[1:] == (height, width) else F.adaptive_max_pool2d(mask, (height, width))


def dilate(mask: Tensor, size: int) -> Tensor:
    """Dilation of a binary mask [B,H,W] by a square of `size` px -> [B,H,W]; each pixel grows by size // 2 to every side.

    size is odd (an even one counts as the next odd), 1 changes nothing, 0 = 23/512 of the shorter side. Raises PoseError if negative.
    The square is separable, and one mask at a time keeps the morphology's unfolded windows small.
    """
    if size < 0:
        raise PoseError(f"the dilation is {size} px; expected 0 (23/512 of the shorter side) or more.")
    size = dilation_of(COARSE, *mask.shape[1:]) if size == 0 else _odd(size)
    if size == 1 or len(mask) == 0:
        return mask
    column, row = mask.new_ones(size, 1), mask.new_ones(1, size)
    return torch.cat([kornia_dilation(kornia_dilation(one[None, None], column), row)[0] for one in mask])


def _odd(size: int) -> int:
    return size | 1
