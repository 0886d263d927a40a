"""Bars A2 and A3 in the real host: identity bit for bit, every block and level fires, branches of a graph stay apart."""

from __future__ import annotations

import importlib

import pytest
import torch

from testbed.host_model import predict
from testbed.pack import PACKAGE, load_node_module
from testbed.small_adapter import random_adapter, steer

host = load_node_module("host")
mask_node = load_node_module("dynamic_mask").KBDMDynamicMaskAttention()
sd15 = importlib.import_module(f"{PACKAGE}.kbdm_core.sd15")

SIGMA = 3.0
X = torch.randn(2, 4, 17, 12, generator=torch.Generator().manual_seed(0))
CONDS = [torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
MASK = torch.zeros(1, 136, 96)
MASK[:, 40:100, 30:60] = 1
OFF = {"kb": {"kb_strength": 0.0}, "dm": {"dm_strength": 0.0}, "pose": {"pose_strength": 0.0}}
ONLY = {port: {k: v for other in OFF if other != port for k, v in OFF[other].items()} for port in OFF}


def masked(model, mask=MASK, blend=1.0, gate_start=1.0, start=0.0, end=1.0, background="zero"):
    """Dynamic Mask Attention Patch."""
    return mask_node.patch(model, mask, "constant", gate_start, 0.0, blend, background, "key", "all", start, end)[0]


@pytest.fixture(scope="module")
def unpatched(model):
    return predict(model, X, SIGMA, CONDS)


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(lambda m: masked(m, blend=0.0), id="blend 0"),
        pytest.param(lambda m: masked(m, mask=torch.zeros(1, 50, 50)), id="empty mask"),
        pytest.param(lambda m: masked(m, mask=torch.ones(1, 50, 50), gate_start=0.0), id="soft mask of 1"),
        pytest.param(lambda m: masked(m, start=0.6, end=0.6), id="start >= end"),
        pytest.param(lambda m: steer(m, random_adapter(), kb_strength=0.0, dm_strength=0.0, pose_strength=0.0), id="strength 0"),
        pytest.param(lambda m: steer(m, random_adapter(sections=("dm", "pose")), pose_image=None), id="no mask and no pose"),
        pytest.param(lambda m: steer(m, random_adapter(), start_percent=0.5, end_percent=0.0), id="adapter from 0.5 to 0"),
        pytest.param(lambda m: steer(m, random_adapter(fresh=True)), id="fresh adapter"),
    ],
)
def test_identity_is_bit_identical(model, unpatched, identity):
    assert torch.equal(predict(identity(model), X, SIGMA, CONDS), unpatched)


@pytest.mark.parametrize("only", [*ONLY.values(), {}], ids=[*ONLY, "all"])
def test_each_port_changes_the_prediction_and_leaves_the_other_branch_alone(model, unpatched, only):
    patched = steer(model, random_adapter(), **only)
    assert not torch.equal(predict(patched, X, SIGMA, CONDS), unpatched)
    assert torch.equal(predict(model, X, SIGMA, CONDS), unpatched)


def test_all_16_blocks_and_4_levels_fire(model, monkeypatch):
    fired = {"key": [], "kb": [], "residual": []}
    guidance = importlib.import_module(f"{PACKAGE}.kbdm_core.guidance")
    scale, extra, residual = guidance.Ports.scale_tokens, guidance.Ports.extra_attention, guidance.Ports.residual
    monkeypatch.setattr(guidance.Ports, "scale_tokens", lambda self, block, *a: (fired["key"].append(block), scale(self, block, *a))[1])
    monkeypatch.setattr(guidance.Ports, "extra_attention", lambda self, block, *a: (fired["kb"].append(block.patch_key), extra(self, block, *a))[1])
    monkeypatch.setattr(guidance.Ports, "residual", lambda self, level: (fired["residual"].append(level), residual(self, level))[1])
    predict(steer(model, random_adapter()), X, SIGMA, CONDS)
    every_block = [block.patch_key for block in sd15.BLOCKS]
    assert fired["key"] == every_block and fired["kb"] == every_block  # each once, in the UNet's order
    assert fired["residual"] == [0, 1, 2, 3]


def test_each_block_alone_has_an_effect_through_ports_1_and_2(model, unpatched):
    for block in sd15.BLOCKS:
        for port in ("kb", "dm"):
            adapter = random_adapter()
            with torch.no_grad():
                for other in sd15.BLOCKS:
                    if other.index != block.index:
                        adapter.adapter.kb.block(other).scale.zero_()
                        adapter.adapter.dm.blend[other.index] = 0.0
            assert not torch.equal(predict(steer(model, adapter, **ONLY[port]), X, SIGMA, CONDS), unpatched), (port, block.name)


