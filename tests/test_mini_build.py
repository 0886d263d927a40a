"""Bar C7: the whole miniature is built by one command; here with few scenes and steps, and used as the shipped one is."""

from __future__ import annotations

import json

import pytest
import torch

from kbdm_core.adapter_file import load_adapter
from kbdm_core.knowledge_base import load_knowledge_base
from kbdm_core.mini_checkpoint import load_mini_checkpoint, load_text_tower
from testbed.training import forgotten_accelerator
from train.__main__ import main
from train.base.checkpoint import read_base
from train.mini import commands
from train.mini.build import ADAPTER, CHECKPOINT, CLIP, ESTIMATOR, KNOWLEDGE_BASE, STAGES
from train.mini.estimator import load_estimator

FEW = {
    "world": {"scenes": 64},
    "mini-clip": {"steps": 2, "batch": 4},
    "autoencoder": {"steps": 2, "batch": 2, "crop": 32},
    "unet": {"steps": 2, "batch": 2},
    "codebook": {"entries": 16, "epochs": 1, "batch-tokens": 256},
    "classifier": {"epochs": 1, "least-steps": 2},
    "estimator": {"steps": 1, "batch": 2},
    "adapter": {"steps": 2, "batch": 2, "pose-width": 32, "pose-stem": (8, 8, 8, 8)},
    "validation": {"pictures": 1, "steps": 2},
    "examples": {"resolution": 128},
}


@pytest.mark.slow
def test_a_short_build_makes_files_that_fit_together_and_a_second_one_trains_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "UNSEEN", 8)
    monkeypatch.setattr(commands, "JUDGED", 4)
    arguments = ["mini", "build", f"--output={tmp_path / 'mini'}", "--pictures=12", "--run.no-tensorboard", "--run.device=cpu"]
    for table, options in FEW.items():
        for name, value in options.items():
            arguments += [f"--{table}.{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    with forgotten_accelerator():
        assert main(arguments) == 0
    said = capfd.readouterr()
    assert [line[3:] for line in said.err.splitlines() if line.startswith("== ")] == list(STAGES)
    folder = tmp_path / "mini"
    adapter, info = load_adapter(folder / ADAPTER)
    knowledge_base, base = load_knowledge_base(folder / KNOWLEDGE_BASE), read_base(folder / CHECKPOINT)
    assert (info.base, info.base_sha256) == ("sd15-mini", base.sha256) and info.codebook_sha256 == knowledge_base.codebook_sha256
    assert adapter.sizes.widths == load_mini_checkpoint(folder / CHECKPOINT).unet.widths
    assert load_text_tower(folder / CLIP).width == knowledge_base.text_projection.shape[0] == 128
    load_estimator(folder / ESTIMATOR)
    graph = json.loads((tmp_path / ".cache/mini/build/adapter.run/validation/picture-0.json").read_text())
    names = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert names["KBDMLoadAdapter"]["adapter_name"] == "mini/adapter.safetensors" and "KBDMLoadMini" in names
    assert names["KBDMLoadKnowledgeBase"]["knowledge_base_name"] == "mini/knowledge_base.safetensors"
    before = {key: value.clone() for key, value in adapter.state_dict().items()}
    with forgotten_accelerator():
        assert main([*arguments, "--stages", "adapter"]) == 0
    assert "going on from step 2 of 2" in capfd.readouterr().err
    after = load_adapter(folder / ADAPTER)[0].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_stages_cannot_be_dry_run_together_and_unknown_ones_are_told(capsys):
    assert main(["mini", "build", "--dry-run"]) == 2
    assert "dry run of one stage" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["mini", "build", "--stages", "bake"])
