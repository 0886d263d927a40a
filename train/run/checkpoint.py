"""Checkpoints: one safetensors file per saved step, written whole or not at all; the newest few are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from kbdm_core.safetensors_file import read, write

FORMAT = "kbdm.checkpoint"
STEP_DIGITS = 9


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state`, a tree of dicts, lists, tensors, numbers and texts, as the checkpoint of `step`; then delete all but the newest `keep`.

    What a process left that was killed while it wrote a checkpoint goes too.
    """
    tensors: dict[str, Tensor] = {}
    tree = _take_tensors(state, "state", tensors)
    path = folder / f"step-{step:0{STEP_DIGITS}d}.safetensors"
    write(path, tensors, {"format": FORMAT, "format_version": "1"}, {"step": step, "tree": tree})
    for old in [*checkpoints(folder)[:-keep], *folder.glob(".step-*.part")]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-" + "[0-9]" * STEP_DIGITS + ".safetensors"))


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of a checkpoint. Raises FileFormatError for anything else."""
    file = read(path, FORMAT)
    step, tree = file.config.get("step"), file.config.get("tree")
    if not isinstance(step, int) or not isinstance(tree, dict):
        raise file.fail("config", "a step and a tree", sorted(file.config))
    try:
        return step, _put_tensors(tree, file.tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise file.fail("config 'tree'", "a tree that its tensors fit", repr(error)) from error


def _take_tensors(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON can hold it: dicts as lists of pairs (their keys may be numbers), tensors moved to `tensors` under their path."""
    if isinstance(node, Tensor):
        while name in tensors:  # the keys "a.b" and "a", "b", or 1 and "1", make the same path
            name += "'"
        tensors[name] = node.detach().clone()  # safetensors refuses tensors that share memory
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[key, _take_tensors(value, f"{name}.{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return {"list": [_take_tensors(value, f"{name}.{i}", tensors) for i, value in enumerate(node)]}
    return {"value": node}


def _put_tensors(node: dict, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_tensors(value, tensors) for key, value in content}
    if kind == "list":
        return [_put_tensors(value, tensors) for value in content]
    return content
