"""Rows 1 to 4 and 7 of the robustness cases, in the real host: layouts of the batch, sizes, areas and tiles, weights' types, ranges."""

from __future__ import annotations

import pytest
import torch

from testbed.host import import_host
from testbed.host_model import host_model, predict, sample, text
from testbed.host_nodes import run_host_node
from testbed.pack import load_node_module
from testbed.small_adapter import core_adapter, kb_tokens, random_adapter, steer

comfy = import_host()
host = load_node_module("host")
mask_node = load_node_module("dynamic_mask").KBDMDynamicMaskAttention()
SIGMA = 3.0
X = torch.randn(3, 4, 17, 12, generator=torch.Generator().manual_seed(0))
CONDS = [text(seed)[0][0] for seed in (1, 2, 3)]
MASKS = torch.zeros(2, 136, 96)
MASKS[0, 20:90, 10:50] = MASKS[1, 70:, 40:] = 1


def masked(model, mask=MASKS, background="zero", axis="key", start=0.0, end=1.0):
    return mask_node.patch(model, mask, "linear", 1.0, 0.0, 1.0, background, axis, "all", start, end)[0]


def assert_close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def assert_works(ours: torch.Tensor, unpatched: torch.Tensor) -> None:
    """Finite, and steered by more than rounding."""
    assert torch.isfinite(ours).all()
    assert (ours - unpatched).abs().max() > 1e-3 * unpatched.abs().max()


# Row 1: what a batch may look like


@pytest.fixture(scope="module")
def alone(model, adapter):
    """What each image of each cond gets in a forward of its own."""
    branches = [steer(model, adapter, mask=MASKS[i : i + 1]) for i in (0, 1)]
    return {
        (image, index): predict(branches[image % 2], X[image : image + 1], SIGMA, [CONDS[index]], [index])
        for image in range(3)
        for index in range(3)
    }


LAYOUTS = [([0, 1], 1), ([0, 1], 2), ([1, 0], 3), ([0], 2), ([1], 3), ([1, 0, 0], 2), ([2, 1, 0], 2)]


@pytest.mark.parametrize(("layout", "images"), LAYOUTS, ids=str)
def test_every_image_of_every_layout_gets_what_it_gets_alone(model, adapter, alone, layout, images):
    batch = predict(steer(model, adapter, mask=MASKS), X[:images], SIGMA, [CONDS[index] for index in layout], layout)
    for chunk, index in zip(batch.chunk(len(layout)), layout):
        for image in range(images):
            assert_close(chunk[image : image + 1], alone[image, index])


def test_cfg_1_samples_the_positive_alone(model, adapter):
    other_negative = kb_tokens(negative=kb_tokens(seed=8).negative)
    once, again = (steer(model, adapter, kb_tokens=tokens) for tokens in (kb_tokens(), other_negative))
    assert torch.equal(sample(once, cfg=1.0), sample(again, cfg=1.0))
    assert_works(sample(once, cfg=7.0), sample(again, cfg=7.0))
    assert_works(sample(once, cfg=1.0), sample(model, cfg=1.0))


def test_without_free_memory_the_chunks_run_one_by_one_to_the_same_end(model, adapter, monkeypatch):
    steered = steer(model, adapter)
    together = sample(steered, images=2)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 0)
    batches = []
    monkeypatch.setattr(host, "cond_roles", lambda options, roles=host.cond_roles: batches.append(options["cond_or_uncond"]) or roles(options))
    assert_close(sample(steered, images=2), together, 1e-4)
    assert sorted(batches) == [[0]] * 3 + [[1]] * 3


@pytest.mark.parametrize(
    ("module", "node", "settings", "by_name", "by_index"),
    [
        ("nodes_perpneg", "PerpNegGuider", (8.0, 1.0), ["positive", "negative", "negative"], ["positive", "negative", "positive"]),
        ("nodes_custom_sampler", "DualCFGGuider", (8.0, 4.0), ["negative", "positive", "positive"], ["positive", "negative", "positive"]),
    ],
)
def test_three_conds_get_the_tokens_of_their_names(model, adapter, monkeypatch, module, node, settings, by_name, by_index):
    """Hosts without names go by the index: there a dual-CFG guider swaps the KB tokens of its negative and its middle."""
    steered = steer(model, adapter)
    style = {"style": "regular"} if node == "DualCFGGuider" and host.WrappersMP is not None else {}
    seen = {}
    monkeypatch.setattr(
        host, "cond_roles", lambda options, roles=host.cond_roles: seen.update(zip(options["cond_or_uncond"], roles(options))) or roles(options)
    )
    results = []
    for branch in (model, steered):
        guider = run_host_node(module, node, branch, text(1), text(2), text(3), *settings, **style)
        with torch.inference_mode():
            results.append(guider.sample(X[:1], torch.zeros(1, 4, 17, 12), comfy.samplers.ksampler("euler"), torch.tensor([9.0, 3.0, 0.0]), seed=0))
    assert_works(results[1], results[0])
    assert [seen[index] for index in range(3)] == (by_name if host.WrappersMP is not None else by_index)


