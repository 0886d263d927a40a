"""Soft mask m~ (Eq. 10), its blend towards the unpatched model, and the way a mask meets a block of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUNDS = ("neutral", "zero")


def soft_mask(mask: Tensor, gate: Tensor, background: str = "zero") -> Tensor:
    """Soft mask per token. mask [B,N] in {0,1}, gate [B,1] or [B,N] -> [B,N].

    `zero`: m~ = (1+g) m, Eq. 10 (a background key gets logit 0, which is not exclusion: e^0 = 1).
    `neutral`: m~ = 1 + g m (a background key keeps its logit).
    """
    return (1.0 + gate) * mask if background == "zero" else 1.0 + gate * mask


def blend(soft: Tensor, amount: Tensor | float) -> Tensor:
    """m~' = 1 + amount (m~ - 1): 0 is the unpatched model, 1 is the paper. Not clamped (a clamp has no gradient at 0)."""
    return 1.0 + amount * (soft - 1.0)


def pool_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Binary mask [B,H,W] of any size to a block of h x w tokens by adaptive max pooling (a thin limb must not vanish) -> [B,h*w]."""
    return F.adaptive_max_pool2d((mask > 0.5).to(torch.float32)[:, None], size).flatten(1)


def match_batch(values: Tensor, batch: int) -> Tensor:
    """Repeat (cyclically) or trim along the first axis to `batch`, as ComfyUI does with masks."""
    if values.shape[0] == batch:
        return values
    repeats = -(-batch // values.shape[0])
    return values.repeat(repeats, *[1] * (values.ndim - 1))[:batch]
