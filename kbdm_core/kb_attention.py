"""Port 2: attention of the UNet's own queries over the knowledge base's tokens (decoupled cross-attention)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .roles import NEGATIVE
from .sd15 import BLOCKS, Block
from .soft_mask import match_batch

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class KBProjection(nn.Module):
    """to_k, to_v [c,C] and scale of one transformer block. scale = 0 is the identity."""

    def __init__(self, token_width: int, width: int, operations: Any = nn, device=None, dtype=None):
        super().__init__()
        self.to_k = operations.Linear(token_width, width, bias=False, device=device, dtype=dtype)
        self.to_v = operations.Linear(token_width, width, bias=False, device=device, dtype=dtype)
        self.scale = nn.Parameter(torch.zeros((), device=device, dtype=dtype))


class KBAttention(nn.Module):
    """The section `kb` of an adapter: 16 projections and a position embedding of the N tokens."""

    def __init__(self, tokens: int, token_width: int, widths: tuple[int, ...], operations: Any = nn, device=None, dtype=None):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(tokens, token_width, device=device, dtype=dtype))
        self.input_blocks, self.output_blocks = nn.ModuleDict(), nn.ModuleDict()
        for block in BLOCKS:  # module names are the block names, so that state-dict keys are the file's keys
            parent, _, number = block.name.partition(".")
            projection = KBProjection(token_width, widths[block.level], operations, device, dtype)
            if number:
                getattr(self, parent)[number] = projection
            else:
                setattr(self, parent, projection)

    def block(self, block: Block) -> KBProjection:
        """The projection of one transformer block."""
        return self.get_submodule(block.name)

    def initialise(self, text_projections: Mapping[str, tuple[Tensor, Tensor]], generator: torch.Generator | None = None) -> None:
        """Copy the base's text to_k and to_v (block name -> weights) where the shapes agree; small random positions."""
        nn.init.normal_(self.position, std=0.02, generator=generator)
        with torch.no_grad():
            for block in BLOCKS:
                projection = self.block(block)
                for layer, weight in zip((projection.to_k, projection.to_v), text_projections.get(block.name, ())):
                    if layer.weight.shape == weight.shape:
                        layer.weight.copy_(weight)

    def project(self, tokens: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """tokens [T,N,C] -> keys and values [T,N,c] of one block."""
        projection = self.block(block)
        placed = tokens + self.position.to(tokens)
        return projection.to_k(placed), projection.to_v(placed)


@dataclass(frozen=True)
class KBPort:
    """KB tokens bound to a KBAttention: positive [P,N,C], negative [Q,N,C]; keys and values are made once per device and dtype."""

    attention: KBAttention
    positive: Tensor
    negative: Tensor
    strength: float
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def active_blocks(self) -> tuple[Block, ...]:
        """Blocks whose scale is not zero: the others are the identity and need no patch."""
        return tuple(block for block in BLOCKS if float(self.attention.block(block).scale.detach()) * self.strength != 0.0)

    def forget(self) -> None:
        """Drop the prepared keys and values (called when the host moves the model away)."""
        self._cache.clear()

    def rows(self, roles: tuple[str, ...], images: int, device: torch.device) -> Tensor:
        """Which token set each image of the batch attends to: index [B] into positive || negative."""
        positive = torch.arange(self.positive.shape[0], device=device)
        negative = torch.arange(self.negative.shape[0], device=device) + self.positive.shape[0]
        return torch.cat([match_batch(negative if role == NEGATIVE else positive, images) for role in roles])

    def prepared(self, block: Block, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [P+Q,N,c] of one block, made when first asked for."""
        key = (block.index, device, dtype)
        if key not in self._cache:
            tokens = torch.cat([self.positive, self.negative]).to(device=device, dtype=dtype)
            self._cache[key] = self.attention.project(tokens, block)
        return self._cache[key]

    def __call__(self, block: Block, q: Tensor, heads: int, rows: Tensor, attention: Attention) -> Tensor:
        """strength * scale * attention(q, K_kb, V_kb). q [B,n,c] -> [B,n,c]; added to the text attention before to_out."""
        k, v = (x[rows] for x in self.prepared(block, q.device, q.dtype))  # [B, N, c]
        scale = self.attention.block(block).scale.to(q) * self.strength
        return attention(q, k, v, heads) * scale
