"""The pack as ComfyUI loads it: a package of another name, so that `nodes` does not meet ComfyUI's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from testbed.host import import_host

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "comfyui_kbdm"


def load_pack() -> ModuleType:
    """The root package, its __init__.py executed as ComfyUI does; a bare package where there is none."""
    import_host()
    if PACKAGE not in sys.modules:
        entry = ROOT / "__init__.py"
        if entry.exists():
            spec = importlib.util.spec_from_file_location(PACKAGE, entry, submodule_search_locations=[str(ROOT)])
            sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[PACKAGE])
            except BaseException:
                del sys.modules[PACKAGE]  # a half-loaded pack would hide the reason from the next test
                raise
        else:
            sys.modules[PACKAGE] = ModuleType(PACKAGE)
            sys.modules[PACKAGE].__path__ = [str(ROOT)]
    return sys.modules[PACKAGE]


def load_node_module(name: str) -> ModuleType:
    """The module nodes/<name>.py inside the pack."""
    load_pack()
    return importlib.import_module(f"{PACKAGE}.nodes.{name}")
