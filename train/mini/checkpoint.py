"""The miniature's checkpoint: UNet and autoencoder in one file, in the layout of SD1.5's original (LDM) checkpoints."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel

from kbdm_core.mini_checkpoint import AUTOENCODER, FORMAT, UNET
from kbdm_core.safetensors_file import write
from train.mini import autoencoder as mini_autoencoder
from train.mini import unet as mini_unet
from train.mini.ldm_layout import ldm_autoencoder, ldm_unet


def write_checkpoint(path: Path, unet: UNet2DConditionModel, autoencoder: AutoencoderKL, training: dict) -> None:
    """Write both in float16 (atomically). training: a summary for people.

    The text encoder is not in it: its vocabulary lies in the OpenCLIP folder already, which is four fifths of that model.
    """
    parts = {UNET: ldm_unet(unet.state_dict()), AUTOENCODER: ldm_autoencoder(autoencoder.state_dict())}
    tensors = {prefix + key: value.half() for prefix, part in parts.items() for key, value in part.items()}
    metadata = {
        "format": FORMAT,
        "format_version": "1",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "kb-dmgen",
        "modelspec.title": "Miniature of SD1.5, drawn people",
        "modelspec.resolution": f"{autoencoder.config.sample_size}x{autoencoder.config.sample_size}",
        "modelspec.prediction_type": "epsilon",
    }
    config = {
        "unet": {key: unet.config[key] for key in mini_unet.CONFIG},
        "autoencoder": {key: autoencoder.config[key] for key in mini_autoencoder.CONFIG},
        "training": training,
    }
    write(path, tensors, metadata, config)
