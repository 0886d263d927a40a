"""Eq. 9-11 in kbdm_core against the literal N x N formula, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kbdm_core.attention import attend, scale_tokens, union_attention
from kbdm_core.dynamic_mask import DynamicMask
from kbdm_core.errors import KBDMError
from kbdm_core.gate import GateSchedule, TimestepGate, timestep_embedding
from kbdm_core.soft_mask import blend, match_batch, pool_mask, soft_mask

HEADS = 2


def literal(q, k, v, weight):
    """softmax((Q K^T / sqrt(d)) .* weight) V with the N x N weight spelled out (Eq. 11). weight [B,N,N]."""
    split = [x.view(*x.shape[:2], HEADS, -1).transpose(1, 2) for x in (q, k, v)]
    logits = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1]) * weight[:, None]
    return (logits.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 30, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.fixture
def mask():
    return (torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) > 0.6).double()


@pytest.mark.parametrize(("axis", "background", "amount"), list(itertools.product(("key", "query", "both"), ("zero", "neutral"), (0.0, 0.3, 1.0))))
def test_scaled_tokens_give_the_literal_masked_softmax(qkv, mask, axis, background, amount):
    q, k, v = qkv
    gate = torch.tensor([[0.7], [0.2]], dtype=torch.float64)
    foreground, elsewhere = 1 + gate, torch.zeros_like(gate) if background == "zero" else torch.ones_like(gate)
    soft = 1 + amount * (torch.where(mask > 0, foreground, elsewhere) - 1)
    rows, columns = soft[:, :, None].expand(-1, -1, 30), soft[:, None].expand(-1, 30, -1)
    weight = {"key": columns, "query": rows, "both": rows * columns}[axis]
    ours = attend(*scale_tokens(q, k, blend(soft_mask(mask, gate, background), amount), axis), v, HEADS)
    assert torch.allclose(ours, literal(q, k, v, weight), atol=1e-12)


@pytest.mark.parametrize("background", ["zero", "neutral"])
def test_union_attention_weighs_a_pair_when_query_or_key_is_pose(qkv, mask, background):
    q, k, v = qkv
    gate = torch.tensor([[0.7], [0.2]], dtype=torch.float64)
    weight = torch.empty(2, 30, 30, dtype=torch.float64)
    for b, i, j in itertools.product(range(2), range(30), range(30)):
        either = mask[b, i] > 0 or mask[b, j] > 0
        weight[b, i, j] = 1 + gate[b, 0] if either else float(background == "neutral")
    assert torch.allclose(union_attention(q, k, v, HEADS, mask, gate, background), literal(q, k, v, weight), atol=1e-12)


def test_masked_attention_has_the_gradients_of_finite_differences(qkv, mask):
    q, k, v = (x[:1, :4].clone().requires_grad_() for x in qkv)
    gate, amount = torch.full((1, 1), 0.4, dtype=torch.float64, requires_grad=True), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, gate, amount):
        soft = blend(soft_mask(mask[:1, :4], gate), amount)
        return attend(*scale_tokens(q, k, soft, "key"), v, HEADS) + union_attention(q, k, v, HEADS, mask[:1, :4], gate)

    assert torch.autograd.gradcheck(run, (q, k, v, gate, amount))


def test_pooled_mask_keeps_a_one_pixel_limb_at_every_size():
    picture = torch.zeros(1, 100, 70)
    picture[0, 3:97, 33] = 1
    for height, width in ((64, 64), (9, 7), (65, 49), (13, 50), (200, 140)):
        pooled = pool_mask(picture, (height, width)).view(height, width)
        for row, column in itertools.product(range(height), range(width)):  # adaptive pooling: floor and ceil of the cell's edges
            top, bottom = row * 100 // height, -(-(row + 1) * 100 // height)
            left, right = column * 70 // width, -(-(column + 1) * 70 // width)
            assert pooled[row, column] == picture[0, top:bottom, left:right].max()


def test_timestep_embedding_is_the_one_of_diffusers():
    get_timestep_embedding = pytest.importorskip("diffusers.models.embeddings").get_timestep_embedding
    t = torch.tensor([0.0, 1.0, 17.0, 500.0, 999.0])
    reference = get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(timestep_embedding(t), reference, atol=1e-5)


def test_gate_lies_strictly_between_0_and_1_and_follows_the_timestep():
    torch.manual_seed(0)
    g = TimestepGate(16)(torch.arange(0, 1000, 37))
    assert g.shape == (28, 16) and (g > 0).all() and (g < 1).all()
    assert (g.std(dim=0) > 0).all()


@pytest.mark.parametrize(("kind", "middle"), [("constant", 0.8), ("linear", 0.5), ("cosine", 0.5)])
def test_schedules_go_from_start_to_end(kind, middle):
    g = GateSchedule(kind, 0.8, 0.2)(torch.tensor([999.0, 499.5, 0.0]))[:, 0]
    assert torch.allclose(g, torch.tensor([0.8, middle, 0.8 if kind == "constant" else 0.2]), atol=1e-6)


def test_an_empty_mask_of_one_image_leaves_that_image_alone():
    masks = torch.zeros(2, 8, 8)
    masks[1, 2:5, 2:5] = 1
    step = DynamicMask(masks, GateSchedule("constant", 0.5, 0.5), torch.ones(1)).at(torch.tensor([10.0]))
    soft = step.soft(("input", 1), (8, 8), 2)
    assert (soft[0] == 1).all()
    assert set(soft[1].tolist()) == {0.0, 1.5}


def test_batches_repeat_or_trim_as_masks_do_in_comfyui():
    assert match_batch(torch.arange(2), 5).tolist() == [0, 1, 0, 1, 0]
    assert match_batch(torch.arange(4), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrong", [{"axis": "rows"}, {"background": "black"}, {"mask": torch.ones(4, 4)}])
def test_unknown_readings_of_the_mask_are_refused(wrong):
    with pytest.raises(KBDMError, match=r"expected one of|MASK of shape"):
        DynamicMask(**{"mask": torch.ones(1, 4, 4), "gate": GateSchedule("constant", 0, 0), "blend": torch.ones(1), **wrong})
