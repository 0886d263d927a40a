"""A single-file SD1.5 checkpoint as diffusers' models: sizes are read off its tensors, so that no configuration is downloaded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kbdm_core.errors import FileFormatError, MismatchError
from kbdm_core.sd15 import BLOCKS, LEVELS, base_name
from train.base.text_tower import END

HEADS = 8  # of SD1.5's attention, at every width
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
TOWER = "text_model."  # below TEXT
HEAD_WIDTH = 64  # of CLIP's text towers


@dataclass(frozen=True, eq=False)
class BaseFile:
    """The tensors of a checkpoint by key, and the SHA-256 of the file."""

    path: Path
    tensors: dict[str, Tensor]
    sha256: str

    def fail(self, what: str, expected: object, found: object) -> FileFormatError:
        return FileFormatError(f"{self.path.name}: {what}: expected {expected}, found {found} (file: {self.path}).")

    def size(self, key: str, axis: int) -> int:
        """Size of a tensor along an axis. Raises FileFormatError if the file is no SD1.5 checkpoint."""
        if key not in self.tensors or self.tensors[key].ndim <= axis:
            found = "another shape" if key in self.tensors else "none of that name"
            raise self.fail(f"tensor '{key}'", "the layout of an SD1.5 checkpoint", found)
        return self.tensors[key].shape[axis]

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.tensors)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the UNet's four levels."""
        return tuple(self.size(f"{UNET}input_blocks.{3 * level + 1}.0.out_layers.3.weight", 0) for level in range(LEVELS))

    @property
    def text_width(self) -> int:
        """Width of the text states that the UNet attends to."""
        return self.size(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1)

    @property
    def base(self) -> str:
        """The base's name in adapter files."""
        return base_name(self.widths)


