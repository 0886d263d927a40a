"""The host's own nodes, core and extra (PAG, FreeU, HyperTile ...), of the 2024 package and of a current checkout alike."""

from __future__ import annotations

import importlib
import os
from functools import cache

from testbed.host import import_host
from testbed.pack import load_pack

import_host()


@cache
def node_classes() -> dict[str, type]:
    """The pack's nodes and the host's core nodes, by class_type."""
    core = importlib.import_module("nodes" if os.environ.get("COMFYUI_PATH") else "comfy.nodes.base_nodes")
    return {**core.NODE_CLASS_MAPPINGS, "MaskToImage": host_module("nodes_mask").MaskToImage, **load_pack().NODE_CLASS_MAPPINGS}


def host_module(name: str):
    """comfy_extras/<name>.py of the host: the PyPI package keeps it one folder deeper."""
    try:
        return importlib.import_module(f"comfy_extras.{name}")
    except ModuleNotFoundError:
        return importlib.import_module(f"comfy_extras.nodes.{name}")


def run_host_node(module: str, node: str, *inputs, **named):
    """The first output of a host node: V3 nodes have `execute`, V1 nodes name their function."""
    cls = getattr(host_module(module), node)
    output = cls.execute(*inputs, **named) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(*inputs, **named)
    return getattr(output, "result", output)[0]  # a NodeOutput, or a tuple
