"""Runs that are killed or stopped, wherever that happens, go on to the same result, bit for bit, and leave no partial file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.training import (
    PATIENCE,
    REPOSITORY,
    TinyData,
    differences,
    last_step,
    left_over,
    metrics,
    product,
    run,
    start,
    states,
    until,
    write_tiny_data,
    write_tokens,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals and forks are POSIX")]

MOMENTS = 20
STAGES = ("kmeans", "codebook", "classifier")
EVERY_STEP = ["--run.checkpoint-seconds", 0]
PICTURES, REPORT = "train.features.extract:_pixels", "train.knowledge.classifier:read_items"  # what to slow down, to meet it
AT_THE_END = ["--run.checkpoint-seconds", 1e9]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return write_tiny_data(tmp_path_factory.mktemp("data"), 64)


def knowledge_base(data: TinyData, folder: Path, *more: object) -> list[object]:
    """The command for a whole knowledge base in folder/kb.safetensors, its features and its run beside it."""
    sizes = ["--codebook.entries", 32, "--codebook.batch-tokens", 128, "--codebook.epochs", 8, "--classifier.least-steps", 50]
    sizes += ["--classifier.epochs", 1, "--data.held-out", 0.5, "--run.log-every", 1, "--run.no-tensorboard", "--run.device", "cpu"]
    return ["knowledge-base", *data.arguments(folder / "cache"), *sizes, "--output", folder / "kb.safetensors", *more]


@dataclass(frozen=True, eq=False)
class Whole:
    """A run that nobody interrupted."""

    product: dict
    states: dict
    steps: list[tuple[str, int]]
    seconds_before: float
    """How long it took until the first line of its journal."""


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Callable[[str], Whole]:
    """The uninterrupted run by the kind of its classifier."""
    known = {}

    def of(kind: str) -> Whole:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            run(["inspect", "--help"], folder / "imports.log")  # the imports are not the run's time
            begun = time.monotonic()
            command = start(knowledge_base(data, folder, "--classifier.kind", kind), folder / "log")
            until(lambda: metrics(folder / "kb.run"), command)
            seconds = time.monotonic() - begun
            assert command.status() == 0, command.said
            known[kind] = Whole(product(folder / "kb.safetensors"), states(folder / "kb.run"), steps(folder / "kb.run"), seconds)
        return known[kind]

    return of


def steps(folder: Path) -> list[tuple[str, int]]:
    """Stage and step of every line of the journal, sorted: what is told once after a stage may move behind lines of the next one."""
    return sorted((line["stage"], line["step"]) for line in metrics(folder))


def assert_as_if_never_interrupted(folder: Path, whole: Whole) -> None:
    assert not differences(product(folder / "kb.safetensors"), whole.product)
    assert not differences(states(folder / "kb.run"), whole.states)
    assert steps(folder / "kb.run") == whole.steps


def test_the_command_line_killed_in_both_parts_of_stage_1_goes_on_bit_for_bit(tmp_path):
    features = write_tokens(tmp_path / "tokens.npy", 30_000, clusters=2000)
    command = ["codebook", "--features", features, "--entries", 256, "--batch-tokens", 1024, "--run.device", "cpu", "--run.log-every", 1]
    command += ["--run.no-tensorboard", *EVERY_STEP]
    run([*command, "--output", tmp_path / "whole.safetensors"], tmp_path / "log")
    in_total = {stage: step for stage, (step, _) in states(tmp_path / "whole.run").items()}
    assert set(in_total) == {"kmeans", "codebook"}

    folder = tmp_path / "killed.run"
    arguments = [sys.executable, "-m", "train", *map(str, command), "--output", str(tmp_path / "killed.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for stage, at in (("kmeans", in_total["kmeans"] // 2), ("codebook", in_total["codebook"] * 3 // 4)):
        with subprocess.Popen(arguments, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + PATIENCE
            while last_step(folder, stage) < at and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.0005)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert at <= last_step(folder, stage) < in_total[stage], "killed too late"
    assert "codebook: going on from step" in run([*command, "--output", tmp_path / "killed.safetensors"], tmp_path / "log")
    assert not differences(product(tmp_path / "killed.safetensors"), product(tmp_path / "whole.safetensors"))
    assert not differences(states(folder), states(tmp_path / "whole.run"))
    assert steps(folder) == steps(tmp_path / "whole.run")


@pytest.mark.parametrize("kind", ["factorised", "mlp"])
def test_the_classifier_killed_half_way_goes_on_bit_for_bit(data, whole, kind, tmp_path):
    command = knowledge_base(data, tmp_path, "--classifier.kind", kind, *EVERY_STEP)
    for stage in STAGES if kind == "factorised" else STAGES[-1:]:
        in_total = whole(kind).states[stage][0]
        killed = start(command, tmp_path / "log")
        until(lambda: last_step(tmp_path / "kb.run", stage) >= in_total // 2, killed)  # noqa: B023 (called at once)
        killed.signal(signal.SIGKILL)
        assert killed.status() == 128 + signal.SIGKILL
        assert not (tmp_path / "kb.safetensors").exists()
    assert f"{STAGES[-1]}: going on from step" in run(command, tmp_path / "log")
    assert_as_if_never_interrupted(tmp_path, whole(kind))


def test_sigterm_at_random_moments_loses_no_whole_step_and_leaves_no_partial_file(data, whole, tmp_path):
    draw, expected = random.Random(0), whole("factorised")
    lines = len(expected.steps) - 3  # after these come only the report of held-out pictures, see below, and the knowledge base
    for number in range(MOMENTS):
        folder = tmp_path / str(number)
        command = knowledge_base(data, folder, *AT_THE_END)
        stopped = start(command, folder / "log", slowed=REPORT)  # the last moment must not come too late
        part = (number + draw.random()) / MOMENTS  # of the whole: a third until the first line of the journal, by the clock, then by lines
        if part < 1 / 3:
            time.sleep(3 * part * expected.seconds_before)
        else:
            until(lambda: len(metrics(folder / "kb.run")) >= (1.5 * part - 0.5) * lines, stopped)  # noqa: B023 (called at once)
        stopped.signal(signal.SIGTERM)
        assert stopped.status() == 128 + signal.SIGTERM, stopped.said
        assert "Traceback" not in stopped.said
        assert not left_over(tmp_path)
        assert not (folder / "kb.safetensors").exists()
        logged = dict(steps(folder / "kb.run"))  # the last step of each stage
        for stage in STAGES:
            assert last_step(folder / "kb.run", stage) == logged.get(stage, 0), f"{stage}, moment {number}"
        run(command, folder / "log")
        assert_as_if_never_interrupted(folder, expected)


@pytest.mark.parametrize(
    ("words", "slowed", "signum", "following"),
    [
        ("tokens:", PICTURES, signal.SIGTERM, "kmeans"),
        ("classifier: nearest entries:", REPORT, signal.SIGTERM, "classifier"),
        ("classifier: held-out pictures:", REPORT, signal.SIGINT, "held_out_classifier"),
    ],
)
def test_signals_are_obeyed_in_the_loops_that_are_no_stage(data, whole, words, slowed, signum, following, tmp_path):
    command = knowledge_base(data, tmp_path)
    stopped = start(command, tmp_path / "log", slowed=slowed)
    until(lambda: words in stopped.said, stopped)
    stopped.signal(signum)
    assert stopped.status() == 128 + signum, stopped.said
    assert stopped.said.rstrip().endswith(f"stopped by {signum.name}; run the same command again to go on.")
    assert following not in dict(steps(tmp_path / "kb.run"))
    assert not left_over(tmp_path)
    assert not (tmp_path / "kb.safetensors").exists()
    (rows,) = (len(keys.read_text().split()) for keys in tmp_path.glob("cache/tokens-*/shard-*.keys"))
    assert rows < 64 if slowed == PICTURES else rows == 64
    run(command, tmp_path / "log")
    assert_as_if_never_interrupted(tmp_path, whole("factorised"))
