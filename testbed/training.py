"""Training commands as tests run them: processes of their own on tiny data, which can be watched, stopped and killed."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from kbdm_core.safetensors_file import read
from testbed.scenes import write_scenes
from testbed.tiny_clip import write_tiny_clip
from train.run.checkpoint import checkpoints, load_checkpoint
from train.run.journal import METRICS
from train.run.loop import Run, RunTable

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # seconds after which a process counts as hanging


@dataclass(frozen=True, eq=False)
class Command:
    """A training command under way: `python -m train ARGUMENTS` in a process of its own, forked from one that has all imports."""

    process: Any  # a multiprocessing process
    log: Path
    """What it says on stdout and stderr."""

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def signal(self, signum: int) -> None:
        if self.running:
            os.kill(self.process.pid, signum)

    def status(self) -> int:
        """The exit status as a shell gives it, once it has ended: 128 + n for one that signal n has killed."""
        self.process.join(PATIENCE)
        if self.running:
            self.process.kill()
            raise TimeoutError(f"the command has not ended after {PATIENCE} s: {self.said[-2000:]}")
        code = self.process.exitcode
        return code if code >= 0 else 128 - code


def start(arguments: Sequence[object], log: Path, folder: Path | None = None, slowed: str = "", **environment: str) -> Command:
    """Start a command in `folder`, with this environment besides. slowed: a function, MODULE:NAME, each call of which lasts 0.05 s longer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["open_clip", "testbed.training", "torch._dynamo", "train.inspection", "train.knowledge.commands"])
    texts = [str(argument) for argument in arguments]
    process = context.Process(target=_command, args=(texts, log, folder or log.parent, slowed, environment))
    log.parent.mkdir(parents=True, exist_ok=True)
    process.start()
    return Command(process, log)


def run(arguments: Sequence[object], log: Path, **options: Any) -> str:
    """Run a command that must succeed -> what it said."""
    command = start(arguments, log, **options)
    assert command.status() == 0, command.said
    return command.said


def start_two(arguments: Sequence[object], log: Path) -> list[Command]:
    """Start a command in two processes, which talk by gloo."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [start(arguments, log.with_suffix(f".{rank}"), RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]


def run_two(arguments: Sequence[object], log: Path) -> str:
    """Run a command that must succeed in two processes -> what the main one said."""
    commands = start_two(arguments, log)
    assert [command.status() for command in commands] == [0, 0], "\n".join(command.said for command in commands)
    return commands[0].said


def _command(arguments: list[str], log: Path, folder: Path, slowed: str, environment: dict[str, str]) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # TMPDIR may have changed
    torch.set_num_threads(1)
    if slowed:
        module, _, name = slowed.partition(":")
        place = importlib.import_module(module)
        function = getattr(place, name)
        setattr(place, name, lambda *given: (time.sleep(0.05), function(*given))[1])
    from train.__main__ import main

    sys.exit(main(arguments))


def until(condition: Callable[[], object], command: Command) -> None:
    """Wait for something that a command does. Raises AssertionError if it ends first, or does not do it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, command.said
        assert command.running or condition(), f"too late: {command.said}"
        time.sleep(0.0005)


@contextmanager
def small_run(folder: Path, dry: bool = False, **table: Any) -> Iterator[Run]:
    """A run on the CPU in this process, which is forgotten by accelerate afterwards."""
    with forgotten_accelerator(), Run(RunTable(**{"device": "cpu", "tensorboard": False, **table}), folder, dry) as started:
        yield started


@contextmanager
def forgotten_accelerator() -> Iterator[None]:
    """accelerate knows one precision per process: forget what another test has chosen, and what this one chooses."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@dataclass(frozen=True)
class TinyData:
    """Captioned pictures and a tiny CLIP."""

    pictures: Path
    clip: str
    """Its name in OpenCLIP."""

    def arguments(self, cache: Path) -> list[object]:
        """The tables [data] and [clip] for these, with features in `cache`."""
        return ["--data.root", self.pictures, "--clip.model", self.clip, "--clip.pretrained=", "--clip.cache", cache, "--clip.batch", 4]


def write_tiny_data(folder: Path, count: int) -> TinyData:
    """`count` pictures of known structure and the tiny CLIP."""
    return TinyData(write_scenes(folder / "pictures", count), write_tiny_clip(folder / "clip"))


def write_tokens(path: Path, count: int, width: int = 24, clusters: int = 200, seed: int = 0) -> Path:
    """A features file [count,width], float32: clusters of different sizes, with noise; the same for the same seed."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, width))
    weights = random.dirichlet(np.full(clusters, 0.7))
    tokens = centres[random.choice(clusters, count, p=weights)] + 0.3 * random.standard_normal((count, width))
    np.save(path, tokens.astype(np.float32))
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's journal."""
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def last_step(folder: Path, stage: str) -> int:
    """The step of a stage's newest checkpoint; 0 if there is none."""
    found = checkpoints(folder / stage)
    return int(found[-1].stem.removeprefix("step-")) if found else 0


def product(path: Path) -> dict[str, Any]:
    """What a file of ours holds, apart from the seconds that its training took: the same for the same training."""
    file = read(path, _format(path))
    return {"tensors": file.tensors, "metadata": {key: value for key, value in file.metadata.items() if key != "config"}, **_timeless(file.config)}


def states(folder: Path) -> dict[str, Any]:
    """Step and state of the newest checkpoint of each stage."""
    return {stage.name: load_checkpoint(checkpoints(stage)[-1]) for stage in sorted(folder.glob("*/")) if checkpoints(stage)}


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Where two trees of dicts, lists, tensors and values differ: in types, keys, or any bit of a tensor."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if (a.dtype, a.shape) == (b.dtype, b.shape) and _bytes(a) == _bytes(b) else [f"{name}: {a} is not {b}"]
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b)) for found in differences(*pair, f"{name}.{i}")]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{name}.{key}")]
    return [] if type(a) is type(b) and a == b else [f"{name}: {a!r} is not {b!r}"]


def left_over(folder: Path) -> list[Path]:
    """Files under a temporary name."""
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


def listing(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Size and time of change of all files below, by name; None for folders."""
    found = {}
    for path in folder.rglob("*"):
        status = path.stat()
        found[str(path.relative_to(folder))] = None if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _format(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return opened.metadata()["format"]


def _timeless(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _timeless(value) for key, value in config.items() if key != "seconds"}
    return config
