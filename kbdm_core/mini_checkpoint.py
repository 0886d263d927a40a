"""The miniature's weights as a host reads them: the checkpoint (UNet and autoencoder) and the text tower of its OpenCLIP folder.

Sizes are read off the tensors. What a tensor cannot tell is in the files' configurations: heads and activation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .safetensors_file import TensorFile, read, read_foreign
from .sd15 import LEVELS

FORMAT = "kbdm.mini_checkpoint"
UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."  # prefixes in SD1.5's original (LDM) checkpoints
HEADS, NORM_GROUPS = 8, 32  # fixed in SD1.5's hosts
TOKENS, VOCABULARY = 77, 49408  # of SD1.5's tokeniser


@dataclass(frozen=True)
class UNetSizes:
    """Of a UNet with SD1.5's 16 transformer blocks: channels of latents in and out, of the four levels, and of the text states."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    text_width: int


@dataclass(frozen=True)
class AutoencoderSizes:
    """Channels of the four levels, residual blocks per level of the encoder, channels of the latents before and after quant_conv."""

    widths: tuple[int, ...]
    layers: int
    z_channels: int
    latent_channels: int


@dataclass(frozen=True)
class MiniCheckpoint:
    """A checkpoint file and the sizes of its two parts."""

    file: TensorFile
    unet: UNetSizes
    autoencoder: AutoencoderSizes

    def part(self, prefix: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
        """The tensors below UNET or AUTOENCODER, without that prefix, which must be those of the host's own class: `shapes`.

        Raises FileFormatError for a missing, misshapen, infinite or unknown one.
        """
        inside = replace(self.file, tensors={key: value for key, value in self.file.tensors.items() if key.startswith(prefix)})
        found = inside.exactly({prefix + key: shape for key, shape in shapes.items()}, "SD1.5's topology")
        return {key.removeprefix(prefix): value for key, value in found.items()}


@dataclass(frozen=True)
class TextTower:
    """The text tower of an OpenCLIP folder: its tensors under OpenCLIP's names, and what they do not tell."""

    file: TensorFile
    width: int
    layers: int
    hidden: int
    heads: int
    activation: str


def load_mini_checkpoint(path: str | os.PathLike) -> MiniCheckpoint:
    """Read a checkpoint that `python -m train mini unet` wrote. Raises FileFormatError that names file, key, expected and found."""
    file = read(path, FORMAT)
    foreign = sorted(key for key in file.tensors if not key.startswith((UNET, AUTOENCODER)))
    if foreign:
        raise file.fail(f"tensor '{foreign[0]}'", f"only tensors below {UNET} and {AUTOENCODER}", f"{len(foreign)} other tensor(s)")
    _require(file, file.config, "unet", "attention_head_dim", HEADS)  # diffusers' name for the number of heads
    _require(file, file.config, "autoencoder", "norm_num_groups", NORM_GROUPS)
    first = file.tensor(f"{UNET}input_blocks.0.0.weight", (None, None, 3, 3))
    last = file.tensor(f"{UNET}out.2.weight", (None, None, 3, 3))
    keys = file.tensor(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (None, None))
    unet_widths = tuple(_width(file, f"{UNET}input_blocks.{1 + 3 * level}.0.out_layers.3.weight") for level in range(LEVELS))
    widths = tuple(_width(file, f"{AUTOENCODER}decoder.up.{level}.block.0.conv2.weight") for level in range(LEVELS))
    layers = _count(file, f"{AUTOENCODER}decoder.up.0.block.") - 1  # the decoder has one more per level than the encoder
    z_channels = file.tensor(f"{AUTOENCODER}decoder.conv_in.weight", (None, None, 3, 3)).shape[1]
    latents = file.tensor(f"{AUTOENCODER}post_quant_conv.weight", (None, None, 1, 1)).shape[1]
    return MiniCheckpoint(
        file,
        UNetSizes(first.shape[1], last.shape[0], unet_widths, keys.shape[1]),
        AutoencoderSizes(widths, layers, z_channels, latents),
    )


def load_text_tower(folder: str | os.PathLike) -> TextTower:
    """Read open_clip_config.json and the text tower of open_clip_model.safetensors. Raises FileFormatError."""
    file = read_foreign(Path(folder) / "open_clip_model.safetensors")
    width = file.tensor("token_embedding.weight", (VOCABULARY, None)).shape[1]
    file.tensor("positional_embedding", (TOKENS, width))
    layers = _count(file, "transformer.resblocks.")
    hidden = file.tensor("transformer.resblocks.0.mlp.c_fc.weight", (None, width)).shape[0]
    model = _json(file, Path(folder) / "open_clip_config.json").get("model_cfg")
    heads = model["text_cfg"].get("heads") if isinstance(model, dict) and isinstance(model.get("text_cfg"), dict) else None
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise file.fail("open_clip_config.json, 'model_cfg.text_cfg.heads'", f"a divisor of the width {width}", repr(heads))
    parts = ("token_embedding.", "positional_embedding", "ln_final.", "transformer.")  # the projection is the knowledge base's
    tensors = {key: value for key, value in file.tensors.items() if key.startswith(parts)}
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return TextTower(replace(file, tensors=tensors), width, layers, hidden, heads, activation)


def _width(file: TensorFile, key: str) -> int:
    width = file.tensor(key, (None, None, 3, 3)).shape[0]
    if width == 0 or width % NORM_GROUPS:
        raise file.fail(f"tensor '{key}'", f"a multiple of {NORM_GROUPS} channels", width)
    return width


def _count(file: TensorFile, prefix: str) -> int:
    """How many different numbers follow the prefix among the file's keys."""
    return len({key.removeprefix(prefix).split(".")[0] for key in file.tensors if key.startswith(prefix)})


def _require(file: TensorFile, config: dict, table: str, key: str, expected: int) -> None:
    found = config[table].get(key) if isinstance(config.get(table), dict) else None
    if found != expected:
        raise file.fail(f"config '{table}.{key}'", expected, repr(found))


def _json(file: TensorFile, path: Path) -> dict[str, Any]:
    """The JSON object beside the weights."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise file.fail(path.name, "a JSON object beside the weights", str(error)) from error
    if not isinstance(found, dict):
        raise file.fail(path.name, "a JSON object beside the weights", type(found).__name__)
    return found
