"""Port 1: the soft mask of every block for one forward, from a mask, a gate and a blend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention import AXES
from .errors import KBDMError
from .sd15 import BLOCK_BY_PATCH_KEY
from .soft_mask import BACKGROUNDS, blend, match_batch, pool_mask, soft_mask

BLOCK_GROUPS = ("input", "middle", "output")


@dataclass(frozen=True)
class DynamicMask:
    """A pose mask that steers self-attention (Eq. 9-11).

    mask [M,H,W] in {0,1}; gate: timestep [I] -> g [I,G]; blend [G]. G = 16, one column per transformer block of SD1.5
    (a trained gate), or 1, one column for all blocks of any UNet (a schedule, or the paper's literal gate).
    """

    mask: Tensor
    gate: Callable[[Tensor], Tensor]
    blend: Tensor
    background: str = "zero"
    axis: str = "key"
    groups: tuple[str, ...] = BLOCK_GROUPS
    _pooled: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mask.ndim != 3:
            raise KBDMError(f"The mask has shape {list(self.mask.shape)}; a MASK of shape [batch, height, width] is needed.")
        for name, value, known in (("background", self.background, BACKGROUNDS), ("axis", self.axis, AXES)):
            if value not in known:
                raise KBDMError(f"Unknown {name} '{value}': expected one of {', '.join(known)}.")

    def column(self, block: tuple[str, int]) -> int | None:
        """Which column of gate and blend steers this block (ComfyUI's patch key); None = the block is left alone."""
        if block[0] not in self.groups:
            return None
        if self.blend.shape[0] == 1:
            return 0
        known = BLOCK_BY_PATCH_KEY.get(block)
        return known.index if known else None

    def forget(self) -> None:
        """Drop the pooled masks of other sizes and devices (called when the host moves the model away)."""
        self._pooled.clear()

    def at(self, timestep: Tensor) -> MaskStep:
        """Resolve the gate for one forward. timestep [I]."""
        return MaskStep(self, self.gate(timestep))

    def _tokens(self, size: tuple[int, int], images: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mask as tokens [I,N] and whether the image has any foreground [I,1]; pooled once per size."""
        key = (size, images, device)
        if key not in self._pooled:
            pooled = match_batch(pool_mask(self.mask.to(device), size), images)
            self._pooled[key] = pooled, pooled.amax(dim=1, keepdim=True) > 0
        return self._pooled[key]


@dataclass(frozen=True)
class MaskStep:
    """A DynamicMask at one timestep: its gate [I,G] is known, the token grid of each block is not yet."""

    dynamic_mask: DynamicMask
    gate: Tensor

    def soft(self, block: tuple[str, int], size: tuple[int, int], images: int) -> Tensor | None:
        """Blended soft mask m~' [I,N] of a block of h x w tokens; exactly 1 for an image whose mask is empty; None = block left alone."""
        source = self.dynamic_mask
        column = source.column(block)
        if column is None:
            return None
        tokens, has_pose = source._tokens(size, images, self.gate.device)
        gate_column = 0 if self.gate.shape[1] == 1 else column
        g = match_batch(self.gate[:, gate_column : gate_column + 1], images)  # [I, 1]
        amount = source.blend[column].to(tokens.device)
        blended = blend(soft_mask(tokens, g, source.background), amount)  # [I, N]
        return torch.where(has_pose, blended, torch.ones_like(blended))
