"""Bar A10: the same adapter on the same weights gives the same UNet output in ComfyUI and in diffusers; every tensor learns."""

from __future__ import annotations

import importlib

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from kbdm_core.adapter import SECTIONS, fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import AdapterInfo, load_adapter, save_adapter
from kbdm_core.guidance import adapter_guidance
from testbed.host_model import WIDTHS, host_model, predict
from testbed.pack import PACKAGE, load_node_module
from train.host import GuidedUNet, text_projections

host = load_node_module("host")
pack_file = importlib.import_module(f"{PACKAGE}.kbdm_core.adapter_file")
pack_guidance = importlib.import_module(f"{PACKAGE}.kbdm_core.guidance")

N, C = 16, 24
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = tuple(torch.randn(2, 1, N, C, generator=GENERATOR))
ONLY = {name: {f"{other}_strength": 0.0 for other in SECTIONS if other != name} for name in SECTIONS}


@pytest.fixture(scope="module")
def comfy_model():
    return host_model()


@pytest.fixture(scope="module")
def unet(comfy_model):
    """diffusers' UNet with the weights of the host's."""
    unet = UNet2DConditionModel(block_out_channels=WIDTHS, cross_attention_dim=64, attention_head_dim=8, norm_num_groups=32)
    weights = {f"model.diffusion_model.{k}": v for k, v in comfy_model.model.diffusion_model.state_dict().items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(weights, {**unet.config, "layers_per_block": 2}))
    return unet.eval()


def perturbed(unet, amount: float = 0.2):
    """A fresh adapter for this UNet, every tensor moved away from the identity."""
    adapter = fresh_adapter(sd15_sizes(WIDTHS, SECTIONS, N, C, pose_width=64, pose_stem=(16, 16, 16, 16)), text_projections=text_projections(unet))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return adapter


def pose_picture(height: int, width: int) -> torch.Tensor:
    """A bright bar on black, one of two."""
    picture = torch.zeros(2, 8 * height, 8 * width, 3)
    picture[0, 2 * height : 6 * height, 3 * width : 4 * width] = 1.0
    picture[1, height : 5 * height, 5 * width : 6 * width, 0] = 0.7
    return picture


def in_comfy(model, path, latent, timestep, conds, roles, level=None, **strengths):
    adapter, _ = pack_file.load_adapter(path, host.ADAPTER_OPERATIONS)
    if level is not None:
        keep_level(adapter, level)
    guidance = pack_guidance.adapter_guidance(adapter, TOKENS, pose_picture(*latent.shape[-2:]), None, **strengths)
    patched = host.apply_guidance(model, guidance, 0.0, 1.0)
    sampling = model.get_model_object("model_sampling")
    sigma = float(sampling.sigmas[timestep])
    denoised = predict(patched, latent * (sigma**2 + 1) ** 0.5, sigma, conds, [int(role == "negative") for role in roles])
    x = (latent * (sigma**2 + 1) ** 0.5).repeat(len(roles), 1, 1, 1)
    return (x - denoised) / sigma  # the UNet's output


def in_diffusers(unet, path, latent, timestep, conds, roles, level=None, **strengths):
    adapter, _ = load_adapter(path)
    if level is not None:
        keep_level(adapter, level)
    guidance = adapter_guidance(adapter, TOKENS, pose_picture(*latent.shape[-2:]), None, **strengths)
    batch = len(roles) * latent.shape[0]
    text = torch.cat([cond.expand(latent.shape[0], -1, -1) for cond in conds])
    with torch.no_grad():
        return GuidedUNet(unet)(latent.repeat(len(roles), 1, 1, 1), torch.full((batch,), timestep), text, guidance, tuple(roles))


def keep_level(adapter, level: int) -> None:
    """Silence the residuals of the other levels."""
    for other, conv in enumerate(adapter.pose.level_out):
        if other != level:
            conv.weight.zero_(), conv.bias.zero_()


CASES = [("all ports", None, {}), *((f"{name} alone", None, only) for name, only in ONLY.items())]
CASES += [(f"all ports, {share} for the negative prompt", None, {"negative_strength": share}) for share in (0.0, 0.5)]
CASES += [(f"residual level {level} alone", level, ONLY["pose"]) for level in range(4)]


@pytest.mark.parametrize(("level", "strengths"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize(("size", "timestep"), [((16, 16), 500), ((17, 12), 951)], ids=str)
def test_both_hosts_give_the_same_noise_prediction(comfy_model, unet, tmp_path, level, strengths, size, timestep):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, perturbed(unet), AdapterInfo("test", "sd15-test", codebook_sha256="0" * 64))
    generator = torch.Generator().manual_seed(timestep)
    latent = torch.randn(2, 4, *size, generator=generator)
    conds = [torch.randn(1, 7, 64, generator=generator) for _ in range(2)]
    roles = ("positive", "negative")
    ours = in_comfy(comfy_model, path, latent, timestep, conds, roles, level, **strengths)
    theirs = in_diffusers(unet, path, latent, timestep, conds, roles, level, **strengths)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    plain = in_diffusers(unet, path, latent, timestep, conds, roles, kb_strength=0.0, dm_strength=0.0, pose_strength=0.0)
    assert (theirs - plain).abs().max() > 1e-3 * plain.abs().max(), "the ports have no effect, so agreement shows nothing"


def test_every_adapter_tensor_gets_a_gradient(unet):
    adapter = perturbed(unet)
    guidance = adapter_guidance(adapter, TOKENS, pose_picture(16, 16))
    latent = torch.randn(4, 4, 16, 16, generator=GENERATOR)
    timestep = torch.tensor([10, 700, 10, 700])
    GuidedUNet(unet.requires_grad_(False))(latent, timestep, torch.randn(4, 7, 64), guidance, ("positive", "negative")).square().mean().backward()
    silent = [name for name, parameter in adapter.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


def test_a_fresh_adapter_is_the_identity_in_diffusers_too(unet):
    latent, text = torch.randn(1, 4, 16, 16), torch.randn(1, 7, 64)
    fresh = fresh_adapter(sd15_sizes(WIDTHS, SECTIONS, N, C, pose_width=64, pose_stem=(16, 16, 16, 16)), text_projections=text_projections(unet))
    guided = GuidedUNet(unet)
    with torch.no_grad():
        steered = guided(latent, torch.tensor([500]), text, adapter_guidance(fresh, TOKENS, pose_picture(16, 16)[:1]))
        plain = guided(latent, torch.tensor([500]), text, adapter_guidance(fresh))
    assert torch.equal(steered, plain)


def test_a_fresh_kb_starts_from_the_bases_text_projections(unet):
    fresh = fresh_adapter(sd15_sizes(WIDTHS, ("kb",), N, 64), text_projections=text_projections(unet))
    for name in ("input_blocks.1", "middle_block", "output_blocks.11"):
        ours = fresh.kb.get_submodule(name)
        assert torch.equal(ours.to_k.weight, text_projections(unet)[name][0])
        assert torch.equal(ours.to_v.weight, text_projections(unet)[name][1])
