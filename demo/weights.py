"""Weights for the demo: a random checkpoint in the layout of SD1.5, an untrained knowledge base and a random adapter."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from kbdm_core.adapter import KBDMAdapter, fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import AdapterInfo, save_adapter
from kbdm_core.knowledge_base import fresh_knowledge_base, save_knowledge_base
from kbdm_core.sd15 import BLOCKS

CHECKPOINT = "random_sd15_fp16.safetensors"
KNOWLEDGE_BASE = "random_kb.safetensors"
ADAPTER = "random_adapter.safetensors"

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
CLIP = {
    "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "quick_gelu",
    "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """One file that the demo made, and what is in it."""

    path: Path
    content: str


def make_weights(models: Path) -> tuple[Weights, ...]:
    """Write all three files under `models`; a checkpoint that is already there is kept."""
    checkpoint = models / "checkpoints" / CHECKPOINT
    knowledge_base = models / "kbdm_knowledge_bases" / KNOWLEDGE_BASE
    adapter = models / "kbdm_adapters" / ADAPTER
    for path in (checkpoint, knowledge_base, adapter):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        _save_checkpoint(checkpoint)
    fresh = fresh_knowledge_base()
    save_knowledge_base(knowledge_base, fresh)
    info = AdapterInfo("random adapter of the demo", "sd15", codebook_sha256=fresh.codebook_sha256)
    save_adapter(adapter, _random_adapter(checkpoint), info)
    return (
        Weights(checkpoint, "SD1.5's layout and full size, RANDOM values"),
        Weights(knowledge_base, "untrained knowledge base, K=1024, N=256, C=768"),
        Weights(adapter, "untrained adapter, all sections, perturbed so that each port has an effect"),
    )


def _save_checkpoint(path: Path) -> None:
    """Random values of sensible scale in fp16 for every tensor of SD1.5's UNet, text encoder and VAE."""
    tensors: dict[str, Tensor] = {}
    layout = checkpoint_layout()
    with tqdm(total=sum(tensor.numel() for tensor in layout.values()), desc="random checkpoint", unit="", unit_scale=True) as progress:
        for i, (key, tensor) in enumerate(layout.items()):
            tensors[key] = _random(key, tensor.shape, torch.Generator().manual_seed(i)).half()
            progress.update(tensor.numel())
    half_written = path.with_suffix(".part")
    save_file(tensors, half_written)
    os.replace(half_written, path)


def checkpoint_layout() -> dict[str, Tensor]:
    """Names and shapes (tensors without values) of an SD1.5 checkpoint, from ComfyUI's own classes."""
    from comfy.cli_args import args

    args.cpu = True  # before comfy.model_management looks for a GPU
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"), torch.no_grad():
        parts: dict[str, nn.Module] = {
            "model.diffusion_model.": UNetModel(**UNET),
            "cond_stage_model.transformer.": CLIPTextModel(CLIP, torch.float32, "meta", nn),
            "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
        }
    layout = {prefix + key: tensor for prefix, module in parts.items() for key, tensor in module.state_dict().items()}
    return {key: tensor for key, tensor in layout.items() if not key.endswith("text_projection.weight")}  # SD1.5 has none


def _random(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Matrices and kernels of variance 1 / fan-in; norms near 1; biases near 0."""
    noise = torch.randn(shape, generator=generator)
    if noise.ndim > 1:
        return noise / noise[0].numel() ** 0.5
    return 0.02 * noise + (1.0 if key.endswith("weight") else 0.0)


def _random_adapter(checkpoint: Path) -> KBDMAdapter:
    """A fresh adapter on the checkpoint's text projections, moved off the identity so that every port shows."""
    with safe_open(checkpoint, "pt") as file:
        projections = {}
        for block in BLOCKS:
            attention = f"model.diffusion_model.{block.name}.1.transformer_blocks.0.attn2"
            projections[block.name] = tuple(file.get_tensor(f"{attention}.{name}.weight").float() for name in ("to_k", "to_v"))
    adapter = fresh_adapter(sd15_sizes(), text_projections=projections)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        adapter.dm.blend.copy_(torch.linspace(0.2, 1.0, len(BLOCKS)))
        adapter.dm.gate.out.bias.copy_(torch.linspace(-2.0, 2.0, len(BLOCKS)))
        for block in BLOCKS:
            adapter.kb.block(block).scale.fill_(0.5)
        for convolution in adapter.pose.level_out:
            convolution.weight.copy_(_random("", convolution.weight.shape, generator) * 0.2)
    return adapter
