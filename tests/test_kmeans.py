"""The k-means start: its books against brute force, its result against SciPy's, its moves, and what an interruption leaves."""

from __future__ import annotations

import pytest
import torch
from scipy.cluster.vq import kmeans2

from kbdm_core.codebook import nearest_entries
from train.knowledge.kmeans import TURN, KMeans
from train.run.loop import Run, RunTable
from train.run.signals import Interrupted


@pytest.fixture
def run(tmp_path):
    with Run(RunTable(device="cpu", tensorboard=False), tmp_path) as run:
        yield run


def uneven(count: int = 6000, width: int = 12, centres: int = 60, seed: int = 0) -> torch.Tensor:
    """Tokens around centres of very different sizes and spreads, as patches of pictures are."""
    random = torch.Generator().manual_seed(seed)
    middles = torch.randn(centres, width, generator=random) * 3
    shares = torch.rand(centres, generator=random) ** 3
    which = torch.multinomial(shares, count, replacement=True, generator=random)
    spread = 0.1 + torch.rand(centres, generator=random)
    return middles[which] + torch.randn(count, width, generator=random) * spread[which, None]


def start_of(x: torch.Tensor, entries: int, seed: int = 0) -> torch.Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:entries]].float()


def trained(run, x, start, steps=40) -> KMeans:
    kmeans = KMeans(run, x, start, steps)
    for index in range(steps):
        kmeans.step(index)
        if kmeans.finished():
            break
    return kmeans


def error(x: torch.Tensor, codebook: torch.Tensor) -> float:
    return torch.cdist(x.double(), codebook.double()).amin(-1).square().mean().item() / x.shape[1]


def test_sums_counts_and_errors_are_those_of_the_assignment_after_every_step(run):
    x = uneven(3000)
    kmeans = KMeans(run, x, start_of(x, 80), 20)
    for index in range(10):
        figures = kmeans.step(index)
        now = kmeans.assignment
        sums = torch.zeros(80, 12, dtype=torch.float64).index_add_(0, now.nearest, x.double())
        assert torch.allclose(now.sums, sums, atol=1e-8)
        assert torch.equal(now.counts, torch.bincount(now.nearest, minlength=80).double())
        distances = (x - kmeans.entries[now.nearest]).double().square().sum(-1)
        assert torch.allclose(now.errors, torch.zeros(80, dtype=torch.float64).index_add_(0, now.nearest, distances), rtol=1e-4, atol=1e-3)
        assert figures["mse"] == pytest.approx(distances.mean().item() / 12, rel=1e-5)


def test_tokens_end_at_their_nearest_entry_of_all(run):
    x = uneven()
    kmeans = trained(run, x, start_of(x, 64))
    exact = nearest_entries(x, kmeans.entries)
    assert (exact == kmeans.assignment.nearest).float().mean() > 0.995, "near entries are found without looking at all"


def test_the_cost_of_an_entry_is_what_the_error_grows_by_without_it(run):
    x = uneven(2000)
    kmeans = KMeans(run, x, start_of(x, 20), 20)  # all entries are near one another: costs are exact
    for index in range(TURN - 1):
        kmeans.step(index)
    whole = torch.cdist(x.double(), kmeans.entries.double()).square()
    for entry in range(20):
        without = whole.clone()
        without[:, entry] = torch.inf
        growth = without.amin(-1).sum() - whole.amin(-1).sum()
        assert kmeans.assignment.costs[entry].item() == pytest.approx(growth.item(), rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_error_is_below_that_of_scipys_lloyd_from_the_same_start(run, seed):
    x = uneven(seed=seed)
    start = start_of(x, 128, seed)
    theirs, _ = kmeans2(x.numpy(), start.numpy(), iter=25, minit="matrix", missing="warn")
    assert error(x, trained(run, x, start).codebook) < error(x, torch.from_numpy(theirs))


def test_entries_without_tokens_are_moved_to_where_they_help(run):
    x = uneven()
    start = start_of(x, 64)
    start[32:] = start[0]  # half of the entries are copies of one
    kmeans = trained(run, x, start)
    assert (kmeans.assignment.counts > 0).all()
    assert error(x, kmeans.codebook) < 1.05 * error(x, trained(run, x, start_of(x, 64)).codebook)


def test_separate_clusters_are_all_found_from_a_start_in_one_of_them(run):
    random = torch.Generator().manual_seed(0)
    middles = torch.randn(40, 8, generator=random) * 20
    x = (middles[:, None] + torch.randn(40, 100, 8, generator=random) * 0.1).flatten(0, 1)
    kmeans = trained(run, x, x[:40].clone())
    assert torch.cdist(middles, kmeans.codebook).amin(-1).max() < 0.5


def test_fewer_different_tokens_than_entries_leave_entries_unused_and_nothing_infinite(run):
    x = torch.eye(6).repeat(20, 1)
    kmeans = trained(run, x, x[:10].clone())
    assert error(x, kmeans.codebook) == pytest.approx(0, abs=1e-9)
    assert kmeans.codebook.isfinite().all()
    assert (kmeans.assignment.counts > 0).sum() == 6


def test_half_precision_tokens_are_compared_in_float32(run):
    x = uneven().half()
    start = start_of(x, 32)
    assert torch.equal(trained(run, x, start).codebook, trained(run, x.float(), start).codebook)


@pytest.mark.parametrize("stop_at", [1, 5, 20, 40])
def test_an_interrupted_step_leaves_the_state_before_it(run, monkeypatch, stop_at):
    x = uneven(3000)
    kmeans = KMeans(run, x, start_of(x, 80), 20)
    for index in range(TURN - 1):
        kmeans.step(index)
    before = kmeans.state()
    copies = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in before.items()}
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Interrupted(15)

    monkeypatch.setattr(run, "check_alone", stop)
    with pytest.raises(Interrupted):
        kmeans.step(TURN - 1)  # a step that moves entries
    after = kmeans.state()
    assert all(torch.equal(after[key], copies[key]) for key in ("entries", "sums", "counts", "errors", "costs"))
    assert torch.equal(after["nearest"][0], before["nearest"][0])


def test_a_state_continues_bit_for_bit(run):
    x = uneven()
    start = start_of(x, 64)
    whole, half = KMeans(run, x, start, 20), KMeans(run, x, start, 20)
    for index in range(12):
        whole.step(index)
    for index in range(6):
        half.step(index)
    resumed = KMeans(run, x, start, 20)
    resumed.load(half.state())
    for index in range(6, 12):
        resumed.step(index)
    assert torch.equal(resumed.codebook, whole.codebook)
    assert resumed.enough == whole.enough and resumed.last_turn == whole.last_turn
