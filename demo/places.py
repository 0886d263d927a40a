"""Where the demo reads and writes. What it writes is ignored by git, but for the README's pictures."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = ROOT / "workflows" / "api"
MINI = ROOT / "assets" / "mini"
HOST = ROOT / "demo" / "host"  # the host's own folder: models, custom_nodes, output
CACHE = ROOT / ".cache" / "pocketpose"
OUT = ROOT / "demo" / "out"
CHECKOUT = ROOT / "demo" / "checkout.py"
GRID, ATTENTION = "grid.png", "attention.png"  # in OUT
REPORT, HOST_LOG = "report.json", "host.log"
README_GRID, README_ATTENTION = ROOT / "assets" / "demo_grid.jpg", ROOT / "assets" / "demo_attention.jpg"
PACK_NAME = "comfyui-kb-dmgen"


def shown(path: Path) -> str:
    """A path as people read it: relative to the repository."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()
