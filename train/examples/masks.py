"""Pose pictures, and the two masks that inference derives from them, at latent resolution."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from kbdm_core.guidance import POSE_THRESHOLD
from kbdm_core.keypoints import Pose
from kbdm_core.pose_mask import COARSE, FINE, dilation_of, mask_from_picture
from kbdm_core.skeleton import render_openpose
from kbdm_core.soft_mask import pool_mask
from train.examples.buckets import LATENT_STRIDE

MASKS = "masks 1"  # part of their keys: another number when skeletons or masks come to be drawn otherwise


def pose_picture(pose: Pose) -> Tensor:
    """The OpenPose skeleton on the pose's own canvas -> [H,W,3] in 0..1."""
    return render_openpose(pose, pose.width, pose.height)


def latent_masks(pictures: Tensor) -> Tensor:
    """Coarse and fine mask of pose pictures [B,H,W,3], as `adapter_guidance` derives them, by max pooling at latent size -> [B,2,H/8,W/8] in {0,1}.

    For sides that are multiples of 64 px, pooling these on to the blocks of the UNet (a half, a quarter, an eighth of the latent) equals pooling the
    masks of full size: the windows nest. Otherwise that holds at the blocks whose sides divide those of the latent; at the others a window may
    reach up to one latent further.
    """
    height, width = pictures.shape[1:3]
    size = height // LATENT_STRIDE, width // LATENT_STRIDE
    masks = [pool_mask(mask_from_picture(pictures, POSE_THRESHOLD, dilation_of(px, height, width)), size) for px in (COARSE, FINE)]
    return torch.stack(masks, 1).unflatten(2, size)


def mask_key(pose: Pose) -> str:
    """Content key of the pose's masks on its canvas."""
    digest = hashlib.sha256(f"{MASKS} {pose.width}x{pose.height} {COARSE} {FINE}".encode())
    for person in pose.people:
        for points in (person.openpose_joints(), person.extra):
            digest.update(f" {len(points)} ".encode() + points.astype("<f8").tobytes())
    return digest.hexdigest()