# Row 2: sizes of latents and masks


@pytest.mark.parametrize("size", [(17, 12), (13, 16), (9, 9), (8, 40), (65, 49), (128, 24)], ids=str)
def test_every_block_knows_its_grid_at_odd_and_wide_sizes(model, adapter, monkeypatch, size):
    """(65, 49) is 392x520 px; (128, 24) is 1024 px high."""
    grids = []
    monkeypatch.setattr(host, "token_grid", lambda *a, grid=host.token_grid: grids.append(grid(*a)) or grids[-1])
    result = sample(steer(model, adapter), size=size, steps=1, cfg=1.0)
    assert result.shape[-2:] == size and torch.isfinite(result).all()
    assert grids == [(-(-size[0] // 2**block.level), -(-size[1] // 2**block.level)) for block in core_adapter.BLOCKS]


def test_a_mask_of_another_size_says_the_same(model):
    small = (torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(4)) > 0.8).float()
    large = small.repeat_interleave(5, 1).repeat_interleave(5, 2)
    x = X[:1, :, :16, :12].repeat(1, 1, 1, 2)[..., :16]  # 16x16: its levels divide both masks
    assert torch.equal(predict(masked(model, small), x, SIGMA, CONDS[:2]), predict(masked(model, large), x, SIGMA, CONDS[:2]))


def test_masks_beyond_the_batch_are_not_used(model):
    more = torch.cat([MASKS, 1 - MASKS, MASKS])
    assert torch.equal(predict(masked(model, more), X[:2], SIGMA, CONDS[:2]), predict(masked(model), X[:2], SIGMA, CONDS[:2]))


def test_an_empty_mask_in_a_batch_leaves_its_own_image_alone(model):
    some = torch.stack([MASKS[0], torch.zeros(136, 96)])
    steered, plain = (predict(m, X[:2], SIGMA, CONDS[:2]) for m in (masked(model, some), model))
    assert torch.equal(steered[1::2], plain[1::2])
    assert_works(steered[0::2], plain[0::2])


def test_a_full_mask_has_no_background(model):
    zero, neutral = (predict(masked(model, torch.ones(1, 8, 8), background), X[:1], SIGMA, CONDS[:2]) for background in ("zero", "neutral"))
    query = predict(masked(model, torch.ones(1, 8, 8), axis="query"), X[:1], SIGMA, CONDS[:2])
    assert torch.equal(zero, neutral)
    assert_close(query, zero)
    assert_works(zero, predict(model, X[:1], SIGMA, CONDS[:2]))


# Row 3: parts of the picture


def regions(mask: bool) -> list:
    """Two prompts for the halves of a 16x16 latent and one for the whole: by areas (the host crops) or by masks."""
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    halves = [{"mask": left}, {"mask": 1 - left}] if mask else [{"area": (16, 8, 0, 0)}, {"area": (16, 8, 0, 8)}]
    return text(1) + text(4, strength=1.0, **halves[0]) + text(5, strength=1.0, **halves[1])


@pytest.mark.parametrize(("mask", "images"), [(False, 1), (True, 1), (True, 2)])
def test_regional_prompts_are_steered(model, adapter, mask, images):
    options = {"size": (16, 16), "images": images, "positive": regions(mask), "steps": 2}
    steered, plain = (sample(m, **options) for m in (steer(model, adapter), model))
    assert_works(steered, plain)
    assert torch.equal(sample(model, **options), plain)


def test_tiles_of_any_size_leave_nothing_behind(model, adapter):
    """Tiled sampling: crops of the latent, in any order, each as if it were the only one."""
    steered = steer(model, adapter)
    tiles = [X[:1, :, :9], X[:1, :, 8:], X[:1], X[:2, :, :9, :8]]
    first = [predict(steer(model, adapter), tile, SIGMA, CONDS[:2]) for tile in tiles]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for i in order:
            assert torch.equal(predict(steered, tiles[i], SIGMA, CONDS[:2]), first[i])


def test_a_second_pass_with_the_same_model_is_as_with_a_fresh_one(model, adapter):
    steered = steer(model, adapter)
    low = sample(steered)
    high = torch.nn.functional.interpolate(low, scale_factor=1.5, mode="nearest")
    second = sample(steered, latent=high, denoise=0.5, steps=2)
    assert torch.equal(second, sample(steer(model, adapter), latent=high, denoise=0.5, steps=2))
    assert_works(second, sample(model, latent=high, denoise=0.5, steps=2))


@pytest.mark.parametrize(
    ("block", "after_skip", "size"),
    [(1, True, (16, 16)), (3, True, (16, 16)), (3, False, (48, 32)), (4, False, (16, 16)), (4, True, (48, 32))],
)
def test_deep_shrink_before_and_after(model, adapter, monkeypatch, block, after_skip, size):
    def shrink(m):
        settings = {"block_number": block, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0}
        methods = {"downscale_after_skip": after_skip, "downscale_method": "bicubic", "upscale_method": "bicubic"}
        return run_host_node("nodes_model_downscale", "PatchModelAddDownscale", m, **settings, **methods)

    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    grids = []
    monkeypatch.setattr(host, "token_grid", lambda *a, grid=host.token_grid: grids.append(grid(*a)) or grids[-1])
    before = predict(steer(shrink(model), adapter), x, SIGMA, CONDS[:1])
    after = predict(shrink(steer(model, adapter)), x, SIGMA, CONDS[:1])
    assert torch.equal(before, after)
    assert_works(after, predict(shrink(model), x, SIGMA, CONDS[:1]))
    assert len(grids) == 2 * len(core_adapter.BLOCKS)
    assert {grid[0] / grid[1] for grid in grids} == {size[0] / size[1]}  # no block is lost, none turned


# Row 4: types of weights


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_weights_of_any_type_give_what_their_values_give(adapter, stored):
    """Stored small, computed in float32: as a float32 model with the rounded weights."""
    small, rounded = host_model(dtype=stored, compute_dtype=torch.float32), host_model()
    values = {key: value.float() for key, value in small.model.diffusion_model.state_dict().items()}
    rounded.model.diffusion_model.load_state_dict(values)
    ours, expected = (predict(steer(m, adapter), X[:1], SIGMA, CONDS[:2]) for m in (small, rounded))
    assert_close(ours, expected)
    assert_works(ours, predict(small, X[:1], SIGMA, CONDS[:2]))


def effect(model, adapter) -> torch.Tensor:
    """What the adapter changes in the prediction."""
    with_it, without = (predict(m, X[:2], SIGMA, CONDS[:2]).float() for m in (steer(model, adapter), model))
    assert_works(with_it, without)
    return (with_it - without).flatten()


@pytest.fixture(scope="module")
def full_effect(model, adapter):
    return effect(model, adapter)


@pytest.mark.parametrize(
    ("computed", "stored"),
    [(torch.float16, torch.bfloat16), (torch.bfloat16, None)],
    ids=str,
)
def test_half_precision_steers_the_same_way(full_effect, computed, stored):
    """stored: the type of the adapter's file (None = float32)."""
    half = effect(host_model(dtype=computed), random_adapter(dtype=stored))
    assert torch.cosine_similarity(half, full_effect, dim=0) > 0.95


def test_half_queries_meet_float_keys_and_values(adapter):
    """Some attn2 patches hand over a float context: the host's fused attention takes one type only."""
    model = host_model(dtype=torch.float16, compute_dtype=torch.bfloat16)
    steered = steer(model, adapter)
    steered.set_model_attn2_patch(lambda n, context, value, extra: (n, context.float(), value.float()))
    expected = predict(steer(model, adapter), X[:1], SIGMA, CONDS[:2]).float()
    assert_close(predict(steered, X[:1], SIGMA, CONDS[:2]).float(), expected, 0.05)


# Row 7: ranges


@pytest.mark.parametrize("patch", ["adapter", "mask"])
def test_a_range_begins_and_ends_where_it_says(model, adapter, patch):
    def denoised(start: float, end: float) -> list[torch.Tensor]:
        branch = steer(model, adapter, start_percent=start, end_percent=end) if patch == "adapter" else masked(model, MASKS, start=start, end=end)
        steps = []
        sample(branch, steps=4, callback=lambda step, x0, x, total: steps.append(x0))
        return steps

    plain, first, second, all_of_it = denoised(1.0, 1.0), denoised(0.0, 0.5), denoised(0.5, 1.0), denoised(0.0, 1.0)
    assert [torch.equal(*pair) for pair in zip(second, plain)] == [True, True, False, False]
    assert [torch.equal(*pair) for pair in zip(first, all_of_it)] == [True, True, False, False]
    assert not torch.equal(all_of_it[0], plain[0])


@pytest.mark.parametrize(("start", "end", "acts"), [(0.0, 1.0, True), (0.999, 1.0, False), (0.0, 0.001, True), (1.0, 0.0, False), (0.5, 0.5, False)])
def test_edges_of_the_range_at_the_first_step(model, adapter, start, end, acts):
    highest = float(model.get_model_object("model_sampling").sigma_max)
    steered = predict(steer(model, adapter, start_percent=start, end_percent=end), X[:1], highest, CONDS[:2])
    assert torch.equal(steered, predict(model, X[:1], highest, CONDS[:2])) is not acts


def test_pose_strength_scales_what_is_added(model, adapter):
    def after_level_0(branch) -> torch.Tensor:
        maps = []
        watched = branch.clone()
        watched.set_model_input_block_patch(lambda h, options: maps.append(h.clone()) or h)
        predict(watched, X[:1], SIGMA, CONDS[:1])
        return maps[2]

    plain = after_level_0(model)
    once, twice = (after_level_0(steer(model, adapter, kb_strength=0.0, dm_strength=0.0, pose_strength=s)) - plain for s in (1.0, 2.0))
    assert_close(twice, 2 * once, 1e-4)
