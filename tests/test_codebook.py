"""Codebook: the chunked argmin and the gather against brute force, the one-hot product and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from kbdm_core.codebook import codebook_loss, nearest_entries, quantise, usage_entropy


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, 50, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def codebook() -> torch.Tensor:
    return torch.randn(37, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 7, 150, 10_000])
def test_nearest_entries_are_those_of_brute_force(tokens, codebook, chunk):
    expected = torch.cdist(tokens, codebook[None].expand(3, -1, -1)).argmin(-1)
    found = nearest_entries(tokens, codebook, chunk)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


def test_nearest_entries_keep_leading_shapes(tokens, codebook):
    assert nearest_entries(tokens[0, 0], codebook).shape == ()
    assert nearest_entries(tokens.reshape(3, 5, 10, 24), codebook).shape == (3, 5, 10)
    assert nearest_entries(tokens[:, :0], codebook).shape == (3, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_compared_in_float32(tokens, codebook, dtype):
    z_e, e = tokens.to(dtype), codebook.to(dtype)
    assert torch.equal(nearest_entries(z_e, e), nearest_entries(z_e.float(), e.float()))


def test_an_entry_is_nearest_to_itself(codebook):
    assert torch.equal(nearest_entries(codebook, codebook), torch.arange(37))


def test_gather_is_the_one_hot_product(tokens, codebook):
    z_q, a = quantise(tokens, codebook)
    one_hot = torch.nn.functional.one_hot(a, len(codebook)).double()  # Eq. 4
    assert torch.allclose(z_q, one_hot @ codebook, rtol=0, atol=0)  # Eq. 5


def test_loss_is_the_mean_squared_error_with_its_gradient_on_the_codebook_only(tokens, codebook):
    codebook.requires_grad_()
    tokens.requires_grad_()
    z_q, a = quantise(tokens, codebook)
    loss = codebook_loss(z_q, tokens.detach())
    loss.backward()
    expected = torch.zeros_like(codebook)
    for token, entry in zip(tokens.detach().reshape(-1, 24), a.flatten()):
        expected[entry] += 2 * (codebook[entry].detach() - token) / tokens.numel()
    assert loss.item() == pytest.approx(((z_q - tokens) ** 2).mean().item())
    assert torch.allclose(codebook.grad, expected)
    assert tokens.grad is None


def test_gradient_of_the_codebook_is_that_of_finite_differences(tokens, codebook):
    z_e = tokens[0, :12]
    assert torch.autograd.gradcheck(lambda e: codebook_loss(quantise(z_e, e)[0], z_e), (codebook.requires_grad_(),))


def test_usage_entropy_tells_collapse_from_even_use_at_any_scale(codebook):
    for scale in (1e-3, 1.0, 1e3):
        tokens = scale * codebook
        assert usage_entropy(tokens, scale * codebook, 0.01).item() == pytest.approx(math.log(37), abs=1e-3)
        assert usage_entropy(tokens[:1].expand(20, -1), scale * codebook, 0.01).item() == pytest.approx(0, abs=1e-3)


def test_usage_entropy_has_the_gradient_of_finite_differences(codebook):
    tokens = codebook[:9] + 0.5 * torch.randn_like(codebook[:9])
    assert torch.autograd.gradcheck(lambda e: usage_entropy(tokens, e, 0.5), (codebook.requires_grad_(),))
