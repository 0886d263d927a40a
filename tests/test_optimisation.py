"""The learning rates and the optimiser's step: those of plain PyTorch, in one part or in many."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from testbed.training import differences, small_run
from train.run.optimisation import Optimisation, schedule_factor
from train.run.signals import Interrupted


def rates(scheduler_of: Callable, steps: int) -> list[float]:
    """The learning rates of a PyTorch schedule on a rate of 1."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = scheduler_of(optimiser), []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_schedule_without_warm_up_is_pytorchs_cosine(steps):
    expected = rates(lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps), steps)
    assert [schedule_factor(index, steps) for index in range(steps)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_warm_up_is_linear_and_the_rest_follows_it(schedule):
    steps, warmup = 40, 10

    def sequence(optimiser):
        linear = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / warmup, 1.0, warmup - 1)
        if schedule == "cosine":
            rest = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps - warmup)
        else:
            rest = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
        return torch.optim.lr_scheduler.SequentialLR(optimiser, [linear, rest], [warmup])

    expected = rates(sequence, steps)
    assert [schedule_factor(index, steps, warmup, schedule) for index in range(steps)] == pytest.approx(expected, abs=1e-6)


def test_a_warm_up_longer_than_the_run_never_reaches_the_full_rate():
    assert [schedule_factor(index, 4, warmup=8) for index in range(4)] == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])


X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(12, 1, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 1))


def optimised(folder, parts: int, steps: int = 5, clip: float = 0.0, **table) -> tuple[nn.Module, list[float], dict]:
    """A small network after some steps of the batch in so many parts, its losses, and the state."""
    with small_run(folder, **table) as run:
        module = network()
        optimisation = Optimisation(run, module, torch.optim.AdamW(module.parameters(), 0.01), steps, clip=clip)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.mse_loss(optimisation.module(x), y)

        losses = [
            float(optimisation.step(index, [lambda part=part: loss(*part) for part in zip(X.chunk(parts), Y.chunk(parts))], run.check))
            for index in range(steps)
        ]
        return optimisation.plain, losses, optimisation.state()


def test_steps_are_those_of_plain_pytorch(tmp_path):
    module, steps, clip = network(), 5, 0.1
    optimiser = torch.optim.AdamW(module.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    expected = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(module(X), Y)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimiser.step()
        scheduler.step()
        expected.append(loss.item())
    found, losses, _ = optimised(tmp_path, 1, steps, clip)
    assert losses == pytest.approx(expected, abs=1e-6)
    for name, value in module.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, atol=1e-6), name


@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_a_batch_in_parts_is_the_whole_batch(tmp_path, parts, clip):
    whole, losses, _ = optimised(tmp_path, 1, clip=clip)
    found, its_losses, _ = optimised(tmp_path, parts, clip=clip)
    assert its_losses == pytest.approx(losses, abs=1e-6)
    for name, value in whole.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, atol=1e-6), name


def test_autocast_computes_in_bfloat16_and_trains_float32(tmp_path):
    _, losses, _ = optimised(tmp_path, 2)
    found, its_losses, state = optimised(tmp_path, 2, precision="bf16")
    assert its_losses != losses and its_losses == pytest.approx(losses, rel=0.02)
    assert all(value.dtype == torch.float32 for value in found.state_dict().values())
    assert all(moment.dtype == torch.float32 for moments in state["optimiser"]["state"].values() for moment in moments.values())


def test_an_interrupted_step_leaves_weights_and_optimiser_as_they_were(tmp_path):
    with small_run(tmp_path) as run:
        module = network()
        optimisation = Optimisation(run, module, torch.optim.AdamW(module.parameters(), 0.01), 5)
        losses = [lambda: nn.functional.mse_loss(optimisation.module(X), Y)] * 2
        optimisation.step(0, losses, run.check)
        saved = {name: value.clone() for name, value in optimisation.plain.state_dict().items()}
        moments = [value.clone() for value in optimisation.optimiser.state_dict()["state"][0].values()]
        checks = iter([None, Interrupted(signal.SIGTERM)])

        def check() -> None:
            if (error := next(checks)) is not None:
                raise error

        with pytest.raises(Interrupted):
            optimisation.step(1, losses, check)
        assert not differences(dict(optimisation.plain.state_dict()), saved)
        assert not differences(list(optimisation.optimiser.state_dict()["state"][0].values()), moments)


def test_only_what_is_trained_is_saved_and_weights_that_do_not_fit_are_refused(tmp_path):
    with small_run(tmp_path) as run:
        module = network()
        module[0].requires_grad_(False)
        trained = [value for value in module.parameters() if value.requires_grad]
        optimisation = Optimisation(run, module, torch.optim.AdamW(trained, 0.01), 5)
        state = optimisation.state()
        assert set(state["weights"]) == {"2.weight", "2.bias"}
        optimisation.load(state)
        for weights in ({"2.weight": torch.zeros(1, 7)}, {**state["weights"], "3.weight": torch.zeros(1)}):
            with pytest.raises(ValueError, match="do not fit"):
                optimisation.load({**state, "weights": weights})
