"""Rows 6, 9 and 14 of the robustness cases, in the real host: branches of a graph, memory, and runs that were interrupted."""

from __future__ import annotations

import copy
import importlib
import types

import pytest
import torch

from testbed.host import import_host
from testbed.host_model import host_model, predict, sample, text
from testbed.ip_adapter import add_ip_adapter
from testbed.pack import load_node_module
from testbed.small_adapter import kb_tokens, random_adapter, steer

comfy = import_host()
host = load_node_module("host")
try:  # comfyui 0.0.1 (June 2024)
    Interrupted = importlib.import_module("comfy.interruption").InterruptProcessingException
except ModuleNotFoundError:
    Interrupted = comfy.model_management.InterruptProcessingException
mask_node = load_node_module("dynamic_mask").KBDMDynamicMaskAttention()
ONLY_KB = {"dm_strength": 0.0, "pose_strength": 0.0}
MASK = torch.zeros(1, 136, 96)
MASK[:, 40:100, 30:60] = 1


@pytest.fixture(scope="module")
def plain(model):
    return sample(model)


@pytest.fixture(scope="module")
def steered(model, adapter):
    return sample(steer(model, adapter))


def masked(model):
    return mask_node.patch(model, MASK, "linear", 1.0, 0.0, 1.0, "neutral", "key", "all", 0.0, 1.0)[0]


def close(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((ours - expected).abs().max() <= 1e-4 * expected.abs().max())


# Row 6: one graph, many branches


def test_all_branches_of_a_graph_stay_apart(model, adapter, plain, steered):
    """Each branch gives what it gives alone, in whatever order they are sampled; the unpatched one bit for bit."""
    other = random_adapter(seed=5)
    branches = {
        "plain": (model, plain),
        "adapter": (steer(model, adapter), steered),
        "other adapter": (steer(model, other), sample(steer(host_model(), other))),
        "other tokens": (steer(model, adapter, kb_tokens=kb_tokens(seed=9)), sample(steer(host_model(), adapter, kb_tokens=kb_tokens(seed=9)))),
        "mask": (masked(model), sample(masked(host_model()))),
    }
    results = [alone for _, alone in branches.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    for name in [*branches, *reversed(branches), "plain"]:
        branch, alone = branches[name]
        assert torch.equal(sample(branch), alone), name


def test_the_node_leaves_its_model_untouched_and_can_run_again(model, adapter, steered):
    before = copy.deepcopy(model.model_options)
    tokens = kb_tokens()
    kept = tokens.positive.clone(), tokens.negative.clone()
    first = steer(model, adapter, kb_tokens=tokens)
    again = steer(model, adapter, kb_tokens=tokens)
    assert model.model_options == before == {"transformer_options": {}}
    for branch in (first, again, first):
        assert torch.equal(sample(branch), steered)
    assert torch.equal(tokens.positive, kept[0]) and torch.equal(tokens.negative, kept[1])


def test_forwards_of_another_picture_between_the_steps(model, adapter, steered):
    """Detailers and previews run the same MODEL at another size and batch while a sampler is at work."""
    branch = steer(model, adapter)
    x, cond = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0)), text(4)[0][0]
    between = []
    assert torch.equal(sample(branch, callback=lambda step, x0, at, total: between.append(predict(branch, x, 3.0, [cond]))), steered)
    assert len(between) == 3 and all(torch.equal(result, predict(steer(model, adapter), x, 3.0, [cond])) for result in between)


def test_two_patches_chained_both_act(model, adapter, plain, steered):
    chains = [steer(masked(model), adapter, dm_strength=0.0), masked(steer(model, adapter, dm_strength=0.0))]
    both, turned = (sample(chain) for chain in chains)
    assert close(both, turned)
    for single in (plain, sample(masked(model)), sample(steer(model, adapter, dm_strength=0.0))):
        assert not close(both, single)


def test_half_the_knowledge_base_applied_twice_is_all_of_it(model, adapter):
    half = steer(model, adapter, kb_strength=0.5, **ONLY_KB)
    twice = steer(half, adapter, kb_strength=0.5, **ONLY_KB)
    whole = sample(steer(model, adapter, kb_strength=1.0, **ONLY_KB))
    assert close(sample(twice), whole)
    assert not close(sample(half), whole)  # and the branch below keeps its half


CLONES = ["all is copied"] + (["containers are copied"] if host.CallbacksMP is not None else [])


@pytest.fixture(params=CLONES)
def clone_rule(request, monkeypatch):
    """Both rules of ModelPatcher.clone(): hosts of 2024 and 2025 deep-copy model_options, later ones copy dicts and lists only."""
    if request.param == "containers are copied":
        from comfy.patcher_extension import copy_nested_dicts

        monkeypatch.setattr(comfy.model_patcher, "copy", types.SimpleNamespace(deepcopy=copy_nested_dicts, copy=copy.copy))
    return request.param


