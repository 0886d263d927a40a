"""Row 5 of the robustness cases, in the real host: beside the host's own patches and those of other packs, in both orders."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch

from testbed.host import import_host
from testbed.host_model import SD15_UNET, WIDTHS, sample, text
from testbed.host_nodes import run_host_node
from testbed.ip_adapter import GrowingReplace, add_ip_adapter
from testbed.pack import load_node_module
from testbed.random_weights import randomise
from testbed.small_adapter import steer

comfy = import_host()
cldm, controlnets, t2i = (importlib.import_module(f"comfy.{name}") for name in ("cldm.cldm", "controlnet", "t2i_adapter.adapter"))
optimized_attention = importlib.import_module("comfy.ldm.modules.attention").optimized_attention
mask_node = load_node_module("dynamic_mask").KBDMDynamicMaskAttention()
CPU = torch.device("cpu")
SIZE = (16, 16)  # SAG, ToMe and HyperTile of the hosts know no odd sizes


def assert_works(ours: torch.Tensor, without: torch.Tensor) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - without).abs().max() > 1e-3 * without.abs().max()


def masked(model):
    mask = torch.zeros(1, 128, 128)
    mask[:, 40:100, 30:60] = 1
    return mask_node.patch(model, mask, "linear", 1.0, 0.0, 1.0, "zero", "key", "all", 0.0, 1.0)[0]


# Packs that patch the model


def lora(model):
    """What a LoRA loader does: differences to weights, here of attention and of a convolution."""
    patched = model.clone()
    weights = model.model.state_dict()
    keys = [key for key in weights if key.endswith(("attn1.to_k.weight", "attn2.to_q.weight", "input_blocks.2.0.in_layers.2.weight"))]
    generator = torch.Generator().manual_seed(7)
    added = patched.add_patches({key: (0.1 * torch.randn(weights[key].shape, generator=generator),) for key in keys})
    assert len(added) == len(keys) == 33
    return patched


NODES = {
    "LoRA": lora,
    "PAG": lambda m: run_host_node("nodes_pag", "PerturbedAttentionGuidance", m, 3.0),
    "SAG": lambda m: run_host_node("nodes_sag", "SelfAttentionGuidance", m, 0.5, 2.0),
    "FreeU": lambda m: run_host_node("nodes_freelunch", "FreeU", m, 1.1, 1.2, 0.9, 0.2),
    "FreeU V2": lambda m: run_host_node("nodes_freelunch", "FreeU_V2", m, 1.3, 1.4, 0.9, 0.2),
    "HyperTile": lambda m: run_host_node("nodes_hypertile", "HyperTile", m, 64, 2, 1, False),
    "ToMe": lambda m: run_host_node("nodes_tomesd", "TomePatchModel", m, 0.5),
    "Rescale CFG": lambda m: run_host_node("nodes_model_advanced", "RescaleCFG", m, 0.7),
    "zero-terminal SNR": lambda m: run_host_node("nodes_model_advanced", "ModelSamplingDiscrete", m, "eps", True),
}


IN_SELF_ATTENTION = ("PAG", "SAG", "HyperTile", "ToMe")


@pytest.mark.parametrize(("name", "ours"), [*((name, "adapter") for name in NODES), *((name, "mask") for name in IN_SELF_ATTENTION)])
def test_both_orders_give_the_same_and_both_act(model, adapter, name, ours):
    theirs = NODES[name]
    our_node = masked if ours == "mask" else lambda m: steer(m, adapter)
    before, after = sample(our_node(theirs(model)), SIZE, steps=2), sample(theirs(our_node(model)), SIZE, steps=2)
    assert torch.equal(before, after)
    assert_works(after, sample(theirs(model), SIZE, steps=2))
    assert_works(after, sample(our_node(model), SIZE, steps=2))


# ControlNets: not a patch of the model but of the conditioning


def controlnet():
    """The host's own ControlNet of this topology."""
    config = {key: value for key, value in SD15_UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    net = cldm.ControlNet(hint_channels=3, operations=comfy.ops.manual_cast, **config)
    randomise(net, seed=11)
    return controlnets.ControlNet(net.eval(), load_device=CPU)


def t2i_adapter():
    """The host's own T2I-Adapter: residuals of the input blocks only."""
    net = t2i.Adapter(channels=list(WIDTHS), nums_rb=2, cin=192, ksize=1, sk=True, use_conv=False, xl=False)
    randomise(net, seed=12)
    return controlnets.T2IAdapter(net.eval(), 3, 8, "nearest-exact")


@pytest.mark.parametrize("make", [controlnet, t2i_adapter])
@pytest.mark.parametrize("images", [1, 2])
def test_beside_a_controlnet(model, adapter, make, images):
    hint = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    control = make().set_cond_hint(hint, 0.8, (0.0, 1.0))
    conds = {"positive": text(1, control=control, control_apply_to_uncond=True), "negative": text(2, control=control, control_apply_to_uncond=True)}
    steered = steer(model, adapter)
    both = sample(steered, SIZE, images, steps=2, **conds)
    assert_works(both, sample(steered, SIZE, images, steps=2))
    assert_works(both, sample(model, SIZE, images, steps=2, **conds))


# IP-Adapter packs: in the same slots as ours


def test_an_ip_adapter_before_and_after(model, adapter):
    before, after = sample(steer(add_ip_adapter(model), adapter), SIZE), sample(add_ip_adapter(steer(model, adapter)), SIZE)
    assert (before - after).abs().max() <= 1e-4 * after.abs().max()
    assert_works(after, sample(add_ip_adapter(model), SIZE))
    assert_works(after, sample(steer(model, adapter), SIZE))


def test_ip_adapters_on_both_sides_of_ours_and_of_two_of_ours(model, adapter):
    first, second = {"seed": 5}, {"seed": 6}
    around = add_ip_adapter(steer(add_ip_adapter(model, **first), adapter), **second)
    above = add_ip_adapter(add_ip_adapter(steer(model, adapter), **first), **second)
    result = sample(around, SIZE)
    assert (result - sample(above, SIZE)).abs().max() <= 1e-4 * result.abs().max()
    halves = {"kb_strength": 0.5, "dm_strength": 0.0, "pose_strength": 0.0}
    twice = add_ip_adapter(steer(steer(model, adapter, **halves), adapter, **halves))
    once = add_ip_adapter(steer(model, adapter, **{**halves, "kb_strength": 1.0}))
    result = sample(once, SIZE)
    assert (result - sample(twice, SIZE)).abs().max() <= 1e-4 * result.abs().max()


def test_an_added_ip_adapter_keeps_its_own_range(model, adapter):
    """Its range is over when sampling begins: as if it were not there. Ours may be over while its own is not."""
    steered = steer(model, adapter)
    assert torch.equal(sample(add_ip_adapter(steered, start=1e-9), SIZE), sample(steered, SIZE))
    ours_is_over = steer(model, adapter, start_percent=0.0, end_percent=0.001)
    with_ip, without = (sample(m, SIZE, denoise=0.5) for m in (add_ip_adapter(ours_is_over), model))
    assert_works(with_ip, without)
    expected = sample(add_ip_adapter(model), SIZE, denoise=0.5)
    assert (with_ip - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_precise_slot_shadows_the_plain_one(model, adapter):
    """A pack that asks for one transformer of a block: the host looks there first, so ours goes there too."""
    precise = model.clone()
    precise.set_model_attn2_replace(GrowingReplace(), "input", 4, 0)
    steered = steer(precise, adapter, dm_strength=0.0, pose_strength=0.0)
    replaced = steered.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert ("input", 4) not in replaced and ("input", 4, 0) in replaced
    assert_works(sample(steered, SIZE), sample(precise, SIZE))


# Theft of a slot


def steal(model, slots):
    thief = model.clone()
    for slot in slots:
        thief.set_model_attn2_replace(lambda q, k, v, extra: optimized_attention(q, k, v, extra["n_heads"]), *slot)
    return thief


def test_a_stolen_slot_is_told_once(model, adapter, caplog):
    slots = [("input", 1), ("input", 2), ("middle", 0)]
    stolen = steal(steer(model, adapter), slots)
    with caplog.at_level(logging.WARNING, logger="kbdm"):
        first = sample(stolen, SIZE)
        sample(stolen.clone(), SIZE)
    (record,) = [r for r in caplog.records if r.name == "kbdm"]
    assert "13 of 16" in record.getMessage() and all(str(slot) in record.getMessage() for slot in slots)
    assert "after that node" in record.getMessage()
    assert_works(first, sample(model, SIZE))


def test_no_theft_is_told_where_there_is_none(model, adapter, caplog):
    with caplog.at_level(logging.WARNING, logger="kbdm"):
        for branch in (steer(model, adapter), add_ip_adapter(steer(model, adapter)), steer(steal(model, [("input", 1)]), adapter)):
            sample(branch, SIZE)
    assert not [r for r in caplog.records if r.name == "kbdm"]
