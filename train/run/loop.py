"""The loop of every stage: steps in order, checkpoints, journal, signals, resume; a dry run tells memory and time."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from annotated_types import Ge
from tqdm import tqdm

from kbdm_core.errors import KBDMError
from train.run.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from train.run.journal import METRICS, Journal
from train.run.order import generator
from train.run.signals import Interrupted, Signals


@dataclass(frozen=True)
class RunTable:
    """[run]: where a run keeps its state, and on what it runs. Processes and machines: accelerate launch -m train COMMAND ..."""

    folder: Path | None = None
    """Folder of checkpoints, journal and the resolved recipe. Default: the output's name with .run at the end."""
    seed: int = 0
    """The same seed gives the same run on the same machine."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU if there is one."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast of the forward pass; trained weights stay float32."""
    checkpoint_seconds: Annotated[float, Ge(0)] = 120.0
    """Time between checkpoints; 0 = after every step."""
    keep: Annotated[int, Ge(1)] = 2
    """How many checkpoints of a stage are kept."""
    log_every: Annotated[int, Ge(1)] = 10
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = True
    """Also write TensorBoard event files: tensorboard --logdir FOLDER."""
    resume: bool = True
    """Go on from the newest checkpoint in the folder; off: start anew."""


class Stage(Protocol):
    """What the loop drives. All methods are called by all processes together."""

    name: str
    steps: int
    inputs: str
    """A fingerprint of what it learns from."""

    def step(self, index: int) -> dict[str, float | torch.Tensor]:
        """Do step `index` (from 0) and tell its figures; those with a / in their name go to the journal alone.

        If it raises Interrupted, `state` must still be that before the step.
        """

    def finished(self) -> bool:
        """Whether the stage has ended before its last step."""

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to go on exactly from here."""

    def load(self, state: dict[str, Any]) -> None: ...


class Run:
    """Folder, processes, signals and journal of one command. A context: entering installs the signal handlers."""

    def __init__(self, table: RunTable, folder: Path, dry: bool = False):
        self.table, self.folder, self.dry = table, folder, dry
        self.accelerator = Accelerator(mixed_precision=table.precision, cpu=table.device == "cpu")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.signals = Signals()
        self.journal: Journal | None = None
        self._begun = dry

    def __enter__(self) -> Run:
        self.signals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.signals.__exit__(*error)
        if self.journal is not None:
            self.journal.close()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """A line for the person at the terminal, on stderr, beside progress bars."""
        if self.is_main:
            tqdm.write(text, file=sys.stderr)

    def bar(self, total: int, name: str, unit: str = "step", initial: int = 0) -> tqdm:
        """A progress bar with ETA, on the main process."""
        return tqdm(total=total, initial=initial, desc=name, unit=unit, disable=not self.is_main, dynamic_ncols=True, file=sys.stderr)

    def begin(self) -> None:
        """Start anew if [run] says so, and open the journal. To be called once the inputs are known to be good; `train` does it at the latest."""
        if not self._begun:
            self._begun = True
            if self.is_main:
                if not self.table.resume:
                    start_anew(self.folder)
                self.journal = Journal(self.folder, self.table.tensorboard)
            self.accelerator.wait_for_everyone()

    def check(self) -> None:
        """Raise Interrupted in all processes if any has been asked to stop. All processes must call it together."""
        (signum,) = self._highest(self.signals.received or 0)
        if signum:
            raise Interrupted(signum)

    def check_alone(self) -> None:
        """The check for places that processes do not reach together: raises at once if there is only one, else it waits for `check`."""
        if self.world == 1:
            self.signals.check()

    def _highest(self, *values: int) -> tuple[int, ...]:
        if self.world == 1:
            return values
        shared = torch.tensor(values, device=self.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return tuple(shared.tolist())

    def sum(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors summed over all processes."""
        if self.world > 1:
            for value in values:
                torch.distributed.all_reduce(value)
        return values

    def first(self, compute: Callable[[], Any]) -> Any:
        """What the main process computes, given to all."""
        box = [compute() if self.is_main else None]
        return broadcast_object_list(box)[0] if self.world > 1 else box[0]

    def train(self, stage: Stage) -> None:
        """Take the stage to its end from where its newest checkpoint left it. Raises Interrupted after saving the last whole step."""
        if self.dry:
            return self._try(stage)
        self.begin()
        folder = self.folder / stage.name
        index = self._resume(stage, folder)
        saved, saved_at, sums, count = index, time.monotonic(), {}, 0
        with self.bar(stage.steps, stage.name, initial=index) as bar:
            try:
                while index < stage.steps and not stage.finished():
                    self.check()
                    torch.manual_seed(generator(self.table.seed, index, self.rank).initial_seed())
                    figures = stage.step(index)
                    index += 1
                    bar.update()
                    sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
                    count += 1
                    if index % self.table.log_every == 0 or index == stage.steps or stage.finished():
                        figures = {name: float(value) / count for name, value in sums.items()}
                        sums, count = {}, 0
                        bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items() if "/" not in name})
                        if self.journal is not None:
                            self.journal.write(stage.name, index, figures)
                    (due,) = self._highest(int(time.monotonic() - saved_at >= self.table.checkpoint_seconds))
                    if due:
                        self._save(stage, folder, index)
                        saved, saved_at = index, time.monotonic()
            finally:  # the end, or Interrupted: a checkpoint of the last whole step
                stopping = sys.exc_info()[0]
                if saved != index and (stopping is None or issubclass(stopping, Interrupted)):
                    self._save(stage, folder, index)
        return None

    def log(self, name: str, step: int, figures: dict[str, float]) -> None:
        """Write figures that are told once a run to the journal, in the place of those that the run told before it was resumed."""
        if self.is_main and self.journal is not None:
            self.journal.rewind(name, step - 1)
            self.journal.write(name, step, figures)

    def _save(self, stage: Stage, folder: Path, index: int) -> None:
        state = stage.state()  # collective
        if self.is_main:
            save_checkpoint(folder, index, {"inputs": stage.inputs, "stage": state}, self.table.keep)

    def _resume(self, stage: Stage, folder: Path) -> int:
        """Load the newest checkpoint, which all processes read from the same file; 0 if there is none."""
        path = self.first(lambda: next(reversed(checkpoints(folder)), None))
        index = 0
        if path is not None:
            index, state = load_checkpoint(path)
            if self.first(lambda: state["inputs"] != stage.inputs):
                raise KBDMError(
                    f"{path} is a checkpoint of a run on other data (pictures, captions or features have changed since) or on another number of "
                    "processes. Start anew with --run.no-resume, or choose another --run.folder."
                )
            stage.load(state["stage"])
            self.say(f"{stage.name}: going on from step {index} of {stage.steps} ({path})")
        if self.is_main:
            self.journal.rewind(stage.name, index)
        return index

    def _try(self, stage: Stage) -> None:
        """One step instead of all: tells memory and time."""
        start = time.monotonic()
        figures = stage.step(0)
        seconds = time.monotonic() - start
        shown = ", ".join(f"{name} {float(value):.4g}" for name, value in figures.items() if "/" not in name)
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of RAM at most so far"
        if self.device.type == "cuda":
            memory += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory"
        self.say(f"{stage.name}: one step took {seconds:.2f} s ({shown}); {stage.steps} steps take about {duration(seconds * stage.steps)}; {memory}")


def start_anew(folder: Path) -> None:
    """Delete the journal and the checkpoints of all stages: none may be taken for one of the run that begins now."""
    for old in [*(path for stage in folder.glob("*/") for path in checkpoints(stage)), folder / METRICS]:
        old.unlink(missing_ok=True)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
