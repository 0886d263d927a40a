"""Where the demo reads and writes. Everything it writes is ignored by git."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = ROOT / "workflows" / "api"
HOST = ROOT / "demo" / "host"  # the host's own folder: models, custom_nodes, output
CACHE = ROOT / ".cache" / "pocketpose"
OUT = ROOT / "demo" / "out"
CHECKOUT = ROOT / "demo" / "checkout.py"
REPORT = OUT / "report.json"
HOST_LOG = OUT / "host.log"
PACK_NAME = "comfyui-kb-dmgen"


def shown(path: Path) -> str:
    """A path as people read it: relative to the repository."""
    return path.relative_to(ROOT).as_posix()
