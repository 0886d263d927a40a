"""The guidance: what an adapter (or a training-free mask) says to the three ports of the UNet in one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import KBDMAdapter
from .attention import attend, scale_tokens
from .dynamic_mask import DynamicMask, MaskStep
from .kb_attention import Attention, KBPort
from .pose_branch import PosePort
from .pose_mask import COARSE, FINE, dilation_of, mask_from_picture
from .roles import NEGATIVE
from .sd15 import Block
from .soft_mask import blend

POSE_THRESHOLD = 0.0  # a pose picture's background is black


@dataclass(frozen=True)
class Guidance:
    """Three optional ports: key scale (`mask`), extra attention (`kb`), residual (`pose`). Built once, never changed.

    negative_share: how much of them negative prompts get. 1 = as much as positive ones, as in training; 0 = nothing: then classifier-free
    guidance, which moves from the prediction for the negative prompt towards that for the positive one, moves towards the pose, too.
    """

    mask: DynamicMask | None = None
    kb: KBPort | None = None
    pose: PosePort | None = None
    negative_share: float = 1.0

    def begin(self, timestep: Tensor, roles: tuple[str, ...], images: int, features: Tensor | None = None) -> Ports:
        """Resolve everything that one forward needs.

        timestep [I] integer timesteps (as the UNet sees them); roles: "positive" or "negative" per chunk of the batch;
        images: I per chunk (batch = len(roles) * I); features [B,c0,h,w]: the UNet's block-0 features (for the pose port).
        """
        shares = tuple(self.negative_share if role == NEGATIVE else 1.0 for role in roles)
        return Ports(
            shares,
            images,
            self.mask.at(timestep) if self.mask else None,
            self.kb,
            self.kb.rows(roles, images, timestep.device) if self.kb else None,
            self.pose(features, timestep, shares) if self.pose and features is not None else None,
        )

    def forget(self) -> None:
        """Drop all prepared tensors (keys, values, features, pooled masks); they are made again when needed."""
        for port in (self.mask, self.kb, self.pose):
            if port is not None:
                port.forget()


@dataclass(frozen=True)
class Ports:
    """The values of the three ports during one forward of len(shares) chunks of `images` pictures; each chunk gets its share of them."""

    shares: tuple[float, ...]
    images: int
    mask: MaskStep | None
    kb: KBPort | None
    rows: Tensor | None
    residuals: list[Tensor] | None

    @property
    def batch(self) -> int:
        """Pictures in all chunks together: B."""
        return len(self.shares) * self.images

    def scale_tokens(self, block: tuple[str, int], q: Tensor, k: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Port 1: query and key input [B,h*w,c] of self-attention such that its logits are those of Eq. 11."""
        soft = self.mask.soft(block, size, self.images) if self.mask else None
        if soft is None:
            return q, k
        shared = torch.cat([soft if share == 1 else blend(soft, share) for share in self.shares])  # [B, N]
        return scale_tokens(q, k, shared, self.mask.dynamic_mask.axis)

    def extra_attention(self, block: Block, q: Tensor, heads: int, attention: Attention = attend) -> Tensor:
        """Port 2: what is added to the text attention's output. q [B,n,c] -> [B,n,c]."""
        out = self.kb(block, q, heads, self.rows, attention)
        if any(share != 1 for share in self.shares):
            out = out * torch.tensor(self.shares).to(out).repeat_interleave(self.images)[:, None, None]
        return out

    def residual(self, level: int) -> Tensor | None:
        """Port 3: what is added to the feature map of a level [B,c_l,h_l,w_l]; None without a pose."""
        return self.residuals[level] if self.residuals is not None else None


def adapter_guidance(
    adapter: KBDMAdapter,
    kb_tokens: tuple[Tensor, Tensor] | None = None,
    pose_image: Tensor | None = None,
    mask: Tensor | None = None,
    kb_strength: float = 1.0,
    dm_strength: float = 1.0,
    pose_strength: float = 1.0,
    pose_masks: tuple[Tensor, Tensor] | None = None,
    negative_strength: float = 1.0,
) -> Guidance:
    """Bind an adapter to its inputs. A section whose input is missing, whose strength is 0, or that the adapter lacks, is off.

    kb_tokens: (positive [P,N,C], negative [Q,N,C]); pose_image [P,H,W,3] in 0..1; mask [M,H,W]. Without a mask, `dm` uses the
    fine mask derived from the pose picture. The strengths multiply the sections' scale, blend and residuals. pose_masks: the coarse and
    the fine mask [P,h,w], where they have been derived from the pose picture before. negative_strength: the negative prompt's
    share of all of them, see `Guidance`.
    """
    sections, options = adapter.sections, adapter.options
    coarse, fine = pose_masks or (None, None)
    if pose_image is not None and pose_masks is None:
        coarse, fine = (mask_from_picture(pose_image, POSE_THRESHOLD, dilation_of(px, *pose_image.shape[1:3])) for px in (COARSE, FINE))
    use = mask if mask is not None else fine
    dynamic_mask = kb = pose = None
    if "dm" in sections and use is not None and dm_strength != 0:
        dynamic_mask = DynamicMask(use, adapter.dm.gate, adapter.dm.blend.float() * dm_strength, options.dm_background, options.dm_axis)
    if "kb" in sections and kb_tokens is not None and kb_strength != 0:
        kb = KBPort(adapter.kb, *kb_tokens, kb_strength)
    if "pose" in sections and pose_image is not None and pose_strength != 0:
        pose = PosePort(adapter.pose, pose_image, (coarse, fine), pose_strength, options.pose_axis, options.pose_background)
    return Guidance(dynamic_mask, kb, pose, negative_strength)
