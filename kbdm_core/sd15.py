"""SD1.5's UNet as the guidance sees it: 16 transformer blocks and 4 places for residuals. The one place for their names."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = 4  # resolutions: latent / 1, 2, 4, 8
TIMESTEP_CHANNELS = 320  # width of SD1.5's sinusoidal timestep embedding


@dataclass(frozen=True)
class Block:
    """One transformer block: its row, the name in adapter files, ComfyUI's patch key, diffusers' module, its resolution level."""

    index: int
    name: str
    patch_key: tuple[str, int]
    diffusers: str
    level: int


def _blocks() -> tuple[Block, ...]:
    rows: list[tuple[str, tuple[str, int], str, int]] = []
    for level, numbers in enumerate(((1, 2), (4, 5), (7, 8))):
        for i, n in enumerate(numbers):
            rows.append((f"input_blocks.{n}", ("input", n), f"down_blocks.{level}.attentions.{i}", level))
    rows.append(("middle_block", ("middle", 0), "mid_block.attentions.0", 3))
    for up, numbers in enumerate(((3, 4, 5), (6, 7, 8), (9, 10, 11)), start=1):
        for i, n in enumerate(numbers):
            rows.append((f"output_blocks.{n}", ("output", n), f"up_blocks.{up}.attentions.{i}", 3 - up))
    return tuple(Block(index, *row) for index, row in enumerate(rows))


BLOCKS: tuple[Block, ...] = _blocks()
BLOCK_BY_PATCH_KEY: dict[tuple[str, int], Block] = {block.patch_key: block for block in BLOCKS}
BLOCK_BY_NAME: dict[str, Block] = {block.name: block for block in BLOCKS}

# Port 3: the residual of level l is added after this input block (in diffusers: down_intrablock_additional_residuals[l]).
RESIDUAL_LEVEL_BY_INPUT_BLOCK: dict[int, int] = {2: 0, 5: 1, 8: 2, 11: 3}

BASE_WIDTHS: dict[str, tuple[int, ...]] = {"sd15": (320, 640, 1280, 1280), "sd15-mini": (64, 64, 96, 96)}


def base_name(widths: tuple[int, ...]) -> str:
    """The name in adapter files of the base whose UNet has these level widths; an unknown one is named by them."""
    names = [name for name, known in BASE_WIDTHS.items() if known == tuple(widths)]
    return names[0] if names else "sd15-" + "-".join(map(str, widths))


def level_size(height: int, width: int, level: int) -> tuple[int, int]:
    """Size of a resolution level of the UNet: every downsampling halves and rounds up."""
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width
