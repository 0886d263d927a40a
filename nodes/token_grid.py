"""How a block's tokens lie in the picture: their count and the latent's size give rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from ..kbdm_core.sd15 import LEVELS, level_size

ASPECT_TOLERANCE = 1.3  # a grid whose aspect is further off than this factor is not the latent's


def token_grid(tokens: int, latent_shape: Sequence[int], block_shape: Sequence[int] | None = None) -> tuple[int, int] | None:
    """Rows and columns of a block's tokens; None if they do not form the latent's picture.

    latent_shape [b,c,h,w]: the forward's input; block_shape [b,c,h,w]: the block's own activations, which newer hosts tell.
    Otherwise the UNet's halvings are tried, then (Deep Shrink works at other sizes) the factorisation nearest in aspect.
    """
    if block_shape is not None and block_shape[-2] * block_shape[-1] == tokens:
        return block_shape[-2], block_shape[-1]
    return _from_latent(tokens, latent_shape[-2], latent_shape[-1])


@lru_cache(maxsize=256)
def _from_latent(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    for level in range(LEVELS):
        size = level_size(height, width, level)
        if size[0] * size[1] == tokens:
            return size
    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    off = {grid: abs(math.log(grid[0] / grid[1] * width / height)) for grid in grids}
    best = min(off, key=off.get)
    return best if off[best] <= math.log(ASPECT_TOLERANCE) else None
