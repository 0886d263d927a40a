"""Which items are held out: decided by content, so that an item stays on its side when others come or go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split(keys: Sequence[str], held_out: float) -> tuple[Tensor, Tensor]:
    """Item numbers to train on and to hold out, by the items' content keys (64 hexadecimal digits) -> two int64 tensors.

    Equal items are on one side, and both sides have one if there are two different ones and held_out is not 0.
    """
    if not held_out:
        return torch.arange(len(keys)), torch.arange(0)
    shares = torch.tensor([int(key[:13], 16) / 16**13 for key in keys], dtype=torch.float64)
    held = shares < held_out
    if len(set(keys)) > 1:
        held |= shares == shares.min()
        held &= shares != shares.max()
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
