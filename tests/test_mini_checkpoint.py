"""The miniature's checkpoint: LDM's names against diffusers' own way back and against the host's own classes."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import safe_open

from kbdm_core.mini_checkpoint import FORMAT
from kbdm_core.safetensors_file import read
from testbed.host import import_host
from train.mini import autoencoder as mini_autoencoder
from train.mini import unet as mini_unet
from train.mini.checkpoint import write_checkpoint
from train.mini.ldm_layout import ldm_autoencoder, ldm_unet

import_host()

UNETS = {
    "the miniature's": mini_unet.CONFIG,
    "three levels of one layer": {
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": 24,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "two levels of three layers": {
        "block_out_channels": (32, 64),
        "layers_per_block": 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 24,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
}
AUTOENCODERS = {
    "the miniature's": mini_autoencoder.CONFIG,
    "three levels of two layers": {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_reads_the_unet_back_bit_for_bit(name):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNETS[name])
    state = unet.state_dict()
    renamed = ldm_unet(state)
    assert len(renamed) == len(state)
    assert same(convert_ldm_unet_checkpoint({f"model.diffusion_model.{key}": value for key, value in renamed.items()}, unet.config), state)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_diffusers_reads_the_autoencoder_back_bit_for_bit(name):
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(**AUTOENCODERS[name])
    state = autoencoder.state_dict()
    renamed = ldm_autoencoder(state)
    assert len(renamed) == len(state)
    assert same(convert_ldm_vae_checkpoint({f"first_stage_model.{key}": value for key, value in renamed.items()}, autoencoder.config), state)


def shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in state.items()}


def test_the_unets_names_and_shapes_are_those_of_the_hosts_own_class():
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    widths = (64, 64, 128, 128)
    with torch.device("meta"):
        ours = UNet2DConditionModel(**{**mini_unet.CONFIG, "block_out_channels": widths})
        theirs = UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=64, channel_mult=[1, 1, 2, 2], num_res_blocks=[2, 2, 2, 2],
            transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3,
            context_dim=128, num_heads=8, use_spatial_transformer=True, legacy=False,
        )  # fmt: skip
    assert shapes(ldm_unet(ours.state_dict())) == shapes(theirs.state_dict())


@pytest.mark.parametrize(("widths", "layers"), [((64,) * 4, 0), ((32, 32, 64, 128), 1)], ids=["the miniature's", "another"])
def test_the_autoencoders_names_and_shapes_are_those_of_the_hosts_own_class(widths, layers):
    from comfy.ldm.models.autoencoder import AutoencoderKL as HostAutoencoder

    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": 128, "in_channels": 3, "out_ch": 3, "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths], "num_res_blocks": layers, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with torch.device("meta"):
        ours = AutoencoderKL(**{**mini_autoencoder.CONFIG, "block_out_channels": widths, "layers_per_block": layers})
        theirs = HostAutoencoder(ddconfig=ddconfig, embed_dim=4)
    assert shapes(ldm_autoencoder(ours.state_dict())) == shapes(theirs.state_dict())


@pytest.mark.parametrize("key", ["class_embedding.linear_1.weight", "mid_block.resnets.0.spatial_norm.bias", "encoder.conv_in.weight"])
def test_a_part_that_sd15_does_not_have_is_an_error(key):
    with pytest.raises(ValueError, match=f"'{key}' has no place"):
        ldm_unet({key: torch.zeros(1)})


def test_a_part_that_sd15s_autoencoder_does_not_have_is_an_error():
    for key in ("encoder.mid_block.attentions.0.norm_q.weight", "decoder.up_blocks.0.attentions.0.to_q.weight", "conv_in.weight"):
        with pytest.raises(ValueError, match=f"'{key}' has no place"):
            ldm_autoencoder({key: torch.zeros(1)})


def test_the_file_holds_both_in_float16_and_says_what_they_are(tmp_path):
    torch.manual_seed(0)
    unet, autoencoder = UNet2DConditionModel(**mini_unet.CONFIG), AutoencoderKL(**mini_autoencoder.CONFIG)
    write_checkpoint(tmp_path / "checkpoint.safetensors", unet, autoencoder, {"steps": 3})
    file = read(tmp_path / "checkpoint.safetensors", FORMAT)
    assert all(value.dtype == torch.float16 for value in file.tensors.values())
    assert same(convert_ldm_unet_checkpoint(file.tensors, unet.config), {key: value.half() for key, value in unet.state_dict().items()})
    halves = {key: value.half() for key, value in autoencoder.state_dict().items()}
    assert same(convert_ldm_vae_checkpoint(file.tensors, autoencoder.config), halves)
    assert len(file.tensors) == len(unet.state_dict()) + len(halves)
    as_json = json.loads(json.dumps({"unet": mini_unet.CONFIG, "autoencoder": mini_autoencoder.CONFIG, "training": {"steps": 3}}))
    assert file.config == as_json
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as opened:
        assert opened.metadata()["modelspec.architecture"] == "stable-diffusion-v1"