def test_an_ip_adapter_on_one_branch_does_not_reach_its_sibling(clone_rule, model, adapter, plain, steered):
    branch = steer(model, adapter)
    sibling = branch.clone()
    with_ip = add_ip_adapter(branch)
    grandchild = add_ip_adapter(with_ip.clone(), seed=6)
    assert not close(sample(with_ip), steered)
    assert not close(sample(grandchild), sample(with_ip))
    for untouched in (branch, sibling, branch.clone()):
        assert torch.equal(sample(untouched), steered)
    assert torch.equal(sample(model), plain)


def test_clones_share_what_was_prepared(clone_rule, model, adapter):
    """Patches are cheap to copy: a clone holds the same binding, so keys and values are not made again."""
    branch = steer(model, adapter)
    slots = [m.model_options["transformer_options"]["patches_replace"]["attn2"] for m in (branch, branch.clone())]
    assert all(slots[0][slot] is not slots[1][slot] and slots[0][slot].binding is slots[1][slot].binding for slot in slots[0])


def test_patches_of_a_list_are_not_shared_with_the_model_before(clone_rule, model, adapter, plain):
    first = masked(model)
    before = sample(first)
    steer(first, adapter)
    assert torch.equal(sample(first), before)
    assert torch.equal(sample(model), plain)


# Row 9: memory


def test_unloaded_and_loaded_again(model, adapter, plain, steered):
    branch = steer(model, adapter)
    for _ in range(2):
        assert torch.equal(sample(branch), steered)
        comfy.model_management.unload_all_models()
    assert torch.equal(sample(model), plain)


@pytest.mark.parametrize("place", [torch.device("cpu"), torch.device("meta"), torch.float16, torch.float32], ids=str)
def test_moving_the_patches_loses_nothing(model, adapter, steered, place):
    """The host calls .to() with a device, some packs with a dtype. `meta` stands for a device that is not there any more."""
    branch = steer(model, adapter)
    sample(branch)
    branch.model_patches_to(place)
    branch.model_patches_to(torch.device("cpu"))
    assert torch.equal(sample(branch), steered)
    assert all(parameter.device.type == "cpu" for parameter in adapter.adapter.parameters())


def test_the_other_device_keeps_nothing_that_was_prepared(model, adapter):
    branch = steer(model, adapter)
    sample(branch, steps=1)
    patch = branch.model_options["transformer_options"]["patches"]["input_block_patch"][0]
    guidance = patch.binding.guidance
    caches = [guidance.kb._cache, guidance.pose._cache, guidance.mask._pooled]
    assert all(caches)
    branch.model_patches_to(torch.device("meta"))
    assert not any(caches)


def test_the_host_counts_the_adapters_weights_once(model, adapter):
    """Hosts that ask patches for their models load and offload the adapter like any model."""
    branch = steer(model, adapter)
    if host.HOST_LOADS_PATCH_MODELS:
        assert branch.model_patches_models() == [adapter.weights]
    assert sum(len(p.models()) for p in branch.model_options["transformer_options"]["patches"]["input_block_patch"]) == 1


def test_a_lora_in_between_is_seen_although_keys_and_values_are_kept(model, adapter, steered):
    """What the pack keeps between runs depends on its own weights only, never on the model's."""
    branch = steer(model, adapter)
    sample(branch)
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    changed = branch.clone()
    changed.add_patches({key: (torch.randn(32, 32, generator=torch.Generator().manual_seed(1)),)})
    result = sample(changed)
    fresh = model.clone()
    fresh.add_patches({key: (torch.randn(32, 32, generator=torch.Generator().manual_seed(1)),)})
    assert torch.equal(result, sample(steer(fresh, adapter)))
    assert not close(result, steered)
    assert torch.equal(sample(branch), steered)


# Row 14: interrupted


@pytest.mark.parametrize("step", [0, 1])
def test_interrupted_then_queued_again(model, adapter, plain, steered, step):
    branch = steer(model, adapter)

    def interrupt(at, x0, x, total):
        if at == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        sample(branch, callback=interrupt)
    assert torch.equal(sample(branch), steered)
    assert torch.equal(sample(model), plain)


def test_interrupted_inside_a_forward_then_queued_again(model, adapter, steered):
    """The host checks for the button in every block: a forward may end half-way."""
    branch = steer(model, adapter)
    stopped = branch.clone()

    def interrupt(h, options):
        if options["block"] == ("input", 5):
            raise Interrupted
        return h

    stopped.set_model_input_block_patch(interrupt)
    with pytest.raises(Interrupted):
        sample(stopped)
    assert torch.equal(sample(branch), steered)


def test_other_prompts_after_a_run_are_other_pictures(model, adapter, steered):
    branch = steer(model, adapter)
    sample(branch)
    other = sample(branch, positive=text(8))
    assert torch.equal(other, sample(steer(model, adapter), positive=text(8)))
    assert not close(other, steered)
