"""The loop that all stages share: order, journal, signals, checkpoints and resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kbdm_core.errors import KBDMError
from testbed.training import last_step, left_over, listing, metrics, small_run
from train.run.checkpoint import checkpoints
from train.run.journal import METRICS, Journal
from train.run.loop import Run, duration
from train.run.order import Order, fingerprint, generator
from train.run.signals import Interrupted, Signals

STEPS = 12


class Walk:
    """A stage whose state is a random walk: what it becomes depends on every random number since its start."""

    name, inputs = "walk", "the same"

    def __init__(self, run: Run, before: Callable[[int], object] = lambda index: None, end: int = STEPS):
        self.run, self.before, self.end = run, before, end
        self.steps = STEPS
        self.at, self.done = torch.zeros(3), 0

    def step(self, index: int) -> dict[str, float | Tensor]:
        assert index == self.done
        self.before(index)
        self.run.check_alone()
        self.at = 0.9 * self.at + torch.randn(3)
        self.done = index + 1
        return {"first": self.at[0], "number": float(index)}

    def finished(self) -> bool:
        return self.done >= self.end

    def state(self) -> dict:
        return {"at": self.at, "done": self.done}

    def load(self, state: dict) -> None:
        self.at, self.done = state["at"], state["done"]


def walked(folder, before=lambda index: None, end=STEPS, **table) -> Tensor:
    """Where the walk ends."""
    with small_run(folder, **table) as run:
        walk = Walk(run, before, end)
        run.train(walk)
        return walk.at


def signal_at(step: int, signum: int = signal.SIGTERM) -> Callable[[int], None]:
    return lambda index: os.kill(os.getpid(), signum) if index == step else None


def told(folder, stage: str = "walk") -> list[int]:
    return [line["step"] for line in metrics(folder) if line["stage"] == stage]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 1, 7, STEPS - 1])
def test_a_signal_within_a_step_saves_the_last_whole_step_and_the_rest_is_as_if_it_had_not_come(tmp_path, step, signum):
    with pytest.raises(Interrupted) as stop:
        walked(tmp_path / "stopped", signal_at(step, signum), log_every=1)
    assert stop.value.signum == signum
    assert last_step(tmp_path / "stopped", "walk") == step
    assert torch.equal(walked(tmp_path / "stopped", log_every=1), walked(tmp_path / "whole", log_every=1))
    assert told(tmp_path / "stopped") == told(tmp_path / "whole") == list(range(1, STEPS + 1))
    assert not left_over(tmp_path)


def test_a_second_sigint_stops_at_once_and_other_signals_wait(tmp_path):
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            signals.check()
    with small_run(tmp_path):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_error_in_a_step_writes_no_checkpoint_and_keeps_those_before(tmp_path):
    def fail(index: int) -> None:
        if index == 5:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        walked(tmp_path, fail)
    assert last_step(tmp_path, "walk") == 0
    with pytest.raises(RuntimeError, match="out of memory"):
        walked(tmp_path, fail, checkpoint_seconds=0)
    assert last_step(tmp_path, "walk") == 5


@pytest.mark.parametrize(("log_every", "expected"), [(1, list(range(1, 13))), (5, [5, 10, 12]), (100, [12])])
def test_the_journal_has_every_logged_step_once_however_often_the_run_was_stopped(tmp_path, log_every, expected):
    for step in (3, 4, 9):
        with pytest.raises(Interrupted):
            walked(tmp_path, signal_at(step), log_every=log_every)
    walked(tmp_path, log_every=log_every)
    assert told(tmp_path) == expected


def test_lines_after_the_checkpoint_and_a_torn_line_are_written_again(tmp_path):
    """As after kill -9: the journal is ahead of the newest checkpoint."""
    walked(tmp_path, log_every=1, checkpoint_seconds=0, keep=STEPS)
    for path in checkpoints(tmp_path / "walk")[4:]:
        path.unlink()
    with open(tmp_path / METRICS, "a") as opened:
        opened.write('{"stage": "walk", "st')
    whole = metrics(tmp_path)
    walked(tmp_path, log_every=1)
    assert told(tmp_path) == list(range(1, STEPS + 1))
    assert [{**line, "time": 0} for line in metrics(tmp_path)] == [{**line, "time": 0} for line in whole]


def test_a_line_is_the_mean_of_the_steps_since_the_one_before(tmp_path):
    walked(tmp_path, log_every=5)
    assert [line["number"] for line in metrics(tmp_path)] == [2.0, 7.0, 10.5]


def test_rewinding_leaves_other_stages_alone(tmp_path):
    journal = Journal(tmp_path, tensorboard=False)
    for stage, step in (("a", 1), ("b", 1), ("a", 2), ("b", 2)):
        journal.write(stage, step, {"x": 1.0})
    journal.rewind("a", 1)
    assert [(line["stage"], line["step"]) for line in metrics(tmp_path)] == [("a", 1), ("b", 1), ("b", 2)]


def test_what_is_told_once_a_run_stands_once_after_resume(tmp_path):
    for _ in range(2):
        with small_run(tmp_path) as run:
            run.train(Walk(run))
            run.log("report", STEPS, {"x": 1.0})
    assert told(tmp_path, "report") == [STEPS]


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(tmp_path, keep):
    walked(tmp_path, checkpoint_seconds=0, keep=keep)
    assert len(checkpoints(tmp_path / "walk")) == keep and last_step(tmp_path, "walk") == STEPS


def test_checkpoints_wait_for_their_time(tmp_path):
    with pytest.raises(Interrupted):
        walked(tmp_path, signal_at(5), checkpoint_seconds=3600, keep=9)
    assert len(checkpoints(tmp_path / "walk")) == 1


def test_a_stage_that_has_ended_early_has_ended_for_good(tmp_path):
    at = walked(tmp_path, end=4, log_every=100)
    assert last_step(tmp_path, "walk") == 4 and told(tmp_path) == [4]
    assert torch.equal(walked(tmp_path, lambda index: pytest.fail("one more step"), end=4), at)


def test_without_resume_the_walk_begins_again(tmp_path):
    at = walked(tmp_path, log_every=1)
    begun = []
    assert torch.equal(walked(tmp_path, begun.append, resume=False, log_every=1), at)
    assert begun == list(range(STEPS)) and told(tmp_path) == list(range(1, STEPS + 1))


def test_another_seed_walks_elsewhere(tmp_path):
    assert not torch.equal(walked(tmp_path / "0", seed=0), walked(tmp_path / "1", seed=1))


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    walked(tmp_path)
    with small_run(tmp_path) as run:
        walk = Walk(run)
        walk.inputs = "others"
        with pytest.raises(KBDMError, match="other data"):
            run.train(walk)


def test_a_dry_run_takes_one_step_tells_time_and_memory_and_writes_nothing(tmp_path, capfd):
    begun = []
    with small_run(tmp_path / "run", dry=True) as run:
        run.train(Walk(run, begun.append))
        run.log("report", 1, {"x": 1.0})
    said = capfd.readouterr().err
    assert begun == [0] and listing(tmp_path) == {}
    assert "walk: one step took" in said and "12 steps take about" in said and "GiB of RAM" in said


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1.5 h"), (360_000, "100.0 h")])
def test_durations_are_told_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("length", "batch"), [(10, 3), (12, 4), (5, 8), (1, 1), (7, 7), (100, 1)])
def test_an_epoch_sees_each_item_at_most_once_and_all_but_the_remainder(length, batch):
    order = Order(length, batch, seed=0)
    for epoch in range(3):
        seen = torch.cat([order.step(epoch * order.steps_per_epoch + i) for i in range(order.steps_per_epoch)]).tolist()
        assert len(set(seen)) == len(seen) == (length - length % batch if length >= batch else length)
        assert set(seen) <= set(range(length))


def test_epochs_and_seeds_are_shuffled_differently():
    first = [tuple(Order(50, 50, seed).step(epoch).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(first)) == 9


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_out_the_batch_that_one_would_see(world):
    order = Order(23, 6, seed=1)
    for index in range(9):
        parts = [order.step(index, rank, world).tolist() for rank in range(world)]
        assert sorted(item for part in parts for item in part) == sorted(order.step(index).tolist())
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_step_knows_its_items_without_those_before():
    order, again = Order(1000, 7, seed=3), Order(1000, 7, seed=3)
    expected = [order.step(index) for index in range(400)]
    for index in (399, 0, 200, 142, 143):
        assert torch.equal(again.step(index), expected[index])


def test_generators_of_neighbouring_keys_are_unlike():
    keys = [(seed, step, rank) for seed in range(6) for step in range(40) for rank in range(4)]
    draws = torch.stack([torch.rand(8, generator=generator(*key)) for key in keys])
    assert len(draws.unique(dim=0)) == len(keys)
    assert draws.corrcoef().fill_diagonal_(0).abs().mean() < 0.35  # of 8 independent draws: 0.3


def test_a_fingerprint_tells_values_shapes_and_types_apart():
    x = torch.arange(6.0)
    prints = [fingerprint(x), fingerprint(x.reshape(2, 3)), fingerprint(x.double()), fingerprint(x + 1), fingerprint(x, x), fingerprint(x[:3], x[3:])]
    assert len(set(prints)) == len(prints)
    assert fingerprint(x) == fingerprint(x.clone()) == fingerprint(torch.stack([x, x], 1)[:, 0])
