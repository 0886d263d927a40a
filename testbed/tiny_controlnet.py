"""A small ControlNet in its original layout, random weights, for the base of testbed.tiny_base."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor

from testbed.random_weights import randomise
from testbed.tiny_base import TEXT_WIDTH, WIDTHS
from train.mini.ldm_layout import ldm_unet

HINTS = (16, 32, 96, 256)


def write_tiny_controlnet(path: Path, widths: tuple[int, ...] = WIDTHS) -> Path:
    """The file, in float16 as such files are."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": widths, "cross_attention_dim": TEXT_WIDTH, "conditioning_embedding_out_channels": HINTS}
    model = ControlNetModel(**sizes, attention_head_dim=8)
    randomise(model, 5)
    state = model.state_dict()
    own = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
    tensors: dict[str, Tensor] = ldm_unet({key: value for key, value in state.items() if not key.startswith(own)})
    for kind in ("weight", "bias"):
        embedding = "controlnet_cond_embedding"
        tensors[f"input_hint_block.0.{kind}"] = state[f"{embedding}.conv_in.{kind}"]
        for number in range(6):
            tensors[f"input_hint_block.{2 * number + 2}.{kind}"] = state[f"{embedding}.blocks.{number}.{kind}"]
        tensors[f"input_hint_block.14.{kind}"] = state[f"{embedding}.conv_out.{kind}"]
        for number in range(12):
            tensors[f"zero_convs.{number}.0.{kind}"] = state[f"controlnet_down_blocks.{number}.{kind}"]
        tensors[f"middle_block_out.0.{kind}"] = state[f"controlnet_mid_block.{kind}"]
    save_file({f"control_model.{key}": value.half().contiguous() for key, value in tensors.items()}, path)
    return path
