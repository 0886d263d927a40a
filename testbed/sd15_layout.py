"""Names and shapes of a full-size SD1.5 checkpoint, from the host's own classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
