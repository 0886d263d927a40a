"""Bar C6 on trained weights: the adapter that the pack ships draws in ComfyUI what the trainer draws with it, on the shipped miniature."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from testbed.host_graph import png, saved_picture
from train.__main__ import main
from train.mini.build import ADAPTER, ASSETS

SCENES = 32  # of these one is held out, and drawn


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run that goes on from the shipped adapter for 0 steps: its last validation is of the shipped weights."""
    folder = tmp_path_factory.mktemp("shipped")
    cache = ("--world.scenes", SCENES, "--world.cache", folder / "cache", "--examples.cache", folder / "latents", "--world.workers", 1)
    nothing = ("--init", ASSETS / ADAPTER, "--steps", 0, "--epochs", 0, "--warmup", 0, "--export", "float16", "--run.no-tensorboard")
    drawn = ("--validation.pictures", 1, "--validation.steps", 20)
    output = ("--output", folder / "adapter.safetensors", "--run.folder", folder / "run", "--run.device", "cpu")
    assert main(["mini", "adapter", *map(str, (*cache, *nothing, *drawn, *output))]) == 0
    return folder


@pytest.mark.slow
def test_no_steps_change_nothing_of_the_shipped_adapter(trained):
    shipped, exported = load_file(ASSETS / ADAPTER), load_file(trained / "adapter.safetensors")
    assert shipped.keys() == exported.keys()
    assert all((shipped[key] == exported[key]).all() for key in shipped)


@pytest.mark.slow
def test_the_shipped_files_draw_the_trainers_picture_in_the_host(trained, tmp_path):
    folder = trained / "run" / "validation"
    expected, graph = png(folder / "picture-0.png"), json.loads((folder / "picture-0.json").read_text())
    assert abs(saved_picture(graph, tmp_path / "out") - expected).max() <= 2
    unposed = copy.deepcopy(graph)
    (apply,) = (node for node in unposed.values() if node["class_type"] == "KBDMAdapterApply")
    apply["inputs"]["pose_strength"] = 0.0
    assert abs(saved_picture(unposed, tmp_path / "unposed") - expected).max() > 30, "a picture without the pose is no other"
