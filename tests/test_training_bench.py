"""The benchmark of the training step: what it works out agrees with counting by hand, what it measures comes from processes of their own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import training
from benchmarks.account import Account, account, counted
from benchmarks.trainees import BASE, OURS, SCALES, TRAINEES, Trainee, random_inputs

SIZE, BATCH = 64, 2
TINY = SCALES["tiny"]
INPUTS = random_inputs(TINY, SIZE, BATCH)


@pytest.fixture(scope="module", params=TRAINEES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trainee(name) -> Trainee:
    return TRAINEES[name](TINY)


@pytest.fixture(scope="module")
def needs(trainee) -> Account:
    """The account on true tensors; the trainee has taken its first steps."""
    return counted(trainee, INPUTS)


def parameters(trainee: Trainee) -> list[Tensor]:
    return [*trainee.trained.parameters(), *trainee.frozen.parameters()]


@pytest.mark.slow
def test_fake_tensors_give_the_account_of_true_ones(name, needs):
    worked_out = account(name, "tiny", SIZE, BATCH)
    assert replace(worked_out, peak=0) == replace(needs, peak=0)
    assert worked_out.peak == pytest.approx(needs.peak, rel=1e-3), "small tensors may be freed a little sooner or later"


def test_weights_gradients_and_moments_are_those_of_a_step(trainee, needs):
    trainee.loss(INPUTS).backward()
    gradients = [value.grad for value in trainee.trained.parameters()]
    assert all(value.grad is None for value in trainee.frozen.parameters()), "nothing of the UNet is trained"
    assert needs.gradients == sum(value.numel() * 4 for value in gradients)
    trainee.optimiser.zero_grad(set_to_none=not trainee.keeps_gradients)
    assert needs.weights == 4 * (needs.trained + needs.frozen) == 4 * sum(value.numel() for value in parameters(trainee))
    steps = len(gradients)  # AdamW's counter of each tensor
    assert needs.moments == 4 * (2 * needs.trained + steps)


def test_what_is_kept_for_the_backward_is_what_the_graph_holds(trainee, needs):
    loss = trainee.loss(INPUTS)
    weights = {value.untyped_storage().data_ptr() for value in parameters(trainee)}
    held, seen, nodes = {}, set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for attribute in dir(node):
            saved = getattr(node, attribute) if attribute.startswith("_saved_") else ()
            tensors = [value for value in (saved if isinstance(saved, tuple | list) else [saved]) if isinstance(value, Tensor)]
            for value in tensors:
                python_number = value.ndim == 0 and value.element_size() == 8
                if not python_number and value.untyped_storage().data_ptr() not in weights:
                    held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    assert needs.saved == sum(held.values()) > 0


def test_the_forwards_operations_are_those_of_its_layers_and_attentions(trainee, needs, monkeypatch):
    found = []

    def count(layer: nn.Module, _, output: Tensor) -> None:
        inside = layer.in_features if isinstance(layer, nn.Linear) else layer.weight[0].numel()  # products per number that comes out
        found.append(2 * output.numel() * inside)

    layers = [layer for module in (trainee.trained, trainee.frozen) for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    attention = F.scaled_dot_product_attention

    def counted_attention(query: Tensor, key: Tensor, *rest, **options) -> Tensor:
        found.append(2 * 2 * query.numel() * key.shape[-2])
        return attention(query, key, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted_attention)
    trainee.loss(INPUTS)
    for hook in hooks:
        hook.remove()
    assert needs.forward == sum(found)


def test_the_peak_is_what_pytorchs_allocator_reports(trainee, needs):
    kept = [value.grad for value in trainee.trained.parameters() if value.grad is not None]
    before = needs.weights + needs.moments + sum(value.nbytes for value in [*kept, *vars(INPUTS).values()])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trainee.step(INPUTS)
    changes = sorted((event.start_ns(), event.nbytes()) for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")
    live = peak = before
    for _, change in changes:
        live += change
        peak = max(peak, live)
    assert needs.peak <= peak <= 1.05 * needs.peak, "all but what kernels need inside"


@pytest.mark.slow
def test_ours_trains_fewer_weights_with_less_memory_and_fewer_operations():
    """At the full size, where the frozen UNet is that of SD1.5 and diffusers' ControlNet has its 361 M weights."""
    ours, theirs = (account(name, "sd15", 256, 1) for name in (OURS, BASE))
    assert ours.frozen == theirs.frozen == 859_520_964 and theirs.trained == 361_279_120
    assert ours.trained < 0.15 * theirs.trained and ours.peak < 0.6 * theirs.peak and ours.flops < theirs.flops


def test_both_learn_from_the_same_pictures_to_foretell_their_noise():
    losses = [float(TRAINEES[name](TINY).step(INPUTS)) for name in (OURS, BASE)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "untrained, both are the base model"


@pytest.mark.slow
def test_the_benchmark_measures_each_in_its_own_process_and_prints_ratios(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "OUT", tmp_path)
    monkeypatch.setattr(training, "TRAINEES", {name: TRAINEES[name] for name in (OURS, BASE)})
    training.main(["--scale", "tiny", "--size", str(SIZE), "--steps", "2", "--rounds", "1", "--threads", "1"])
    said, written = capsys.readouterr().out, json.loads((tmp_path / "training.json").read_text())
    (ours,), (theirs,) = (written["samples"][name] for name in (OURS, BASE))
    report = written["contenders"]
    assert report[OURS]["speed_ratio"] == theirs["seconds"] / ours["seconds"] and report[BASE]["speed_ratio"] == 1
    assert report[OURS]["peak_ratio"] == ours["peak_mb"] / theirs["peak_mb"]
    assert [len(each["steps"]) for each in (ours, theirs)] == [2, 2]
    for each in (ours, theirs):
        assert 0 < each["imports_mb"] < each["peak_mb"]
    here, elsewhere = written["worked_out"]
    assert (here["size"], here["batch"], elsewhere["size"], elsewhere["batch"]) == (SIZE, 1, 512, 4)
    assert elsewhere[OURS]["saved"] > here[OURS]["saved"] and elsewhere[OURS]["trained"] == here[OURS]["trained"]
    assert f"{report[OURS]['speed_ratio']:.3f}" in said and "worked out, not measured" in said


def test_a_contender_that_does_not_fit_or_fails_says_why(tmp_path, monkeypatch, capsys):
    huge = Account(1, 1, 4, 4, 8, 8, 10**15, 1, 1)
    small = Account(1, 1, 4, 4, 8, 8, 10**6, 1, 1)
    monkeypatch.setattr(training, "OUT", tmp_path)
    monkeypatch.setattr(training, "account", lambda name, *_: huge if name == BASE else small)
    monkeypatch.setattr(training, "sample", refuse)
    training.main(["--scale", "tiny", "--rounds", "2"])
    report = json.loads((tmp_path / "training.json").read_text())["contenders"]
    assert "1000001.5 GB" in report[BASE] and report[OURS] == "failed: no such thing"
    assert report[OURS] in capsys.readouterr().out


def refuse(*_) -> training.Sample:
    raise RuntimeError("no such thing")


def test_a_failing_process_is_an_error_with_its_last_words():
    with pytest.raises(RuntimeError, match="invalid choice: 'none'"):
        training.sample("none", "tiny", SIZE, 1, 1, 1)
