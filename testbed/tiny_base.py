"""A small checkpoint in the layout of SD1.5's single files, random weights: UNet, autoencoder and text encoder, with a knowledge base for it."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from kbdm_core.knowledge_base import fresh_knowledge_base, save_knowledge_base
from testbed.random_weights import randomise
from train.mini.ldm_layout import ldm_autoencoder, ldm_unet

WIDTHS, TEXT_WIDTH = (32, 64, 96, 96), 64
AUTOENCODER = {
    "block_out_channels": (32, 32, 32, 32),
    "layers_per_block": 1,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def tiny_models(seed: int = 0) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """The three models, random."""
    text = CLIPTextConfig(hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1, eos_token_id=49407)
    unet = UNet2DConditionModel(block_out_channels=WIDTHS, cross_attention_dim=TEXT_WIDTH, attention_head_dim=8)
    models = unet, AutoencoderKL(**AUTOENCODER), CLIPTextModel(text)
    for number, model in enumerate(models):
        randomise(model, 10 * seed + number)
        model.eval().requires_grad_(False)
    return models


def write_tiny_base(path: Path, seed: int = 0) -> Path:
    """The checkpoint, in float16 as such files are."""
    unet, autoencoder, text = tiny_models(seed)
    parts = {
        "model.diffusion_model.": ldm_unet(unet.state_dict()),
        "first_stage_model.": ldm_autoencoder(autoencoder.state_dict()),
        "cond_stage_model.transformer.": text.state_dict(),
    }
    save_file({prefix + key: value.half().contiguous() for prefix, part in parts.items() for key, value in part.items()}, path)
    return path


def write_tiny_knowledge_base(path: Path, seed: int = 0) -> Path:
    """An untrained knowledge base of 32 entries for that checkpoint's text encoder."""
    save_knowledge_base(path, fresh_knowledge_base(32, (4, 4), 24, TEXT_WIDTH, seed))
    return path
