"""Bar C1: in full size too, the same adapter on the same SD1.5 UNet gives the same noise prediction in ComfyUI and in diffusers.

Both hosts work on the same tensors, so that the 860 M random weights are held once. Latents are small; what depends on the size of the
UNet does not depend on theirs.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from kbdm_core.adapter import SECTIONS, fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import AdapterInfo, load_adapter, save_adapter
from kbdm_core.guidance import adapter_guidance
from kbdm_core.sd15 import BASE_WIDTHS, BLOCKS
from testbed.host_model import host_model, predict
from testbed.pack import PACKAGE, load_node_module
from testbed.random_weights import randomise
from train.host import GuidedUNet

host = load_node_module("host")
pack_file = importlib.import_module(f"{PACKAGE}.kbdm_core.adapter_file")
pack_guidance = importlib.import_module(f"{PACKAGE}.kbdm_core.guidance")

pytestmark = pytest.mark.slow

SD15 = {"model_channels": 320, "num_heads": 8, "context_dim": 768}
OFF = {f"{section}_strength": 0.0 for section in SECTIONS}
ONLY = {section: {name: value for name, value in OFF.items() if not name.startswith(section)} for section in SECTIONS}
BOTH, REVERSED, COND = ("positive", "negative"), ("negative", "positive"), ("positive",)


class Forward(NamedTuple):
    """One forward of the UNet: size of the latents, timestep, latents per chunk, what the chunks are."""

    size: tuple[int, int]
    timestep: int
    images: int
    roles: tuple[str, ...]


FORWARDS = Forward((16, 16), 981, 1, BOTH), Forward((24, 16), 1, 2, COND), Forward((17, 12), 500, 2, REVERSED)
SMALL = Forward((16, 8), 261, 1, COND)


class Hosts(NamedTuple):
    """The same UNet in both, and the file of an adapter whose ports all do something."""

    comfy: object
    diffusers: GuidedUNet
    adapter: str


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    path = tmp_path_factory.mktemp("full size") / "adapter.safetensors"
    adapter = fresh_adapter(sd15_sizes())
    randomise(adapter, seed=1)
    with torch.no_grad():
        adapter.dm.blend.copy_(torch.linspace(0.2, 1.0, len(BLOCKS)))
        for block in BLOCKS:
            adapter.kb.block(block).scale.fill_(0.5)
    save_adapter(path, adapter, AdapterInfo("random", "sd15", codebook_sha256="0" * 64))
    return both_hosts(str(path))


def both_hosts(adapter: str, dtype: torch.dtype = torch.float32) -> Hosts:
    comfy = host_model(**SD15, dtype=dtype)
    return Hosts(comfy, in_diffusers(comfy), adapter)


def in_diffusers(model) -> GuidedUNet:
    """diffusers' UNet around the very tensors of the host's."""
    weights = {f"model.diffusion_model.{key}": value for key, value in model.model.diffusion_model.state_dict().items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=BASE_WIDTHS["sd15"], cross_attention_dim=768, attention_head_dim=8)
    unet.load_state_dict(convert_ldm_unet_checkpoint(weights, {**unet.config, "layers_per_block": 2}), assign=True)
    assert unet.conv_in.weight.data_ptr() == model.model.diffusion_model.input_blocks[0][0].weight.data_ptr()
    return GuidedUNet(unet.eval().requires_grad_(False))


def predictions(hosts: Hosts, forward: Forward, level: int | None = None, **strengths) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's output in ComfyUI and in diffusers, float32. level: silence the residuals of the other levels.

    A UNet in bfloat16 works in ComfyUI as on a GPU, all in that type, and in diffusers under autocast, as the trainer runs it: there alone
    the adapter is float32 beside it, as it is trained.
    """
    generator = torch.Generator().manual_seed(forward.timestep)
    latent = torch.randn(forward.images, 4, *forward.size, generator=generator)
    texts = torch.randn(len(forward.roles), 1, 77, 768, generator=generator)
    tokens = tuple(torch.randn(2, 1, 256, 768, generator=generator))
    height, width = forward.size
    picture = torch.zeros(forward.images, 8 * height, 8 * width, 3)
    picture[:, 2 * height : 6 * height, 3 * width : 4 * width] = 1.0
    picture[-1, height : 5 * height, 5 * width : 6 * width, 0] = 0.7

    adapter, _ = pack_file.load_adapter(hosts.adapter, host.ADAPTER_OPERATIONS)
    keep_level(adapter, level)
    patched = host.apply_guidance(hosts.comfy, pack_guidance.adapter_guidance(adapter, tokens, picture, None, **strengths), 0.0, 1.0)
    sigma = float(hosts.comfy.get_model_object("model_sampling").sigmas[forward.timestep])
    found = []
    hook = hosts.comfy.model.diffusion_model.register_forward_hook(lambda *call: found.append(call[-1].float()))
    try:  # the host makes a denoised latent of it, from which small sigmas would bring it back inexactly
        predict(patched, latent * (sigma**2 + 1) ** 0.5, sigma, list(texts), [int(role == "negative") for role in forward.roles])
    finally:
        hook.remove()
    (ours,) = found

    adapter, _ = load_adapter(hosts.adapter)
    keep_level(adapter, level)
    guidance = adapter_guidance(adapter, tokens, picture, None, **strengths)
    text = texts.expand(-1, forward.images, -1, -1).flatten(0, 1)
    timesteps = torch.full((len(text),), forward.timestep)
    half = hosts.diffusers.unet.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        theirs = hosts.diffusers(latent.repeat(len(forward.roles), 1, 1, 1), timesteps, text, guidance, forward.roles).float()
    return ours, theirs


def keep_level(adapter, level: int | None) -> None:
    for other, conv in enumerate(adapter.pose.level_out):
        if level not in (None, other):
            conv.weight.zero_(), conv.bias.zero_()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Greatest difference over the greatest value."""
    return float((one - other).abs().max() / other.abs().max())


def assert_same(hosts: Hosts, forward: Forward, plain: torch.Tensor, level: int | None = None, **strengths) -> None:
    ours, theirs = predictions(hosts, forward, level, **strengths)
    assert apart(ours, theirs) <= 1e-5, (forward, level, strengths)
    assert apart(theirs, plain) > 1e-3, "without effect, agreement shows nothing"


def test_all_ports_together_and_each_alone_agree(hosts):
    for forward, strengths in zip(FORWARDS, (ONLY["pose"], ONLY["dm"], ONLY["kb"])):
        ours, plain = predictions(hosts, forward, **OFF)
        assert apart(ours, plain) <= 1e-5, forward
        assert_same(hosts, forward, plain)
        assert_same(hosts, forward, plain, **strengths)


def test_the_residual_of_each_level_alone_agrees(hosts):
    _, plain = predictions(hosts, SMALL, **OFF)
    for level in range(4):
        assert_same(hosts, SMALL, plain, level, **ONLY["pose"])


def test_bfloat16_rounds_the_steered_unet_no_more_than_the_plain_one(hosts):
    """The bar: the hosts are at most 1.5 times as far apart as they are without an adapter, in the same run."""
    halves = both_hosts(hosts.adapter, torch.bfloat16)
    forwards = FORWARDS[0], SMALL
    plain = max(apart(*predictions(halves, forward, **OFF)) for forward in forwards)
    assert 1e-3 < plain < 0.1, "bfloat16 has 8 bits: other differences are not its rounding"
    assert max(apart(*predictions(halves, forward)) for forward in forwards) <= 1.5 * plain
    for strengths in ONLY.values():
        assert apart(*predictions(halves, SMALL, **strengths)) <= 1.5 * plain
