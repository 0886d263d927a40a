"""One optimiser step on one module: accumulation, precision, clipping, schedule; on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch._dynamo
from torch import Tensor, nn

from train.run.loop import Run

Schedule = Literal["cosine", "constant"]


def schedule_factor(index: int, steps: int, warmup: int = 0, schedule: Schedule = "cosine") -> float:
    """Learning rate of step `index` as a fraction of the full one: linear warm-up, then constant or half a cosine down to 0."""
    if index < warmup:
        return (index + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (index - warmup) / max(1, steps - warmup)))


class Optimisation:
    """A module, its optimiser and the schedule. `module` is the prepared one (DistributedDataParallel on several processes)."""

    def __init__(
        self,
        run: Run,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        steps: int,
        warmup: int = 0,
        schedule: Schedule = "cosine",
        clip: float = 0.0,
    ):
        self.run, self.steps, self.warmup, self.schedule, self.clip = run, steps, warmup, schedule, clip
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.module, self.optimiser = run.accelerator.prepare(module, optimiser)

    @property
    def plain(self) -> nn.Module:
        """The module itself, unwrapped."""
        return self.run.accelerator.unwrap_model(self.module)

    def step(self, index: int, losses: Sequence[Callable[[], Tensor]], check: Callable[[], None], sizes: Sequence[int] = ()) -> Tensor:
        """One update by the mean of the micro-steps' losses, computed one after the other -> the loss, detached.

        `sizes` are the micro-steps' numbers of examples, by which their losses weigh; all alike if left out. `check` is called before each.
        """
        accelerator = self.run.accelerator
        shares = [size / sum(sizes) for size in sizes] or [1 / len(losses)] * len(losses)
        self.optimiser.zero_grad()
        total = 0.0
        for number, (compute, share) in enumerate(zip(losses, shares), 1):
            check()
            with accelerator.no_sync(self.module) if number < len(losses) else nullcontext():
                with accelerator.autocast():
                    loss = compute() * share
                accelerator.backward(loss)
            total = total + loss.detach()
        if self.clip:
            accelerator.clip_grad_norm_(self.module.parameters(), self.clip)
        factor = schedule_factor(index, self.steps, self.warmup, self.schedule)
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = rate * factor
        self.optimiser.step()
        return total

    def state(self) -> dict[str, Any]:
        """What `load` needs: trained weights, optimiser and the loss scaler of fp16."""
        scaler = self.run.accelerator.scaler
        trained = {name for name, value in self.plain.named_parameters() if value.requires_grad}
        weights = {name: value for name, value in self.plain.state_dict().items() if name in trained}
        return {"weights": weights, "optimiser": self.optimiser.state_dict(), "scaler": scaler.state_dict() if scaler else {}}

    def load(self, state: dict[str, Any]) -> None:
        missing, unexpected = self.plain.load_state_dict(state["weights"], strict=False)
        trained = {name for name, value in self.plain.named_parameters() if value.requires_grad}
        if unexpected or trained & set(missing):
            raise ValueError(f"the checkpoint's weights do not fit: unexpected {unexpected}, missing {sorted(trained & set(missing))}")
        self.optimiser.load_state_dict(state["optimiser"])
        if self.run.accelerator.scaler is not None:
            self.run.accelerator.scaler.load_state_dict(state["scaler"])
