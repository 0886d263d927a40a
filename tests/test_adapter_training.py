"""Bars C5 and C8: the adapter's trainer goes on bit for bit, exports the contract's keys alone, and moves every tensor; what it refuses."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from kbdm_core.adapter import SECTIONS, fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import load_adapter
from kbdm_core.sd15 import BLOCKS
from testbed.sample_data import write_folder
from testbed.tiny_base import WIDTHS, write_tiny_base, write_tiny_knowledge_base
from testbed.tiny_controlnet import write_tiny_controlnet
from testbed.training import differences, left_over, listing, metrics, product, run, run_two, start, states, until
from train.__main__ import main
from train.base.checkpoint import read_base, text_projections

POSE = ("--pose-width", 32, "--pose-stem", 8, 8, 8, 8)
SIZES = sd15_sizes(WIDTHS, SECTIONS, 16, 24, pose_width=32, pose_stem=(8, 8, 8, 8))


@dataclass(frozen=True)
class Inputs:
    base: Path
    knowledge_base: Path
    pictures: Path
    controlnet: Path
    cache: Path

    def arguments(self, output: Path, *more: object) -> list[object]:
        """The command for a small adapter in `output`, with all sections unless `more` says otherwise."""
        files = ["--base.checkpoint", self.base, "--knowledge-base", self.knowledge_base, "--data.root", self.pictures, "--output", output]
        sizes = ["--batch", 2, "--warmup", 0, "--examples.resolution", 64, "--examples.cache", self.cache, "--data.held-out", 0.2, *POSE]
        quick = ["--validation.pictures", 0, "--run.no-tensorboard", "--run.device", "cpu", "--run.log-every", 1]
        return ["adapter", *files, *sizes, *quick, *more]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    return Inputs(
        write_tiny_base(folder / "base.safetensors"),
        write_tiny_knowledge_base(folder / "kb.safetensors"),
        write_folder(folder / "pictures", 12),
        write_tiny_controlnet(folder / "controlnet.safetensors"),
        folder / "latents",
    )


def trained(inputs: Inputs, folder: Path, *more: object) -> dict:
    """Train in a process of its own -> what the file holds."""
    run(inputs.arguments(folder / "adapter.safetensors", *more), folder / "log")
    return product(folder / "adapter.safetensors")


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_to_the_same_adapter_bit_for_bit(inputs, tmp_path):
    """Bar C5."""
    settings = ("--steps", 12, "--ema", 0.9, "--run.checkpoint-seconds", 0, "--run.keep", 1)
    whole = trained(inputs, tmp_path / "whole", *settings)
    command = start(inputs.arguments(tmp_path / "killed/adapter.safetensors", *settings), tmp_path / "killed/log")
    until(lambda: len(metrics(tmp_path / "killed/adapter.run")) >= 6, command)
    command.signal(signal.SIGKILL)
    assert command.status() == 128 + signal.SIGKILL and not (tmp_path / "killed/adapter.safetensors").exists()
    again = trained(inputs, tmp_path / "killed", *settings)
    assert not differences(whole["tensors"], again["tensors"])
    assert not differences(states(tmp_path / "whole/adapter.run"), states(tmp_path / "killed/adapter.run"))
    assert not left_over(tmp_path)


@pytest.mark.slow
def test_the_export_holds_the_contracts_keys_and_no_base_weight(inputs, tmp_path):
    """Bar C5, and the metadata that Apply compares."""
    made = trained(inputs, tmp_path, "--steps", 1)
    assert made["tensors"].keys() == fresh_adapter(SIZES).state_dict().keys()
    metadata = made["metadata"]
    assert (metadata["format"], metadata["base"]) == ("kbdm.adapter", "sd15-32-64-96-96")
    assert metadata["base_sha256"] == read_base(inputs.base).sha256
    with safe_open(inputs.knowledge_base, "pt") as opened:
        assert metadata["codebook_sha256"] == opened.metadata()["codebook_sha256"]
    load_adapter(tmp_path / "adapter.safetensors")


@pytest.mark.slow
def test_after_200_steps_every_tensor_has_moved_and_every_scale_and_blend_is_in_the_log(inputs, tmp_path):
    """Bar C8."""
    made = trained(inputs, tmp_path, "--steps", 200)
    fresh = fresh_adapter(SIZES, text_projections=text_projections(read_base(inputs.base))).state_dict()
    assert [key for key, value in fresh.items() if torch.equal(value, made["tensors"][key])] == []
    last = metrics(tmp_path / "adapter.run")[-1]
    for block in BLOCKS:
        assert last[f"scale/{block.name}"] == pytest.approx(float(made["tensors"][f"kb.{block.name}.scale"]), abs=1e-7)
        assert last[f"blend/{block.name}"] == pytest.approx(float(made["tensors"]["dm.blend"][block.index]), abs=1e-7)
        assert 0 <= last[f"blend/{block.name}"] <= 1


@pytest.mark.slow
def test_an_adapter_goes_on_from_another_and_every_part_may_be_chosen(inputs, tmp_path):
    first = trained(inputs, tmp_path / "first", "--steps", 2)
    same = trained(inputs, tmp_path / "same", "--steps", 0, "--epochs", 0, "--init", tmp_path / "first/adapter.safetensors")
    assert not differences(first["tensors"], same["tensors"])
    options = ("--sections", "kb", "dm", "--controlnet", inputs.controlnet, "--steps", 2, "--alpha", 5, "--snr", 5, "--accumulate", 2)
    more = ("--run.precision", "bf16", "--base.gradient-checkpointing", "--optimiser", "adamw", "--schedule", "cosine", "--gate-outputs", 1)
    part = trained(inputs, tmp_path / "part", *options, *more, "--export", "float16", "--augment.variants", 3)
    assert {key.partition(".")[0] for key in part["tensors"]} == {"kb", "dm"}
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in part["tensors"].values())


@pytest.mark.slow
def test_two_processes_share_the_batches_and_write_one_adapter(inputs, tmp_path):
    """Each draws its own noise, so that no number can be compared with those of one process."""
    run_two(inputs.arguments(tmp_path / "adapter.safetensors", "--steps", 3, "--batch", 4), tmp_path / "log")
    made = product(tmp_path / "adapter.safetensors")
    assert made["tensors"].keys() == fresh_adapter(SIZES).state_dict().keys()
    assert all(value.isfinite().all() for value in made["tensors"].values())
    assert [line["step"] for line in metrics(tmp_path / "adapter.run")] == [1, 2, 3]


@pytest.mark.slow
def test_validation_leaves_pictures_and_workflows_and_changes_nothing(inputs, tmp_path):
    drawn = ("--validation.pictures", 2, "--validation.every", 2, "--validation.steps", 2)
    made = trained(inputs, tmp_path / "drawn", "--steps", 3, *drawn)
    assert not differences(made["tensors"], trained(inputs, tmp_path / "plain", "--steps", 3)["tensors"])
    names = {path.name for path in (tmp_path / "drawn/adapter.run/validation").iterdir()}
    steps = {"step-000000002.png", "step-000000003.png"}
    assert names == steps | {f"picture-{number}.{kind}" for number in (0, 1) for kind in ("png", "json")}
    graph = json.loads((tmp_path / "drawn/adapter.run/validation/picture-1.json").read_text())
    kinds = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert (kinds["KSampler"]["seed"], kinds["KSampler"]["sampler_name"]) == (43, "ddim")
    assert kinds["KBDMLoadAdapter"]["adapter_name"] == "adapter.safetensors"


def test_a_dry_run_takes_one_step_and_writes_nothing(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = listing(inputs.cache.parent)
    arguments = inputs.arguments(tmp_path / "adapter.safetensors", "--dry-run")
    assert main([str(argument) for argument in arguments]) == 0
    assert "one step took" in capsys.readouterr().err and not list(tmp_path.iterdir()) and listing(inputs.cache.parent) == before


REFUSED = {
    "no base": (("--base.checkpoint", "absent.safetensors"), "no such checkpoint"),
    "no pictures": (("--data.root", "absent"), "absent"),
    "kb without a knowledge base": (("--sections", "kb", "dm", "pose", "--knowledge-base", "None"), "no knowledge_base is named"),
    "a section twice": (("--sections", "dm", "dm"), "each once"),
    "half weights without autocast": (("--base.dtype", "bfloat16"), "half weights need autocast"),
    "another text encoder": (("--base.text-encoder", "somewhere"), "local-dir:FOLDER"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(inputs, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    more, words = REFUSED[case]
    arguments = [str(argument) for argument in inputs.arguments(tmp_path / "adapter.safetensors", "--steps", 1, *more)]
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("train adapter: ") and words in said
    assert not list(tmp_path.glob("*.safetensors")) and not left_over(tmp_path)


def test_files_that_do_not_belong_together_are_refused(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = write_tiny_knowledge_base(tmp_path / "other.safetensors", seed=1)
    wrong = write_tiny_controlnet(tmp_path / "wrong.safetensors", (32, 64, 64, 64))
    cases = {
        ("--controlnet", wrong): "block widths",
        ("--output", inputs.base): "to be read and to be written",
        ("--output", other, "--knowledge-base", other): "to be read and to be written",
        ("--base.checkpoint", inputs.knowledge_base): "is not an SD1.5 checkpoint",
        ("--init", inputs.base): "format",
    }
    for more, words in cases.items():
        assert main([str(argument) for argument in inputs.arguments(tmp_path / "adapter.safetensors", "--steps", 1, *more)]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1], more
