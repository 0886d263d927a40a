"""demo/out/report.json: what ran, on what, how long, and what its pictures are worth."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

STATEMENT = (
    "The checkpoint has RANDOM weights in the layout of SD1.5, and knowledge base and adapter are untrained: the sampled pictures "
    "are noise. They show that everything runs in a real ComfyUI, and nothing about quality."
)


@dataclass(frozen=True)
class File:
    """A file that the demo wrote: its path in the repository, its size in bytes, and what it holds."""

    path: str
    bytes: int
    content: str


@dataclass(frozen=True)
class WorkflowRun:
    """One workflow: its time in the host, the node types in it, and its pictures."""

    name: str
    seconds: float
    nodes: list[str]
    sampling_steps: int
    pictures: list[File]


@dataclass(frozen=True)
class Report:
    """The whole run."""

    host: str
    python: str
    torch: str
    processors: int
    pose: str
    pack_nodes: list[str]
    weights: list[File]
    workflows: list[WorkflowRun]
    seconds: dict[str, float]
    statement: str = STATEMENT


def write_report(path: Path, report: Report) -> None:
    """Write the report under a temporary name, then rename it."""
    write_whole(path, json.dumps(asdict(report), indent=1).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    half_written = path.with_name(path.name + ".part")
    half_written.write_bytes(content)
    os.replace(half_written, path)
