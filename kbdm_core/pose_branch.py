"""Port 3: the pose branch. A small ViT over pose picture and noisy latent gives one residual per resolution level of the UNet."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, union_attention
from .gate import TimestepGate, timestep_embedding
from .sd15 import LEVELS, TIMESTEP_CHANNELS, level_size
from .soft_mask import match_batch, pool_mask, soft_mask

LATENT_STRIDE = 8  # pixels per latent cell
TOKEN_LEVEL = 1  # the ViT works at half the latent resolution
VIT_LAYERS = 2  # one with the coarse mask, one with the fine one
HEAD_WIDTH = 64
CACHED_SIZES = 4  # picture features are kept for so many latent sizes (a tiled pass has a few)


class PoseStem(nn.Module):
    """Pose picture [I,3,8h,8w] -> four feature maps at latent / 1, 2, 4, 8. Depends on the picture only: once per run."""

    def __init__(self, widths: tuple[int, ...], operations: Any, **kw):
        super().__init__()
        self.conv_in = operations.Conv2d(3 * LATENT_STRIDE**2, widths[0], 3, padding=1, **kw)
        self.conv = operations.Conv2d(widths[0], widths[0], 3, padding=1, **kw)
        self.down = nn.ModuleList(operations.Conv2d(a, b, 3, stride=2, padding=1, **kw) for a, b in pairwise(widths))

    def forward(self, picture: Tensor) -> list[Tensor]:
        x = F.silu(self.conv_in(F.pixel_unshuffle(picture, LATENT_STRIDE)))
        levels = [F.silu(self.conv(x))]
        for down in self.down:
            levels.append(F.silu(down(levels[-1])))
        return levels


class MaskedViTLayer(nn.Module):
    """Pre-norm transformer layer whose attention carries the soft mask of Eq. 11. tokens [I,N,d] -> [I,N,d]."""

    def __init__(self, width: int, operations: Any, **kw):
        super().__init__()
        self.norm1 = operations.LayerNorm(width, **kw)
        self.to_q = operations.Linear(width, width, bias=False, **kw)
        self.to_k = operations.Linear(width, width, bias=False, **kw)
        self.to_v = operations.Linear(width, width, bias=False, **kw)
        self.to_out = operations.Linear(width, width, **kw)
        self.norm2 = operations.LayerNorm(width, **kw)
        self.mlp_in = operations.Linear(width, 4 * width, **kw)
        self.mlp_out = operations.Linear(4 * width, width, **kw)
        self.heads = max(1, width // HEAD_WIDTH)

    def forward(self, x: Tensor, mask: Tensor, has_pose: Tensor, gate: Tensor, axis: str, background: str) -> Tensor:
        n = self.norm1(x)
        q, k, v = self.to_q(n), self.to_k(n), self.to_v(n)
        gate, mask = torch.where(has_pose, gate, 0.0), torch.where(has_pose, mask, 1.0)  # an empty mask: m~ = 1
        if axis == "union":
            attended = union_attention(q, k, v, self.heads, mask, gate, background)
        else:
            attended = attend(q, k * soft_mask(mask, gate, background)[..., None].to(k.dtype), v, self.heads)
        x = x + self.to_out(attended)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x))))


class PoseBranch(nn.Module):
    """The section `pose` of an adapter. Its output convolutions start at zero, which is the identity.

    unet_widths: widths of the UNet's four levels (also of its block-0 features); width: of the ViT; stem_widths: four.
    """

    def __init__(self, unet_widths: tuple[int, ...], width: int, stem_widths: tuple[int, ...], operations: Any = nn, device=None, dtype=None):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        self.stem = PoseStem(stem_widths, operations, **kw)
        self.features_in = operations.Conv2d(unet_widths[0], width, 3, stride=2, padding=1, **kw)
        self.stem_in = operations.Conv2d(stem_widths[TOKEN_LEVEL], width, 1, **kw)
        self.time_in = operations.Linear(TIMESTEP_CHANNELS, width, **kw)
        self.time_out = operations.Linear(width, width, **kw)
        self.gate = TimestepGate(VIT_LAYERS, operations=operations, **kw)
        self.layers = nn.ModuleList(MaskedViTLayer(width, operations, **kw) for _ in range(VIT_LAYERS))
        self.norm = operations.LayerNorm(width, **kw)
        self.level_in = nn.ModuleList(operations.Conv2d(width, c, 1, **kw) for c in unet_widths)
        self.level_stem = nn.ModuleList(operations.Conv2d(s, c, 1, **kw) for s, c in zip(stem_widths, unet_widths))
        self.level_out = nn.ModuleList(operations.Conv2d(c, c, 1, **kw) for c in unet_widths)

    def initialise(self) -> None:
        """Zero convolutions at the four outputs: a fresh branch is the identity."""
        for conv in self.level_out:
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def picture_features(self, picture: Tensor) -> PictureFeatures:
        """All that depends on the pose picture alone. picture [I,3,8h,8w] in 0..1 -> features for a latent of h x w."""
        levels = self.stem(picture)
        return PictureFeatures(self.stem_in(levels[TOKEN_LEVEL]), [conv(level) for conv, level in zip(self.level_stem, levels)])

    def forward(
        self, features: Tensor, timestep: Tensor, picture: PictureFeatures, masks: list[tuple[Tensor, Tensor]], axis: str, background: str
    ) -> list[Tensor]:
        """Residuals of the four levels.

        features [I,c0,h,w] = the UNet's block-0 features of the noisy latent; timestep [I]; masks: (tokens [I,N], has_pose [I,1])
        for the coarse and the fine layer -> four maps [I,c_l,h_l,w_l].
        """
        x = self.features_in(features) + picture.tokens  # [I, d, h/2, w/2]
        grid = x.shape[-2:]
        t = self.time_out(F.silu(self.time_in(timestep_embedding(timestep).to(x.dtype))))  # [I, d]
        x = x.flatten(2).transpose(1, 2) + t[:, None] + position_embedding(grid, x.shape[1], x.device).to(x.dtype)  # [I, N, d]
        gates = self.gate(timestep)  # [I, layers]
        for i, (layer, (mask, has_pose)) in enumerate(zip(self.layers, masks)):
            x = layer(x, mask, has_pose, gates[:, i : i + 1], axis, background)
        x = self.norm(x).transpose(1, 2).unflatten(2, grid)  # [I, d, h/2, w/2]
        residuals = []
        for level in range(LEVELS):
            size = level_size(*features.shape[-2:], level)
            h = x if level <= TOKEN_LEVEL else F.adaptive_avg_pool2d(x, size)
            h = self.level_in[level](h)
            h = h if h.shape[-2:] == size else F.interpolate(h, size, mode="bilinear")
            residuals.append(self.level_out[level](F.silu(h + picture.levels[level])))
        return residuals


@dataclass(frozen=True)
class PictureFeatures:
    """What the branch knows of the pose picture: token map [I,d,h/2,w/2] and one map [I,c_l,h_l,w_l] per level."""

    tokens: Tensor
    levels: list[Tensor]


def position_embedding(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """2D sinusoidal positions in picture coordinates (0..1 on both axes, so any size fits) -> [h*w,width]."""
    quarter = width // 4
    frequencies = math.pi * torch.exp2(torch.linspace(0.0, 6.0, quarter, device=device))  # [width/4]
    axes = [((torch.arange(n, device=device) + 0.5) / n)[:, None] * frequencies for n in grid]  # [h, width/4], [w, width/4]
    y, x = axes[0][:, None].expand(*grid, quarter), axes[1][None].expand(*grid, quarter)
    embedding = torch.cat([y.cos(), y.sin(), x.cos(), x.sin()], dim=-1).flatten(0, 1)
    return F.pad(embedding, (0, width - embedding.shape[-1]))


@dataclass(frozen=True)
class PosePort:
    """A pose picture [P,H,W,3] and its masks (coarse, fine) [P,H,W] bound to a PoseBranch."""

    branch: PoseBranch
    picture: Tensor
    masks: tuple[Tensor, Tensor]
    strength: float
    axis: str = "union"
    background: str = "zero"
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def forget(self) -> None:
        """Drop the prepared picture features (called when the host moves the model away)."""
        self._cache.clear()

    def __call__(self, features: Tensor, timestep: Tensor, shares: tuple[float, ...]) -> list[Tensor] | None:
        """share * strength * residuals; None where all shares are 0.

        features [B,c0,h,w] with B = len(shares) * images: one share per chunk of the batch. Chunks with the same latent share one pass.
        """
        strengths = [self.strength * share for share in shares]
        images = features.shape[0] // len(shares)
        chunks = features.split(images)
        first_equal = [next(j for j in range(i + 1) if j == i or torch.equal(chunks[j], chunks[i])) for i in range(len(chunks))]
        distinct = sorted({i for i, strength in zip(first_equal, strengths) if strength != 0})
        if not distinct:
            return None
        timestep = match_batch(timestep, images)
        picture, masks = self._prepared(features, images)
        per_chunk = {
            i: self.branch(chunks[i], timestep, picture, masks, self.axis, self.background) for i in distinct
        }
        some = per_chunk[distinct[0]]
        return [
            torch.cat([per_chunk[i][level] * s if s != 0 else torch.zeros_like(some[level]) for i, s in zip(first_equal, strengths)])
            for level in range(LEVELS)
        ]

    def _prepared(self, features: Tensor, images: int) -> tuple[PictureFeatures, list[tuple[Tensor, Tensor]]]:
        """Picture features and pooled masks for this size, made once per size, device and dtype."""
        size = tuple(features.shape[-2:])
        key = (size, images, features.device, features.dtype)
        if key not in self._cache:
            if len(self._cache) >= CACHED_SIZES:
                self._cache.clear()
            picture = match_batch(self.picture, images).movedim(-1, 1).float()
            picture = F.interpolate(picture, [side * LATENT_STRIDE for side in size], mode="bilinear", antialias=True)
            grid = level_size(*size, TOKEN_LEVEL)
            pooled = [match_batch(pool_mask(mask.to(features.device), grid), images) for mask in self.masks]
            masks = [(m, m.amax(dim=1, keepdim=True) > 0) for m in pooled]
            self._cache[key] = self.branch.picture_features(picture.to(features)), masks
        return self._cache[key]
