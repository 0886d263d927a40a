"""Checkpoints: any tree of states comes back as it was, the newest are kept, and nothing that is torn is ever loaded."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from kbdm_core.errors import FileFormatError
from testbed.training import differences, left_over
from train.run.checkpoint import FORMAT, checkpoints, load_checkpoint, save_checkpoint

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def restored(folder, state, step=7):
    """The state, saved and loaded."""
    path = save_checkpoint(folder, step, state, keep=2)
    found, loaded = load_checkpoint(path)
    assert found == step
    return loaded


def random_tree(draw: random.Random, depth: int = 0):
    """A tree as stages may have it."""
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind == 0:
        shape = [draw.randrange(4) for _ in range(draw.randrange(4))]
        return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(draw.randrange(1000))).to(draw.choice(DTYPES))
    if kind < 6:
        return (None, draw.random() < 0.5, draw.randrange(-9, 2**60), draw.uniform(-1e300, 1e300), draw.choice(["", "tensor", "ÉTÉ\n日本"]))[kind - 1]
    if kind == 6:
        return [random_tree(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {
        draw.choice([draw.randrange(9), draw.choice(["tensor", "dict", "a.b", ""])]): random_tree(draw, depth + 1) for _ in range(draw.randrange(4))
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_random_tree_comes_back_as_it_was(tmp_path, seed):
    state = {"tree": random_tree(random.Random(seed)), "more": [random_tree(random.Random(100 + seed + i)) for i in range(10)]}
    assert not differences(restored(tmp_path, state), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_keep_their_type_and_every_bit(tmp_path, dtype):
    tensor = torch.arange(-20, 20).reshape(5, 8).T.to(dtype)  # not contiguous
    assert not differences(restored(tmp_path, {"tensor": tensor, "none": tensor[:0], "one": tensor[0, 0]}), {
        "tensor": tensor, "none": tensor[:0], "one": tensor[0, 0],
    })  # fmt: skip
    numbers = {"special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]), "inf": float("inf"), "tiny": 5e-324}
    assert not differences(restored(tmp_path, numbers), numbers)


def test_tensors_that_share_memory_come_back_each_with_its_own(tmp_path):
    whole = torch.arange(6.0)
    state = {"whole": whole, "again": whole, "part": whole[2:4]}
    loaded = restored(tmp_path, state)
    assert not differences(loaded, state)
    loaded["whole"].zero_()
    assert torch.equal(loaded["again"], torch.arange(6.0)) and torch.equal(loaded["part"], torch.tensor([2.0, 3.0]))


def test_names_that_look_alike_do_not_overwrite_each_other(tmp_path):
    state = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), "c": {1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}, "d": [torch.zeros(2)]}
    assert not differences(restored(tmp_path, state), state)


def test_the_state_of_an_optimiser_comes_back(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(layer.parameters(), betas=(0.8, 0.99))
    for _ in range(3):
        layer(torch.randn(4, 3)).square().sum().backward()
        optimiser.step()
    loaded = restored(tmp_path, optimiser.state_dict())
    assert set(loaded["state"]) == {0, 1}  # numbers, not texts
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(layer.state_dict())
    twin = torch.optim.AdamW(other.parameters())
    twin.load_state_dict(loaded)
    for module, its in ((layer, optimiser), (other, twin)):
        its.zero_grad()
        module(torch.ones(4, 3)).square().sum().backward()
        its.step()
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path, keep):
    for step in (1, 2, 9, 10, 99, 100, 12345):
        save_checkpoint(tmp_path, step, {}, keep)
    assert [load_checkpoint(path)[0] for path in checkpoints(tmp_path)] == [1, 2, 9, 10, 99, 100, 12345][-keep:]


def test_what_was_cut_off_in_writing_is_no_checkpoint_and_goes_with_the_next_one(tmp_path):
    save_checkpoint(tmp_path, 1, {}, keep=1)
    (tmp_path / ".step-000000002.safetensors.4711.part").write_bytes(b"half")
    (tmp_path / "step-000000003.safetensors.part").write_bytes(b"of another program")
    (tmp_path / "step-4.safetensors").write_bytes(b"of another program")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000001.safetensors"]
    save_checkpoint(tmp_path, 2, {}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002.safetensors", "step-000000003.safetensors.part", "step-4.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_torn_checkpoint_is_refused_by_name(tmp_path, share):
    path = save_checkpoint(tmp_path, 1, {"x": torch.arange(1000.0)}, keep=1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(FileFormatError, match=path.name):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"step": 1},
        {"step": "1", "tree": {"dict": []}},
        {"step": 1, "tree": {"tensor": "state.absent"}},
        {"step": 1, "tree": {"dict": 5}},
        {"step": 1, "tree": {"dict": [[1]]}},
        {"step": 1, "tree": {}},
        {"step": 1, "tree": {"a": 1, "b": 2}},
        {"step": 1, "tree": {"list": [5]}},
        {"step": 1, "tree": {"dict": [[[], {"value": 1}]]}},
    ],
)
def test_a_tree_that_makes_no_sense_is_refused_by_name(tmp_path, config):
    path = tmp_path / "step-000000001.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"format": FORMAT, "format_version": "1", "config": json.dumps(config)})
    with pytest.raises(FileFormatError, match=path.name):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_checkpoints_as_they_were(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(3)}, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"x": torch.ones(3)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="forks and signals are POSIX")
def test_a_process_that_is_killed_while_it_writes_leaves_whole_checkpoints(tmp_path):
    draw = random.Random(0)
    for _ in range(10):
        if not (child := os.fork()):
            for step in range(1, 10**6):
                save_checkpoint(tmp_path, step, {"x": torch.full((20_000,), float(step))}, keep=2)
        deadline = time.monotonic() + 60
        before = checkpoints(tmp_path)
        while checkpoints(tmp_path) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in checkpoints(tmp_path):
            step, state = load_checkpoint(path)
            assert torch.equal(state["x"], torch.full((20_000,), float(step)))
        for path in checkpoints(tmp_path)[:-1]:  # the next one begins at 1 again
            path.unlink()
    save_checkpoint(tmp_path, 10**6, {}, keep=2)
    assert not left_over(tmp_path)
