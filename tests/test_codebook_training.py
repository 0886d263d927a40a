"""Stage 1: sampling of tokens, the refinement, revival, the literal recipe's collapse, and features from a file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kbdm_core.errors import KBDMError
from train.__main__ import main
from train.knowledge.codebook import CodebookTable, Refinement, codebook_figures, train_codebook
from train.knowledge.codebook_file import load_codebook
from train.knowledge.tokens import sample_tokens, tokens_file
from train.run.loop import Run, RunTable

FAR = np.float32(5)  # tokens of CLIP and patches of photos have a mean far from 0, where a uniform start lies


@pytest.fixture
def run(tmp_path):
    with Run(RunTable(device="cpu", tensorboard=False), tmp_path / "run") as run:
        yield run


@pytest.fixture
def rows() -> np.ndarray:
    """Tokens [items,N,C] in 30 clusters."""
    random = np.random.default_rng(0)
    middles = random.normal(size=(30, 10)) * 2
    return (middles[random.integers(30, size=(200, 16))] + random.normal(size=(200, 16, 10)) * 0.3).astype(np.float32)


def exact_mse(rows: np.ndarray, codebook: torch.Tensor) -> float:
    x = torch.from_numpy(rows).reshape(-1, rows.shape[-1]).double()
    return torch.cdist(x, codebook.double()).amin(-1).square().mean().item() / x.shape[1]


def test_a_sample_of_everything_is_the_arrays_own_memory(rows):
    sample = sample_tokens(rows, 10**6, seed=0, rank=0, world=1)
    assert sample.data_ptr() == rows.ctypes.data and sample.shape == (3200, 10)


@pytest.mark.parametrize("count", [100, 640, 1000])
def test_a_sample_has_tokens_of_many_items_and_each_token_once(rows, count):
    numbered = np.arange(3200, dtype=np.float32).reshape(200, 16, 1).repeat(2, axis=2)
    sample = sample_tokens(numbered, count, seed=0, rank=0, world=1)[:, 0]
    assert len(sample) <= count < len(sample) + 32 and len(sample.unique()) == len(sample)
    parts = [sample_tokens(numbered, count, seed=0, rank=rank, world=3)[:, 0] for rank in range(3)]
    assert len(torch.cat(parts).unique()) == sum(map(len, parts)), "processes share the sample out"
    assert abs(sum(map(len, parts)) - len(sample)) <= 32


def test_the_refinement_starts_where_it_is_told_and_lowers_the_error(run, rows):
    random_start = torch.from_numpy(rows[:2]).reshape(-1, 10)[:24].clone()
    table = CodebookTable(entries=24, epochs=20, batch_tokens=320, learning_rate=1e-2)
    stage = Refinement(run, table, rows, random_start)
    assert torch.equal(stage.codebook, random_start)
    run.train(stage)
    assert exact_mse(rows, stage.codebook) < 0.9 * exact_mse(rows, random_start)


def test_unused_entries_are_revived_after_an_epoch(run, rows):
    start = torch.from_numpy(rows.reshape(-1, 10)[:32].copy())
    start[16:] = 100.0  # far from every token
    table = CodebookTable(entries=32, epochs=2, batch_tokens=320)
    stage = Refinement(run, table, rows, start)
    revived = sum(float(stage.step(index)["revived"]) for index in range(stage.order.steps_per_epoch))
    assert revived >= 16 and stage.codebook.abs().max() < 20
    kept = Refinement(run, CodebookTable(entries=32, epochs=2, batch_tokens=320, revive=False), rows, start)
    for index in range(stage.order.steps_per_epoch):
        kept.step(index)
    assert (kept.codebook > 50).any()


def test_the_literal_recipe_collapses_and_the_default_uses_every_entry(tmp_path, rows):
    figures = {}
    for name, table in {"default": CodebookTable(entries=30), "paper": CodebookTable(entries=30, init="uniform", revive=False, epochs=30)}.items():
        with Run(RunTable(device="cpu", tensorboard=False), tmp_path / name) as run:
            codebook = train_codebook(run, table, rows + FAR)
            figures[name] = codebook_figures(run, rows + FAR, codebook)
    assert figures["default"]["used"] == 30 and figures["paper"]["used"] < 15
    assert figures["default"]["mse"] < 0.5 * figures["paper"]["mse"]


def test_entropy_keeps_more_entries_in_use(tmp_path, rows):
    used = {}
    for weight in (0.0, 1.0):
        with Run(RunTable(device="cpu", tensorboard=False), tmp_path / str(weight)) as run:
            table = CodebookTable(entries=30, init="uniform", revive=False, epochs=20, batch_tokens=320, entropy_weight=weight, learning_rate=1e-2)
            used[weight] = codebook_figures(run, rows + FAR, train_codebook(run, table, rows + FAR))["used"]
    assert used[1.0] > used[0.0]


def test_figures_are_those_of_brute_force(run, rows):
    codebook = torch.from_numpy(rows.reshape(-1, 10)[:40].copy())
    figures = codebook_figures(run, rows, codebook)
    nearest = torch.cdist(torch.from_numpy(rows).reshape(-1, 10), codebook).argmin(-1)
    share = torch.bincount(nearest, minlength=40).double() / len(nearest)
    assert figures["mse"] == pytest.approx(exact_mse(rows, codebook), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(torch.special.entr(share).sum().exp().item(), rel=1e-6)
    assert figures["used"] == len(nearest.unique())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(3200, 10), (200, 16, 10)])
def test_the_command_reads_a_features_file_and_prints_one_json_line(tmp_path, rows, dtype, shape, capsys):
    np.save(tmp_path / "tokens.npy", rows.reshape(shape).astype(dtype))
    output = tmp_path / "codebook.safetensors"
    assert main(["codebook", "--features", str(tmp_path / "tokens.npy"), "--entries", "30", "--output", str(output)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    codebook = load_codebook(output).codebook
    assert found["used"] == 30 and found["mse"] == pytest.approx(exact_mse(rows.astype(dtype), codebook), rel=1e-4)
    assert found["seconds"] > 0 and found["perplexity"] > 10


@pytest.mark.parametrize(
    "content",
    [np.zeros((0, 4), np.float32), np.zeros(4, np.float32), np.zeros((2, 2), np.int64), np.array([{}, {}]), np.zeros((1, 2, 3, 4), np.float32)],
    ids=["empty", "flat", "integers", "objects", "four axes"],
)
def test_other_arrays_are_refused(tmp_path, content):
    np.save(tmp_path / "tokens.npy", content, allow_pickle=True)
    with pytest.raises(KBDMError, match=r"tokens\.npy"):
        tokens_file(tmp_path / "tokens.npy")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    np.savez(tmp_path / "archive.npy.npz", a=np.zeros(3))
    for name in ("text.npy", "archive.npy.npz", "missing.npy"):
        with pytest.raises(KBDMError, match=name):
            tokens_file(tmp_path / name)
