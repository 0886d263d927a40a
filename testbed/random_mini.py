"""The miniature's files with random weights: what lies in assets/mini, for tests of everything that reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from kbdm_core.adapter import fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import AdapterInfo, save_adapter
from kbdm_core.knowledge_base import fresh_knowledge_base, save_knowledge_base
from kbdm_core.sd15 import BLOCKS
from testbed.random_weights import randomise
from testbed.tiny_clip import CONFIG as TINY_CLIP
from testbed.tiny_clip import write_tiny_clip
from train.mini import autoencoder as mini_autoencoder
from train.mini import unet as mini_unet
from train.mini.checkpoint import write_checkpoint
from train.mini.estimator import PoseEstimator, save_estimator

TEXT_WIDTH, TOKEN_WIDTH, GRID = mini_unet.CONFIG["cross_attention_dim"], 128, (8, 8)
POSE_WIDTH, POSE_STEM = 128, (32, 64, 96, 96)


def write_mini_base(folder: Path, unet: dict | None = None, autoencoder: dict | None = None, **text) -> None:
    """Checkpoint and CLIP. unet, autoencoder: other configurations; text: of the text tower's."""
    models = UNet2DConditionModel(**(unet or mini_unet.CONFIG)), AutoencoderKL(**(autoencoder or mini_autoencoder.CONFIG))
    for model in models:
        randomise(model)
    write_checkpoint(folder / "checkpoint.safetensors", *models, {})
    text = {**TINY_CLIP["text_cfg"], "width": TEXT_WIDTH, "heads": 4, "layers": 3, **text}
    write_tiny_clip(folder / "clip", text_cfg=text, vision_cfg={"layers": 1})


def write_mini_guidance(folder: Path) -> None:
    """Knowledge base, adapter, every port of which does something, and pose estimator."""
    knowledge_base = fresh_knowledge_base(64, GRID, TOKEN_WIDTH, TEXT_WIDTH)
    widths = mini_unet.CONFIG["block_out_channels"]
    adapter = fresh_adapter(sd15_sizes(widths, kb_tokens=GRID[0] * GRID[1], kb_width=TOKEN_WIDTH, pose_width=POSE_WIDTH, pose_stem=POSE_STEM))
    randomise(adapter)
    for block in BLOCKS:
        adapter.kb.block(block).scale.data.fill_(0.5)
    adapter.dm.blend.data.fill_(0.7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        estimator = PoseEstimator((8, 8, 16, 16))
    places = {name: folder / name / "mini" for name in ("knowledge_bases", "adapters")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    save_knowledge_base(places["knowledge_bases"] / "knowledge_base.safetensors", knowledge_base)
    info = AdapterInfo("random", "sd15-mini", codebook_sha256=knowledge_base.codebook_sha256)
    save_adapter(places["adapters"] / "adapter.safetensors", adapter, info, torch.float16)  # as the shipped one
    judged = {name: {"pictures": 4, "pck@0.2": 0.9, "pck@0.2_joints": {"nose": 1.0}} for name in ("unseen", "held_out")}
    save_estimator(folder / "estimator.safetensors", estimator, {}, judged)


def write_mini(folder: Path) -> Path:
    """All of it."""
    write_mini_base(folder)
    write_mini_guidance(folder)
    return folder