def test_positive_chunks_use_positive_tokens_in_any_order_of_the_batch(model):
    patched = steer(model, random_adapter(), **ONLY["kb"])
    both = predict(patched, X, SIGMA, CONDS, [0, 1]).chunk(2)
    swapped = predict(patched, X, SIGMA, CONDS[::-1], [1, 0]).chunk(2)
    alone = [predict(patched, X, SIGMA, [cond], [index]) for index, cond in enumerate(CONDS)]
    for index in (0, 1):
        assert torch.allclose(both[index], swapped[1 - index], atol=1e-4)
        assert torch.allclose(both[index], alone[index], atol=1e-4)
    assert not torch.allclose(both[0], predict(patched, X, SIGMA, CONDS[:1], [1]), atol=1e-2)


def test_the_guiders_cond_names_win_over_the_index(model):
    patched = steer(model, random_adapter(), **ONLY["kb"])
    named = {host.COND_NAMES: {"u": "negative"}, "uuids": ["u"]}
    assert torch.equal(predict(patched, X, SIGMA, CONDS[:1], [0], **named), predict(patched, X, SIGMA, CONDS[:1], [1]))


def test_outside_its_percent_range_nothing_happens(model, unpatched):
    sampling = model.get_model_object("model_sampling")
    late = steer(model, random_adapter(), start_percent=0.5)
    early_sigma, late_sigma = float(sampling.percent_to_sigma(0.4)), float(sampling.percent_to_sigma(0.6))
    assert torch.equal(predict(late, X, early_sigma, CONDS), predict(model, X, early_sigma, CONDS))
    assert not torch.equal(predict(late, X, late_sigma, CONDS), predict(model, X, late_sigma, CONDS))


def test_a_pose_pass_is_shared_by_chunks_with_the_same_latent(model, monkeypatch):
    branch = importlib.import_module(f"{PACKAGE}.kbdm_core.pose_branch").PoseBranch
    calls, forward = [], branch.forward
    monkeypatch.setattr(branch, "forward", lambda self, features, *a: (calls.append(features.shape[0]), forward(self, features, *a))[1])
    predict(steer(model, random_adapter()), X, SIGMA, CONDS)
    assert calls == [2]  # two images once, not once per chunk


def test_the_negative_prompt_gets_its_share_of_the_adapter(model, unpatched):
    """Its chunk is as with all strengths times the share: without any, bit for bit that of the model alone. The positive one stays as it was."""
    adapter = random_adapter()
    positive, _ = predict(steer(model, adapter), X, SIGMA, CONDS).chunk(2)
    for share in (0.0, 0.5):
        patched = steer(model, adapter, negative_strength=share)
        weak = steer(model, adapter, kb_strength=share, dm_strength=share, pose_strength=share)
        both, expected = predict(patched, X, SIGMA, CONDS).chunk(2), predict(weak, X, SIGMA, CONDS).chunk(2)[1]
        assert torch.equal(both[0], positive)
        assert torch.allclose(both[1], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert share or torch.equal(both[1], unpatched.chunk(2)[1])
        swapped = predict(patched, X, SIGMA, CONDS[::-1], [1, 0]).chunk(2)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(swapped, both[::-1]))
        alone = predict(patched, X, SIGMA, CONDS[1:], [1])
        assert torch.allclose(alone, both[1], atol=1e-4)
        assert share or torch.equal(alone, predict(model, X, SIGMA, CONDS[1:], [1]))


def test_a_pose_that_the_negative_prompt_does_not_get_is_not_computed_for_it(model, monkeypatch):
    branch = importlib.import_module(f"{PACKAGE}.kbdm_core.pose_branch").PoseBranch
    calls, forward = [], branch.forward
    monkeypatch.setattr(branch, "forward", lambda self, features, *a: (calls.append(features.shape[0]), forward(self, features, *a))[1])
    patched = steer(model, random_adapter(), negative_strength=0.0)
    for indices in ([0], [1], [1, 0]):
        predict(patched, X, SIGMA, [CONDS[index] for index in indices], indices)
    assert calls == [2, 2]  # two images for each forward with the positive prompt


def test_a_masks_batch_repeats_over_the_images(model):
    masks = torch.zeros(2, 60, 60)
    masks[0, :30], masks[1, 30:] = 1, 1
    batch = predict(masked(model, masks), X.repeat(2, 1, 1, 1)[:3], SIGMA, CONDS)
    for image, mask in enumerate((0, 1, 0)):
        single = predict(masked(model, masks[mask : mask + 1]), X.repeat(2, 1, 1, 1)[image : image + 1], SIGMA, CONDS)
        assert torch.allclose(batch[[image, image + 3]], single, atol=1e-4)
