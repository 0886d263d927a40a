"""Diffusers' names of an SD1.5-like UNet and autoencoder, turned into those of the original (LDM) checkpoints, which every SD host reads.

diffusers ships the way back alone: convert_ldm_unet_checkpoint and convert_ldm_vae_checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AUTOENCODER_ENDS = {
    **{name: name for name in ("quant_conv", "post_quant_conv", "encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")},
    "encoder.conv_norm_out": "encoder.norm_out",
    "decoder.conv_norm_out": "decoder.norm_out",
}
AUTOENCODER_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
AUTOENCODER_SAMPLERS = {"downsamplers.0.conv": "downsample.conv", "upsamplers.0.conv": "upsample.conv"}
AUTOENCODER_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def ldm_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of diffusers' UNet2DConditionModel under LDM's names, tensors unchanged. Levels and layers are counted in the keys.

    Raises ValueError for a part that SD1.5's UNet does not have.
    """
    layers = _count(state, r"down_blocks\.0\.resnets\.(\d+)\.")

    def place(name: str) -> str:
        if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
            number = 2 * int(found[2])
            return f"middle_block.{number}.{UNET_RESNET[found[3]]}" if found[1] == "resnets" else f"middle_block.{number + 1}.{found[3]}"
        if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
            number = int(found[2]) * (layers + 1) + int(found[4])
            block = f"input_blocks.{number + 1}" if found[1] == "down" else f"output_blocks.{number}"
            return f"{block}.0.{UNET_RESNET[found[5]]}" if found[3] == "resnets" else f"{block}.1.{found[5]}"
        if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
            return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op"
        if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", name):
            attends = any(key.startswith(f"up_blocks.{found[1]}.attentions.") for key in state)
            return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.{1 + attends}.conv"  # after resnet and attention, if there is one
        return UNET_ENDS[name]

    return _renamed(state, place)


def ldm_autoencoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of diffusers' AutoencoderKL under LDM's names, where the decoder's levels are numbered from the fine one.

    The projections of its attentions [c,c] are 1 x 1 convolutions [c,c,1,1] there; all else is unchanged.
    Raises ValueError for a part that SD1.5's autoencoder does not have.
    """
    levels = _count(state, r"decoder\.up_blocks\.(\d+)\.")

    def place(name: str) -> str:
        if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)", name):
            return f"{found[1]}.mid.block_{int(found[2]) + 1}.{AUTOENCODER_RESNET[found[3]]}"
        if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", name):
            return f"{found[1]}.mid.attn_1.{AUTOENCODER_ATTENTION[found[2]]}"
        if found := re.fullmatch(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(.+)", name):
            down, rest = found[1] == "encoder.down", found[3]
            level = f"{found[1]}.{int(found[2]) if down else levels - 1 - int(found[2])}"
            if resnet := re.fullmatch(r"resnets\.(\d+)\.(.+)", rest):
                return f"{level}.block.{resnet[1]}.{AUTOENCODER_RESNET[resnet[2]]}"
            return f"{level}.{AUTOENCODER_SAMPLERS[rest]}"
        return AUTOENCODER_ENDS[name]

    renamed = _renamed(state, place)
    projections = tuple(f".mid.attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out"))
    return {key: value[..., None, None] if key.endswith(projections) else value for key, value in renamed.items()}


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers stand at the pattern's group among the keys."""
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def _renamed(state: dict[str, Tensor], place: Callable[[str], str]) -> dict[str, Tensor]:
    """Every tensor under the name that `place` gives to its module (KeyError: none)."""
    renamed = {}
    for key, value in state.items():
        module, _, kind = key.rpartition(".")
        try:
            renamed[f"{place(module)}.{kind}"] = value
        except KeyError as error:
            raise ValueError(f"'{key}' has no place in an SD1.5 checkpoint; expected a UNet or an autoencoder of SD1.5's kind.") from error
    return renamed
