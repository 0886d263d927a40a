"""Graphs in ComfyUI's API format, run by the node classes of pack and host in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from testbed.host_nodes import node_classes
from testbed.pack import load_node_module

Graph = dict[str, dict[str, Any]]


def run_graph(graph: Graph) -> dict[str, tuple]:
    """Run all nodes, each once and after those it depends on -> their outputs by id.

    As ComfyUI's server does, it refuses what a node does not declare or offer (AssertionError), fills in defaults, and knows no gradient.
    """
    done: dict[str, tuple] = {}

    def outputs(number: str) -> tuple:
        if number not in done:
            node = graph[number]
            inputs = {name: outputs(value[0])[value[1]] if _is_link(value, graph) else value for name, value in node["inputs"].items()}
            cls = node_classes()[node["class_type"]]
            made = getattr(cls(), cls.FUNCTION)(**_checked(cls, node, inputs, graph))
            done[number] = made.get("result", ()) if isinstance(made, dict) else made  # a dict where there is something to show
        return done[number]

    with torch.inference_mode():
        for number in graph:
            outputs(number)
    return done


def png(path: Path) -> np.ndarray:
    """A picture file, [H,W,3] int."""
    return np.asarray(Image.open(path)).astype(int)


def saved_picture(graph: Graph, folder: Path) -> np.ndarray:
    """The one picture [H,W,3], int, that the graph saves; it is written to `folder`, which is made."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_node_module("model_folders").folder_paths, "output_directory", str(folder))
        run_graph(graph)
    (path,) = folder.glob("*.png")
    return png(path)


def _is_link(value: object, graph: Graph) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in graph


def _checked(cls: type, node: dict[str, Any], inputs: dict[str, Any], graph: Graph) -> dict[str, Any]:
    """The inputs with the defaults of those that are left out."""
    declared = cls.INPUT_TYPES()
    required, optional = declared.get("required", {}), declared.get("optional", {})
    known = {**required, **optional}
    kind = node["class_type"]
    assert inputs.keys() <= known.keys(), f"{kind} has no input {sorted(inputs.keys() - known.keys())}"
    defaults = {name: options[0]["default"] for name, (_, *options) in required.items() if options and "default" in options[0]}
    inputs = {**defaults, **inputs}
    assert required.keys() <= inputs.keys(), f"{kind} wants {sorted(required.keys() - inputs.keys())}"
    for name, value in inputs.items():
        choices, *options = known[name]
        if not _is_link(node["inputs"].get(name), graph):
            where = f"{kind}.{name} is {value!r}"
            assert not isinstance(choices, list) or value in choices, f"{where}: one of {choices}"
            for limit in options[:1] if isinstance(value, int | float) and not isinstance(choices, list) else ():
                assert limit.get("min", value) <= value <= limit.get("max", value), f"{where}: {limit}"
    return inputs
