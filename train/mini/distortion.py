"""Pictures as an estimator may meet them: moved, mirrored, blurred, noisy and off-colour, with joints that move along."""

from __future__ import annotations

import torch
from kornia.enhance import adjust_brightness, adjust_contrast_with_mean_subtraction, adjust_saturation_with_gray_subtraction
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor, nn

MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)  # COCO-17 with left and right exchanged
SHIFT, TURN, SCALE = 6.0, 6.0, (0.88, 1.12)  # px and degrees at most, and factors
BLURRED, BLUR, KERNEL = 0.6, (0.4, 1.8), 9  # share of the pictures, standard deviation in px, size of the filter
BRIGHTNESS, CONTRAST, SATURATION, TINT = 0.12, (0.75, 1.25), (0.6, 1.4), 0.08
GRAIN, BLOTCHES, BLOTCH = 0.06, 0.06, 8  # standard deviations at most; px of a blotch: what a decoder makes of a wrong latent


def distorted(pictures: Tensor, joints: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every picture in its own way. pictures [B,3,H,W] in -1..1, joints [B,P,17,3] -> the same, distorted; joints off the picture are unseen."""
    height, width = pictures.shape[-2:]
    matrices, mirrored = placements(len(pictures), height, width, random)
    moved = warp_affine((pictures + 1) / 2, matrices[:, :2], (height, width), padding_mode="border")
    return 2 * discoloured(moved, random) - 1, moved_joints(joints, matrices, mirrored, height, width)


def placements(count: int, height: int, width: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Matrices [n,3,3] from pixels to pixels: shift, turn, scale, and mirroring where that [n] is true."""
    shift = _between(-SHIFT, SHIFT, (count, 2), random)
    scale = _between(*SCALE, (count, 1), random).expand(-1, 2)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2]).expand(count, 2)
    matrices = get_affine_matrix2d(shift, centre, scale, _between(-TURN, TURN, (count,), random))
    mirrored = torch.rand(count, generator=random) < 0.5
    mirror = torch.tensor([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    return torch.where(mirrored[:, None, None], mirror @ matrices, matrices), mirrored


def moved_joints(joints: Tensor, matrices: Tensor, mirrored: Tensor, height: int, width: int) -> Tensor:
    """Joints [B,P,17,3] by matrices [B,3,3]; where `mirrored` [B], left and right are exchanged."""
    joints = torch.where(mirrored[:, None, None, None], joints[:, :, MIRRORED], joints)
    xy = joints[..., :2] @ matrices[:, None, :2, :2].mT + matrices[:, None, None, :2, 2]
    inside = ((xy >= 0) & (xy <= torch.tensor([width - 1, height - 1]))).all(-1) & (joints[..., 2] > 0)
    return torch.cat([xy, joints[..., 2:]], -1) * inside[..., None]


def discoloured(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Colours, blur and noise. pictures [B,3,H,W] in 0..1 -> the same."""
    count, _, height, width = pictures.shape
    x = adjust_brightness(pictures, _between(-BRIGHTNESS, BRIGHTNESS, (count,), random))
    x = adjust_contrast_with_mean_subtraction(x, _between(*CONTRAST, (count,), random))
    x = adjust_saturation_with_gray_subtraction(x, _between(*SATURATION, (count,), random))
    x = x * _between(1 - TINT, 1 + TINT, (count, 3, 1, 1), random)
    sigma = _between(*BLUR, (count, 1), random).expand(-1, 2)
    blurred = torch.rand(count, generator=random) < BLURRED
    x = torch.where(blurred[:, None, None, None], gaussian_blur2d(x, KERNEL, sigma), x)
    grain = torch.randn(x.shape, generator=random) * _between(0, GRAIN, (count, 1, 1, 1), random)
    small = torch.randn(count, 3, height // BLOTCH, width // BLOTCH, generator=random) * _between(0, BLOTCHES, (count, 1, 1, 1), random)
    blotches = nn.functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    return (x + grain + blotches).clamp(0, 1)


def _between(low: float, high: float, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=random)
