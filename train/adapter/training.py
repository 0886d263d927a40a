"""Stage 3: one step of the adapter after the other, on cached latents, with prompts dropped at step time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kbdm_core.adapter import KBDMAdapter
from kbdm_core.sd15 import BLOCKS
from train.adapter.conditions import KBAnswers
from train.adapter.objective import AdapterObjective, Inputs
from train.adapter.table import AdapterTable
from train.adapter.validation import Validation
from train.base.diffusion import NOISE
from train.base.text import TextEncoder
from train.examples.examples import Batch, Examples, Request
from train.run.loop import Run
from train.run.optimisation import Optimisation
from train.run.order import fingerprint, generator

RANDOM = 10  # of this stage, in the keys of its generators


class AdapterTraining:
    """Stage `adapter`. items: the examples to learn from; answers: the knowledge base's, None without a section kb."""

    name = "adapter"

    def __init__(
        self,
        run: Run,
        table: AdapterTable,
        objective: AdapterObjective,
        text: TextEncoder,
        examples: Examples,
        items: Tensor,
        answers: KBAnswers | None,
        validation: Validation | None = None,
    ):
        self.run, self.table, self.text, self.examples, self.answers, self.validation = run, table, text, examples, answers, validation
        self.order = examples.order(max(run.world, table.batch), run.table.seed, items)
        self.steps = table.steps or table.epochs * self.order.steps_per_epoch
        codebook = torch.zeros(0) if answers is None else answers.knowledge_base.codebook
        self.inputs = fingerprint(items, codebook) + examples.fingerprint
        optimiser = make_optimiser(objective.adapter, table)
        self.optimisation = Optimisation(run, objective.to(run.device), optimiser, self.steps, table.warmup, table.schedule, table.clip)
        self.average = AveragedModel(self.adapter, multi_avg_fn=get_ema_multi_avg_fn(table.ema)) if table.ema else None
        self._stream: Iterator[Batch] = iter(())
        self._next = -1

    @property
    def adapter(self) -> KBDMAdapter:
        """The adapter as it is now."""
        return self.optimisation.plain.adapter

    @property
    def result(self) -> KBDMAdapter:
        """The adapter that is exported: the running average, if there is one."""
        return self.adapter if self.average is None else self.average.module

    def finished(self) -> bool:
        return False

    def step(self, index: int) -> dict[str, float | Tensor]:
        if self.validation is not None and self.validation.due(index):  # before the step, whose state an interruption must not change
            self.validation.draw(self.optimisation.plain.guided, self.result, index)
        inputs = self._inputs(index)
        total = len(inputs.latents)
        parts = [slice(start, start + -(-total // self.table.accumulate)) for start in range(0, total, -(-total // self.table.accumulate))]
        losses = [lambda part=part: self.optimisation.module(inputs.part(part)).mean() for part in parts]
        loss = self.optimisation.step(index, losses, self.run.check_alone, [len(inputs.latents[part]) for part in parts])
        project_blend(self.adapter)
        if self.average is not None:
            self.average.update_parameters(self.adapter)
        return {"loss": loss, **scalars(self.adapter)}

    def _request(self, index: int) -> Request:
        bucket, items = self.order.step(index, self.run.rank, self.run.world)
        variants = torch.randint(self.examples.variants, (len(items),), generator=self._random(index, 0))
        return bucket, items, variants

    def _random(self, index: int, purpose: int) -> torch.Generator:
        return generator(self.run.table.seed, RANDOM, index, self.run.rank, purpose)

    def _batch(self, index: int) -> Batch:
        """The step's batch, read while the one before it was learnt from."""
        if index != self._next:
            self._stream = self.examples.batches(self._request(number) for number in range(index, max(self.steps, index + 1)))
        self._next = index + 1
        return next(self._stream)

    def _inputs(self, index: int) -> Inputs:
        """Everything random is drawn on the CPU, so that it does not depend on the device."""
        batch, random, device = self._batch(index), self._random(index, 1), self.run.device
        _, items, _ = self._request(index)
        size = len(items)
        dropped = (torch.rand(size, generator=random) < self.table.prompt_drop).tolist()
        latents = batch.latent_mean + batch.latent_std * torch.randn(batch.latent_mean.shape, generator=random)
        noise = torch.randn(latents.shape, generator=random)
        timesteps = torch.randint(NOISE["num_train_timesteps"], (size,), generator=random)
        prompts = ["" if drop else caption for caption, drop in zip(batch.captions, dropped)]
        states = self.text.states(self.text.tokens(prompts)).float()
        kb_tokens = None if self.answers is None else self.answers.tokens(items.tolist(), dropped).to(device)
        moved = [value.to(device) for value in (latents, noise, timesteps, states)]
        return Inputs(*moved, kb_tokens, batch.pose_pictures.to(device), batch.masks.to(device))

    def state(self) -> dict[str, Any]:
        return {**self.optimisation.state(), "average": self.average.state_dict() if self.average else {}}

    def load(self, state: dict[str, Any]) -> None:
        self.optimisation.load(state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def is_scalar(name: str) -> bool:
    """Whether a parameter is a scale or the blends, which have a group of their own: raw numbers that start at 0."""
    return name.endswith(".scale") or name == "dm.blend"


def make_optimiser(adapter: KBDMAdapter, table: AdapterTable) -> torch.optim.Optimizer:
    """Adam or AdamW with one group per section and kind: each section's learning rate, no decay of vectors, and the scalars' own group."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in adapter.named_parameters():
        rate = table.scalar_rate if is_scalar(name) else table.rate(name.partition(".")[0])
        decay = table.weight_decay if table.optimiser == "adamw" and value.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(value)
    kind = torch.optim.AdamW if table.optimiser == "adamw" else torch.optim.Adam
    return kind([{"params": values, "lr": rate, "weight_decay": decay} for (rate, decay), values in groups.items()], table.learning_rate)


@torch.no_grad()
def project_blend(adapter: KBDMAdapter) -> None:
    """Blends back into [0,1] after a step: the forward never clamps, for a clamp at exactly 0 has no gradient."""
    if "dm" in adapter.sections:
        adapter.dm.blend.clamp_(0.0, 1.0)


def scalars(adapter: KBDMAdapter) -> dict[str, Tensor]:
    """Every scale and every blend, by block, for the journal."""
    found = {}
    for block in BLOCKS:
        if "kb" in adapter.sections:
            found[f"scale/{block.name}"] = adapter.kb.block(block).scale.detach().clone()
        if "dm" in adapter.sections:
            found[f"blend/{block.name}"] = adapter.dm.blend[block.index].detach().clone()
    return found
