"""Row 11 of the robustness cases, bar A8: a broken adapter file is refused with its name, the key, what is expected and what was found."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import random
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from testbed.host_model import host_model, predict
from testbed.model_folder import model_folders, only_folder
from testbed.pack import PACKAGE, load_node_module
from testbed.small_adapter import load_small_adapter, save_small_adapter, steer

errors = importlib.import_module(f"{PACKAGE}.kbdm_core.errors")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "people.safetensors"
    save_small_adapter(path)
    return path


def rewrite(path, change_tensors=lambda tensors: None, **metadata) -> None:
    """Change tensors and metadata of a file behind the pack's back; a value of None removes the key."""
    with safe_open(path, framework="pt") as opened:
        kept = {key: value for key, value in {**opened.metadata(), **metadata}.items() if value is not None}
        tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
    change_tensors(tensors)
    save_file(tensors, path, metadata=kept)


def refused(path, *words: str) -> None:
    """Loading is refused with the file's name and all these words."""
    with pytest.raises(errors.FileFormatError) as caught:
        load_small_adapter(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


POSITION, TO_K = "kb.position", "kb.input_blocks.4.to_k.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({POSITION: t[POSITION].long()}), [POSITION, "float32, float16 or bfloat16", "torch.int64"]),
        (lambda t: t.update({TO_K: t[TO_K].double()}), [TO_K, "torch.float64"]),
        (lambda t: t[TO_K].fill_(float("nan")), [TO_K, "finite values", "NaN"]),
        (lambda t: t["dm.blend"].fill_(float("inf")), ["dm.blend", "finite values", "infinity"]),
        (lambda t: t.pop(TO_K), [TO_K, "none of that name"]),
        (lambda t: t.pop("pose.norm.weight"), ["pose.norm.weight", "none of that name"]),
        (lambda t: t.update({TO_K: t[TO_K][:, :5].clone()}), [TO_K, "shape", ", 5]"]),
        (lambda t: t.update({"dm.blend": torch.zeros(15)}), ["dm.blend", "[16]", "[15]"]),
        (lambda t: t.update({"dm.gate.out.weight": torch.zeros(7, 128)}), ["dm.gate.out.weight", "1 or 16 outputs", "7"]),
        (lambda t: t.update({"kb.extra": torch.zeros(1)}), ["kb.extra", "1 unknown tensor"]),
        (lambda t: t.update({"lora_unet.up": torch.zeros(1)}), ["lora_unet.up", "kb, dm, pose"]),
        (lambda t: [t.pop(key) for key in list(t)] and t.update({"lora_unet.up": torch.zeros(1)}), ["sections", "kb, dm, pose", "1 other tensor"]),
    ],
)  # fmt: skip
def test_broken_tensors_are_named(path, change, words):
    rewrite(path, change)
    refused(path, *words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": None}, ["metadata 'format'", "'kbdm.adapter'", "None"]),
        ({"format": "kbdm.knowledge_base"}, ["metadata 'format'", "'kbdm.adapter'", "'kbdm.knowledge_base'"]),
        ({"format_version": "2"}, ["metadata 'format_version'", "'1'", "'2'"]),
        ({"format_version": None}, ["metadata 'format_version'", "None"]),
        ({"base": None}, ["metadata 'base'", "sd15"]),
        ({"config": "{"}, ["metadata 'config'", "not JSON"]),
        ({"config": "[" * 100_000}, ["metadata 'config'", "not JSON"]),
        ({"config": "[1]"}, ["metadata 'config'", "a JSON object", "list"]),
        ({"config": json.dumps({"options": {"dm_background": "grey"}})}, ["config 'options'", "grey", "neutral, zero"]),
        ({"config": json.dumps({"options": {"dm_axis": "union"}})}, ["config 'options'", "key, query, both"]),
        ({"config": json.dumps({"options": {"new_option": 1}})}, ["config 'options'", "new_option"]),
        ({"config": json.dumps({"options": [1]})}, ["config 'options'", "[1]"]),
        ({"config": json.dumps({"options": {"pose_axis": ["key"]}})}, ["config 'options'", "pose_axis"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_broken_metadata_is_named(path, metadata, words):
    rewrite(path, **metadata)
    refused(path, *words)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty", b""),
        ("text", b"<!DOCTYPE html>" * 10),
        ("huge-header", struct.pack("<Q", 2**62) + b"{}"),
        ("long-header", struct.pack("<Q", 10_000) + b"{}"),
        ("no-metadata", struct.pack("<Q", 2) + b"{}"),
        ("beyond-the-end", struct.pack("<Q", 66) + b'{"kb.position":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}'[:66]),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, name, content):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    refused(path)


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_in_disguise_is_refused_and_never_run(tmp_path, write):
    path, trace = tmp_path / "disguise.safetensors", tmp_path / "trace"
    write(Bomb(trace), path)
    refused(path, "not a readable safetensors file", "renamed")
    assert not trace.exists()


def test_every_truncation_is_refused(path):
    whole = path.read_bytes()
    for length in [*range(0, 64), *range(64, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


def test_random_corruptions_load_or_say_so(path):
    """A changed weight may pass as another weight; everything else is a FileFormatError, and no other exception ever."""
    whole = path.read_bytes()
    generator, count = random.Random(0), 0
    header = struct.unpack("<Q", whole[:8])[0] + 8
    for _ in range(80):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 4, 64])):
            damaged[generator.randrange(generator.choice([8, header, header]))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            load_small_adapter(path)
        except errors.FileFormatError as error:
            count += 1
            assert path.name in str(error)
    assert count >= 60


def test_a_file_that_is_gone_is_named(tmp_path):
    refused(tmp_path / "never-was.safetensors", "no such file")
    with pytest.raises(errors.FileFormatError, match=r"'gone\.safetensors' is not there any more.*kbdm_adapters"):
        load_node_module("adapter").KBDMLoadAdapter().load("gone.safetensors")


def test_only_safetensors_are_listed_and_loaded_by_the_node(path, tmp_path, monkeypatch):
    loader = load_node_module("adapter").KBDMLoadAdapter
    with only_folder(model_folders.ADAPTERS, tmp_path, monkeypatch) as folder:
        save_small_adapter(folder / path.name)
        for name in ("adapter.ckpt", "adapter.pt", "notes.txt"):
            (folder / name).write_bytes(b"x")
        assert loader.INPUT_TYPES()["required"]["adapter_name"][0] == [path.name]
        (loaded,) = loader().load(path.name)
    model = host_model()
    x, conds = torch.randn(1, 4, 17, 12), [torch.randn(1, 7, 64)]
    assert torch.equal(predict(steer(model, loaded), x, 3.0, conds), predict(steer(model, load_small_adapter(path)), x, 3.0, conds))