def read_base(path: Path) -> BaseFile:
    """Read a checkpoint. Raises FileFormatError for a file that is no safetensors file."""
    if not path.is_file():
        raise FileFormatError(f"{path.name}: no such checkpoint (looked at {path}).")
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (safe_open is not iterable)
        with open(path, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(opened)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise FileFormatError(
            f"{path.name}: not a readable safetensors file ({error}). Expected a single-file SD1.5 checkpoint; a .ckpt must be converted "
            f"to .safetensors first (file: {path})."
        ) from error
    return BaseFile(path, tensors, digest)


def require_sd15(file: BaseFile) -> None:
    """Raise MismatchError for a checkpoint of another model, naming what was found."""
    block = f"{UNET}input_blocks.1.1"
    if f"{UNET}label_emb.0.0.weight" in file.tensors or f"{block}.proj_in.weight" not in file.tensors:
        raise MismatchError(f"{file.path.name} is not an SD1.5 checkpoint (SDXL, SD3 or Flux?); adapters are trained on SD1.5 and its fine-tunes.")
    if file.tensors[f"{block}.proj_in.weight"].ndim != 4:
        raise MismatchError(f"{file.path.name} is an SD2 checkpoint; adapters are trained on SD1.5 and its fine-tunes.")
    channels = file.size(f"{UNET}input_blocks.0.0.weight", 1)
    if channels != 4:
        raise MismatchError(
            f"{file.path.name} has a UNet of {channels} input channels (an inpainting or instruction model); train on the plain SD1.5 model it "
            "was made from: the adapter then works on both."
        )


def unet_of(file: BaseFile) -> UNet2DConditionModel:
    """The UNet, float32. Raises MismatchError for another model than SD1.5's, FileFormatError for one that is not whole."""
    require_sd15(file)
    config = {
        "block_out_channels": file.widths,
        "cross_attention_dim": file.text_width,
        "attention_head_dim": HEADS,  # diffusers' name for the number of heads
        "sample_size": 64,
    }
    return _filled(file, UNet2DConditionModel, config, convert_ldm_unet_checkpoint(dict(file.tensors), {**config, "layers_per_block": 2}))


def autoencoder_of(file: BaseFile) -> AutoencoderKL:
    """The autoencoder, float32. Raises FileFormatError if the checkpoint has none."""
    if not file.has(VAE):
        raise file.fail(f"tensors '{VAE}*'", "the checkpoint's own VAE", "none; use a full checkpoint, not one without its VAE")
    levels = {int(number) for key in file.tensors for number in re.findall(rf"^{re.escape(VAE)}decoder\.up\.(\d+)\.", key)}
    blocks = {int(number) for key in file.tensors for number in re.findall(rf"^{re.escape(VAE)}decoder\.up\.0\.block\.(\d+)\.", key)}
    widths = tuple(file.size(f"{VAE}decoder.up.{level}.block.0.conv2.weight", 0) for level in sorted(levels))
    config = {
        "block_out_channels": widths,
        "layers_per_block": len(blocks) - 1,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "latent_channels": file.size(f"{VAE}post_quant_conv.weight", 0),
    }
    tensors = {key: value for key, value in file.tensors.items() if key.startswith(VAE)}
    return _filled(file, AutoencoderKL, config, convert_ldm_vae_checkpoint(tensors, config))


def text_encoder_of(file: BaseFile) -> CLIPTextModel:
    """The text encoder, float32. Raises FileFormatError if the checkpoint has none, or one that is not whole."""
    if not file.has(TEXT):
        raise file.fail(f"tensors '{TEXT}*'", "the checkpoint's own text encoder, or base.text_encoder", "none")
    tensors = {key: value for key, value in convert_ldm_clip_checkpoint(file.tensors).items() if not key.endswith("position_ids")}
    tensors.pop("text_projection.weight", None)  # identity, in checkpoints that have one
    tensors = {f"{TOWER}{key.removeprefix(TOWER)}": value for key, value in tensors.items()}  # some fine-tunes lack the prefix
    tower = replace(file, tensors=tensors)
    width = tower.size(f"{TOWER}embeddings.token_embedding.weight", 1)
    config = CLIPTextConfig(
        vocab_size=tower.size(f"{TOWER}embeddings.token_embedding.weight", 0),
        hidden_size=width,
        intermediate_size=tower.size(f"{TOWER}encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=len({number for key in tensors for number in re.findall(r"encoder\.layers\.(\d+)\.", key)}),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=tower.size(f"{TOWER}embeddings.position_embedding.weight", 0),
        hidden_act="quick_gelu",
        eos_token_id=END,
    )
    model = CLIPTextModel(config)
    _load(file, model, tensors, assign=False)
    return model.eval().requires_grad_(False)


def controlnet_of(path: Path, base: BaseFile) -> ControlNetModel:
    """A stock ControlNet in its original layout, float32. Raises FileFormatError, or MismatchError if it was made for another base."""
    file = read_base(path)
    tensors = {key.removeprefix("control_model."): value for key, value in file.tensors.items()}
    if "input_hint_block.0.weight" not in tensors:
        raise file.fail("tensor 'input_hint_block.0.weight'", "a ControlNet for SD1.5 in its original layout", "none of that name")
    found = replace(file, tensors={f"{UNET}{key}": value for key, value in tensors.items()})  # half a UNet, but for its own parts
    if (found.widths, found.text_width) != (base.widths, base.text_width):
        raise MismatchError(
            f"{path.name} is a ControlNet of block widths {list(found.widths)} for text states of width {found.text_width}, but "
            f"{base.path.name} has {list(base.widths)} and {base.text_width}; choose a ControlNet that was made for this base."
        )
    hints = tuple(found.size(f"{UNET}input_hint_block.{number}.weight", 0) for number in (0, 4, 8, 12))
    config = {
        "block_out_channels": base.widths,
        "cross_attention_dim": base.text_width,
        "attention_head_dim": HEADS,
        "conditioning_embedding_out_channels": hints,
    }
    return _filled(file, ControlNetModel, config, convert_controlnet_checkpoint(tensors, {**config, "layers_per_block": 2}))


def text_projections(file: BaseFile) -> dict[str, tuple[Tensor, Tensor]]:
    """The base's text to_k and to_v per block name, float32, from which a fresh `kb` section starts."""
    found = {}
    for block in BLOCKS:
        attention = f"{UNET}{block.name}.1.transformer_blocks.0.attn2"
        found[block.name] = tuple(file.tensors[f"{attention}.{name}.weight"].float() for name in ("to_k", "to_v"))
    return found


def _filled(file: BaseFile, kind: type[nn.Module], config: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """A frozen diffusers model of that configuration with these weights, without initialising it first."""
    with torch.device("meta"):
        model = kind(**config)
    _load(file, model, tensors, assign=True)
    return model.eval().requires_grad_(False)


def _load(file: BaseFile, model: nn.Module, tensors: dict[str, Tensor], assign: bool) -> None:
    try:
        model.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=assign)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise file.fail(type(model).__name__, "the weights of an SD1.5 checkpoint", shorten(first, 300)) from error


def _sha256(opened: Any) -> str:
    digest = hashlib.sha256()
    while chunk := opened.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()
