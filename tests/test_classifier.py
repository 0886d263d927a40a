"""Classifier: Eq. 7 against a loop, Eq. 8 against its definition, both heads' shapes, gradients."""

from __future__ import annotations

import pytest
import torch

from kbdm_core.classifier import CLASSIFIERS, FactorisedClassifier, MLPClassifier, classifier_loss


def test_factorised_head_is_equation_7_position_by_position():
    torch.manual_seed(0)
    head = FactorisedClassifier(channels=12, tokens=6, entries=9, hidden=8)
    z_t = torch.randn(4, 12)
    y = head(z_t)
    assert y.shape == (4, 6, 9)
    for b in range(4):
        for n in range(6):
            hidden = torch.nn.functional.gelu(head.input.weight @ z_t[b] + head.position[n])
            assert torch.allclose(y[b, n], head.output.weight @ hidden + head.output.bias, atol=1e-6)


def test_literal_head_is_one_mlp_for_all_positions():
    torch.manual_seed(0)
    head = MLPClassifier(channels=12, tokens=6, entries=9, hidden=8)
    z_t = torch.randn(4, 12)
    literal = torch.nn.Sequential(head.input, torch.nn.GELU(), head.output)
    assert torch.equal(head(z_t), literal(z_t).reshape(4, 6, 9))


def test_default_head_is_small():
    weights = sum(p.numel() for p in FactorisedClassifier(channels=768, tokens=256, entries=1024).parameters())
    assert weights < 1_000_000


def test_cross_entropy_is_minus_the_mean_log_probability_of_the_true_entries():
    torch.manual_seed(0)
    z_t, a = torch.randn(3, 6), torch.randint(7, (3, 5))
    head = FactorisedClassifier(channels=6, tokens=5, entries=7)
    y = head(z_t)
    expected = torch.stack([-y[b, n].softmax(-1)[a[b, n]].log() for b in range(3) for n in range(5)]).mean()
    assert torch.allclose(classifier_loss(head, z_t, a), expected, atol=1e-6)


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_loss_and_gradients_in_chunks_are_those_of_all_positions_at_once(kind, chunk):
    torch.manual_seed(0)
    head = CLASSIFIERS[kind](channels=6, tokens=5, entries=7)
    z_t, a = torch.randn(3, 6, dtype=torch.float32), torch.randint(7, (3, 5))
    whole = torch.nn.functional.cross_entropy(head(z_t).flatten(0, 1), a.flatten())
    expected = torch.autograd.grad(whole, tuple(head.parameters()))
    loss = classifier_loss(head, z_t, a, chunk)
    found = torch.autograd.grad(loss, tuple(head.parameters()))
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    for one, other in zip(found, expected):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_gradients_are_those_of_finite_differences(kind):
    torch.manual_seed(0)
    head = CLASSIFIERS[kind](channels=5, tokens=3, entries=4, hidden=6).double()
    a = torch.randint(4, (2, 3))
    names, values = zip(*head.named_parameters())

    def loss(z_t, *weights):
        return classifier_loss(lambda *inputs: torch.func.functional_call(head, dict(zip(names, weights)), inputs), z_t, a, chunk=2)

    z_t = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (z_t, *values))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_both_heads_can_learn_which_entry_belongs_where(kind):
    torch.manual_seed(0)
    head = CLASSIFIERS[kind](channels=8, tokens=4, entries=10, hidden=32)
    z_t, a = torch.randn(6, 8), torch.randint(10, (6, 4))
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        classifier_loss(head, z_t, a).backward()
        optimiser.step()
    assert torch.equal(head(z_t).argmax(-1), a)
