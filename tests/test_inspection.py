"""inspect: every file of ours is told, every broken one is named, none ends the run."""

from __future__ import annotations

import json
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file

from kbdm_core.knowledge_base import fresh_knowledge_base, save_knowledge_base
from testbed.host import import_host
from train.__main__ import main
from train.features.store import FeatureStore
from train.inspection import describe
from train.knowledge.codebook_file import CodebookFile, save_codebook
from train.mini.estimator import PoseEstimator, save_estimator
from train.run.checkpoint import save_checkpoint

import_host()
from testbed.small_adapter import save_small_adapter  # noqa: E402

BROKEN = 150


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """One sound file of each format."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}.safetensors" for name in ("knowledge_base", "adapter", "codebook", "estimator")}
    save_knowledge_base(paths["knowledge_base"], fresh_knowledge_base(entries=20, grid=(3, 4), width=8, text_width=6, hidden=5))
    save_small_adapter(paths["adapter"])
    save_codebook(paths["codebook"], CodebookFile(torch.randn(20, 8), {"model": "tiny"}, {"mse": 0.5}))
    save_estimator(paths["estimator"], PoseEstimator((8, 8, 8, 8)), {"seed": 0}, {"unseen": {"pck@0.2": 0.9}})
    paths["checkpoint"] = save_checkpoint(folder / "kmeans", 7, {"inputs": "x", "stage": {"entries": torch.randn(20, 8)}}, keep=1)
    return paths


def test_each_format_is_told(files, tmp_path):
    base = describe(files["knowledge_base"])
    assert (base["format"], base["entries"], base["width"], base["grid"]) == ("kbdm.knowledge_base", 20, 8, [3, 4])
    found = describe(files["adapter"])
    assert found["format"] == "kbdm.adapter" and set(found["sections"]) == {"kb", "dm", "pose"} and found["base"] == "sd15-mini"
    assert describe(files["codebook"]) == {
        "file": str(files["codebook"]),
        "format": "kbdm.codebook",
        "format_version": "1",
        "bytes": files["codebook"].stat().st_size,
        "entries": 20,
        "width": 8,
        "clip": {"model": "tiny"},
        "training": {"mse": 0.5},
    }
    assert describe(files["checkpoint"])["step"] == 7 and describe(files["checkpoint"])["stage"] == "kmeans"
    assert describe(files["estimator"])["judged"] == {"unseen": {"pck@0.2": 0.9}}
    FeatureStore.open(tmp_path / "tokens", (4, 8), "float16", {"holds": "tokens"})
    features = describe(tmp_path / "tokens")
    assert (features["rows"], features["shape"], features["holds"]) == (0, [4, 8], "tokens")


def test_text_and_json_say_the_same(files, capsys):
    assert main(["inspect", str(files["codebook"]), "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(files["codebook"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"entries: {as_json['entries']}" in lines and "  model: tiny" in lines


def broken_files(files, folder, count: int) -> list:
    """Files of every format, broken in one of several ways, the same for the same seed."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        content = bytearray(files[draw.choice(sorted(files))].read_bytes())
        path = folder / f"broken-{number:03d}.safetensors"
        header = int.from_bytes(content[:8], "little")
        way = number % 8
        if way == 0:
            content = content[: draw.randrange(len(content))]
        elif way == 1:
            content[:8] = draw.randrange(2**62).to_bytes(8, "little")
        elif way == 2:
            start = draw.randrange(8, 8 + header - 20)
            content[start : start + 20] = draw.randbytes(20)
        elif way == 3:
            content = bytearray(pickle.dumps({"codebook.weight": [1.0] * draw.randrange(100)}))
        elif way == 4:
            content = bytearray(draw.randbytes(draw.randrange(300)))
        elif way == 5:
            content += draw.randbytes(draw.randrange(1, 50))
        elif way == 6:
            tensors = {"codebook.weight": torch.full((4, 3), float("nan"))}
            form = draw.choice(["kbdm.knowledge_base", "kbdm.adapter", "kbdm.codebook", "kbdm.mini_estimator", "kbdm.checkpoint", "lora", ""])
            config = draw.choice(["", "[]", "{", '{"step": []}', '{"step": 1, "tree": {"dict": [["a", {"tensor": "no"}]]}}', "1" * 5000])
            save_file(tensors, path, {"format": form, "format_version": "1", "config": config})
        else:
            content = bytearray()
        if way != 6:
            path.write_bytes(content)
        made.append(path)
    return made


def test_every_broken_file_is_named_and_none_ends_the_run(files, tmp_path, capsys):
    broken = broken_files(files, tmp_path, BROKEN)
    sound = list(files.values())
    assert main(["inspect", "--json", *map(str, [*broken[:75], *sound, *broken[75:]])]) == 2
    captured = capsys.readouterr()
    told = {line["file"]: line for line in map(json.loads, captured.out.splitlines())}
    assert len(told) == BROKEN + len(sound)
    for path in broken:
        assert path.name in told[str(path)].get("error", ""), told[str(path)]
    assert all("error" not in told[str(path)] for path in sound)
    assert f"{BROKEN} of {BROKEN + len(sound)} files cannot be used" in captured.err


def test_no_file_and_a_folder_without_features_are_errors(tmp_path, capsys):
    assert main(["inspect"]) == 2
    assert "no file was given" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), str(tmp_path / "missing.safetensors")]) == 2
    out = capsys.readouterr().out
    assert "is no folder of features" in out and "no such file" in out
