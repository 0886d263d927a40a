"""The house: arrows run nodes -> kbdm_core <- train, and the core needs torch alone of the frameworks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "kbdm_core": {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "diffusers", "open_clip", "accelerate", "nodes", "train"},
    "nodes": {"train", "diffusers", "accelerate", "open_clip"},
    "train": {"comfy", "comfy_api", "folder_paths", "server", "nodes"},
}
MODULES = [path for room in FORBIDDEN for path in sorted((ROOT / room).rglob("*.py"))]
CORE_MODULES = sorted(f"kbdm_core.{path.stem}" for path in (ROOT / "kbdm_core").glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, dotted name) of every import; `from . import a` gives (1, "a")."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module)] if node.module else [(node.level, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    for level, name in imports(path):
        top = name.split(".")[0]
        if level == 0:
            assert top not in FORBIDDEN[room], f"{path.name} imports {name}"
            assert room != "nodes" or top != "kbdm_core", "inside the pack imports are relative: ComfyUI gives it a name of its own"
        elif level == 2:
            assert room == "nodes" and top == "kbdm_core"


def test_the_core_imports_without_any_host_or_trainer():
    blocked = sorted(FORBIDDEN["kbdm_core"] - {"nodes", "train"})
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {', '.join(CORE_MODULES)}"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_only_the_host_modules_and_model_folders_know_comfyui():
    host_modules = {"comfy", "folder_paths"}
    nodes = (ROOT / "nodes").glob("*.py")
    knowing = {path.name for path in nodes if host_modules & {name.split(".")[0] for _, name in imports(path)}}
    assert knowing == {"host.py", "host_models.py", "model_folders.py"}
