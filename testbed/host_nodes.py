"""The host's own extra nodes (PAG, FreeU, HyperTile ...), of the 2024 package and of a current checkout alike."""

from __future__ import annotations

import importlib

from testbed.host import import_host

import_host()


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
