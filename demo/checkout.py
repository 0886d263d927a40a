"""Runs the main.py of a ComfyUI checkout: python checkout.py FOLDER [arguments of ComfyUI].

A checkout's `comfy` has no __init__.py, so an installed package of that name would win over it: its folders are bound to their names first.
"""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path


def main() -> None:
    """Replace this script by the checkout's main.py, in sys.argv and on sys.path."""
    folder = Path(sys.argv.pop(1)).resolve()
    sys.path[0] = str(folder)
    for package in folder.glob("comfy*/"):
        if package.name.isidentifier() and not (package / "__init__.py").exists():
            module = sys.modules[package.name] = types.ModuleType(package.name)
            module.__path__ = [str(package)]
    sys.argv[0] = str(folder / "main.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
