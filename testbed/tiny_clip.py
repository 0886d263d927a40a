"""A tiny random CLIP in OpenCLIP's own folder layout: 16 tokens of a 64 px picture, 64-wide towers, 48-wide joint space."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

CONFIG = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
PREPROCESSING = {"size": 64, "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def write_tiny_clip(folder: Path, seed: int = 0, custom_text: bool = False, **changes) -> str:
    """Write the model, the same for the same seed, and return the name by which OpenCLIP loads it. changes: of `CONFIG`, table by table."""
    config = {**CONFIG, **({"custom_text": True} if custom_text else {})}
    for table, change in changes.items():
        config[table] = {**config[table], **change} if isinstance(change, dict) else change
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments).half().float()  # hosts may keep it in float16
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESSING}, indent=1))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
