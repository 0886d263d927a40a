"""The miniature as ComfyUI's own objects: its classes of SD1.5 at the files' sizes. With host.py, all that knows ComfyUI's internals."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from ..kbdm_core.mini_checkpoint import AUTOENCODER, TOKENS, UNET, VOCABULARY, AutoencoderSizes, MiniCheckpoint, TextTower, UNetSizes
from ..kbdm_core.sd15 import LEVELS

LAYERS = 2  # residual blocks per level on the way down, in SD1.5's topology
END = 49407  # of the text, and what the host fills it up with


class Multiple(Fraction):
    """A level's width over the first one's, such as 3/2. The host multiplies it by whole widths and wants whole ones."""

    def __mul__(self, other: int) -> int:
        return int(super().__mul__(other))

    __rmul__ = __mul__


def unet_patcher(checkpoint: MiniCheckpoint) -> comfy.model_patcher.ModelPatcher:
    """MODEL: the host's SD15 with the checkpoint's UNet, in the dtype and on the devices that the host chooses.

    Raises FileFormatError if the tensors are not those of the host's class.
    """
    management = comfy.model_management
    config = comfy.supported_models.SD15(_unet_config(checkpoint.unet))
    device, offload_device = management.get_torch_device(), management.unet_offload_device()
    parameters = sum(value.numel() for key, value in checkpoint.file.tensors.items() if key.startswith(UNET))
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model({}, "", device=offload_device)
    model.load_model_weights(checkpoint.part(UNET, _shapes(model.diffusion_model)), "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload_device)


def autoencoder(checkpoint: MiniCheckpoint) -> comfy.sd.VAE:
    """VAE: the host's AutoencoderKL with the checkpoint's. Raises FileFormatError if the tensors are not those of that class."""
    parameters = {"ddconfig": _autoencoder_config(checkpoint.autoencoder), "embed_dim": checkpoint.autoencoder.latent_channels}
    with torch.device("meta"):
        shapes = _shapes(AutoencoderKL(**parameters))
    return comfy.sd.VAE(sd=checkpoint.part(AUTOENCODER, shapes), config={"params": parameters})


def text_encoder(tower: TextTower) -> comfy.sd.CLIP:
    """CLIP: the host's SD1.5 text encoder and tokeniser at the tower's size. As from SD1.5's checkpoints, pooled text is not projected.

    Raises FileFormatError if the tensors are not those of the host's class.
    """
    config = {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden,
        "hidden_act": tower.activation,
        "max_position_embeddings": TOKENS,
        "vocab_size": VOCABULARY,
        "eos_token_id": END,
    }
    host = comfy.sd1_clip
    target = SimpleNamespace(
        params={"textmodel_json_config": config},
        clip=partial(host.SD1ClipModel, clip_model=partial(host.SDClipModel, return_projected_pooled=False)),
        tokenizer=partial(host.SD1Tokenizer, tokenizer=partial(host.SDTokenizer, embedding_size=tower.width)),
    )
    clip = comfy.sd.CLIP(target)
    tensors = comfy.utils.clip_text_transformers_convert(dict(tower.file.tensors), "", "")
    tensors["text_projection.weight"] = torch.eye(tower.width)
    shapes = _shapes(clip.cond_stage_model.clip_l.transformer)
    clip.load_sd(replace(tower.file, tensors=tensors).exactly(shapes, "a CLIP-L text encoder"))
    return clip


def _unet_config(sizes: UNetSizes) -> dict:
    """What the host would detect in a checkpoint of these sizes. It adds SD1.5's eight heads itself."""
    return {
        "image_size": 32,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.out_channels,
        "model_channels": sizes.widths[0],
        "channel_mult": _multiples(sizes.widths),
        "num_res_blocks": [LAYERS] * LEVELS,
        "use_spatial_transformer": True,
        "transformer_depth": [1] * LAYERS * (LEVELS - 1) + [0] * LAYERS,
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * (LAYERS + 1) * (LEVELS - 1) + [0] * (LAYERS + 1),
        "context_dim": sizes.text_width,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "legacy": False,
    }


def _autoencoder_config(sizes: AutoencoderSizes) -> dict:
    return {
        "double_z": True,
        "z_channels": sizes.z_channels,
        "resolution": 256,  # without effect where attn_resolutions is empty
        "in_channels": 3,
        "out_ch": 3,
        "ch": sizes.widths[0],
        "ch_mult": _multiples(sizes.widths),
        "num_res_blocks": sizes.layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def _multiples(widths: tuple[int, ...]) -> list[Multiple]:
    return [Multiple(width, widths[0]) for width in widths]


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}
