"""Bar A1: Dynamic Mask Attention Patch in the real host against a brute-force softmax with the N x N mask spelled out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from testbed.host_model import host_model, predict
from testbed.pack import load_node_module

node = load_node_module("dynamic_mask").KBDMDynamicMaskAttention()
SIGMA = 3.0
GATE = {"gate": "linear", "gate_start": 0.9, "gate_end": 0.1}


@pytest.fixture(scope="module")
def model():
    return host_model(num_heads=2)


@pytest.fixture(scope="module")
def masks():
    """Two masks of a size that is no multiple of any latent's."""
    generator = torch.Generator().manual_seed(5)
    blobs = torch.nn.functional.interpolate(torch.rand(2, 1, 7, 9, generator=generator), (203, 311), mode="bicubic")[:, 0]
    return (blobs > 0.55).float()


def max_pool(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Adaptive max pooling of one mask by loops."""
    out = np.zeros((height, width))
    for row, column in itertools.product(range(height), range(width)):
        top, bottom = math.floor(row * mask.shape[0] / height), math.ceil((row + 1) * mask.shape[0] / height)
        left, right = math.floor(column * mask.shape[1] / width), math.ceil((column + 1) * mask.shape[1] / width)
        out[row, column] = mask[top:bottom, left:right].max()
    return out


def brute_force(model, masks, latent, images, axis, background, blend):
    """The model with every attn1 replaced by softmax((Q K^T / sqrt(d)) .* M) V, M [N,N] built from Eq. 9-10 by hand."""
    sampling = model.get_model_object("model_sampling")
    t = float(sampling.timestep(torch.tensor([SIGMA]))[0])
    g = GATE["gate_start"] + (GATE["gate_end"] - GATE["gate_start"]) * (1 - t / 999)
    sizes = {}
    height, width = latent
    for _ in range(4):
        sizes[height * width] = (height, width)
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    pooled = {n: [max_pool(m.numpy(), *size).reshape(-1) for m in masks] for n, size in sizes.items()}

    def attention(q, k, v, extra):
        heads, n = extra["n_heads"], q.shape[1]
        out = torch.empty_like(q)
        for b, start in itertools.product(range(q.shape[0]), range(0, n, 256)):  # some rows of N x N at a time: it is large
            rows = slice(start, start + 256)
            m = torch.from_numpy(pooled[n][(b % images) % len(masks)]).to(q)
            soft = (1 + g) * m if background == "zero" else 1 + g * m
            soft = 1 + blend * (soft - 1)
            weight = {"key": soft[None], "query": soft[rows, None], "both": soft[None] * soft[rows, None]}[axis]
            qh, kh, vh = (x[b].view(n, heads, -1).transpose(0, 1) for x in (q, k, v))
            logits = qh[:, rows] @ kh.mT / math.sqrt(qh.shape[-1]) * weight  # [heads, 256, N]
            out[b, rows] = (logits.softmax(-1) @ vh).transpose(0, 1).flatten(1)
        return out

    patched = model.clone()
    blocks = [("input", n) for n in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", n) for n in range(3, 12)]
    for name, number in blocks:
        patched.set_model_attn1_replace(attention, name, number)
    return patched


def relative_error(model, masks, latent, images, axis, background, blend):
    generator = torch.Generator().manual_seed(images)
    x = torch.randn(images, 4, *latent, generator=generator)
    conds = [torch.randn(1, 7, 64, generator=generator) for _ in range(2)]
    (ours,) = node.patch(model, masks, **GATE, blend=blend, background=background, axis=axis, blocks="all", start_percent=0.0, end_percent=1.0)
    expected = predict(brute_force(model, masks, latent, images, axis, background, blend), x, SIGMA, conds)
    return float((predict(ours, x, SIGMA, conds) - expected).abs().max() / expected.abs().max())


READINGS = list(itertools.product(("key", "query", "both"), ("zero", "neutral"), (0.0, 0.3, 1.0)))


@pytest.mark.parametrize(("axis", "background", "blend"), READINGS)
def test_every_reading_equals_brute_force(model, masks, axis, background, blend):
    assert relative_error(model, masks, (17, 12), 2, axis, background, blend) <= 1e-5


def test_brute_force_differs_from_the_unpatched_model(model, masks):
    x, conds = torch.randn(1, 4, 17, 12), [torch.randn(1, 7, 64)]
    masked = predict(brute_force(model, masks, (17, 12), 1, "key", "zero", 0.3), x, SIGMA, conds)
    assert (masked - predict(model, x, SIGMA, conds)).abs().max() > 1e-3 * masked.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("latent", "images", "axis", "background", "blend"),
    [
        ((64, 64), 1, "key", "zero", 1.0),
        ((64, 64), 2, "query", "neutral", 0.3),
        ((64, 64), 3, "both", "zero", 0.3),
        ((72, 56), 1, "query", "zero", 0.3),
        ((72, 56), 2, "both", "neutral", 1.0),
        ((72, 56), 3, "key", "neutral", 0.3),
        ((65, 49), 1, "both", "neutral", 0.3),
        ((65, 49), 2, "key", "zero", 1.0),
        ((65, 49), 3, "query", "zero", 1.0),
    ],
)
def test_every_size_and_batch_equals_brute_force(model, masks, latent, images, axis, background, blend):
    assert relative_error(model, masks, latent, images, axis, background, blend) <= 1e-5
