"""demo/out/report.json: what ran, on what, how long, how well the poses were met, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .columns import COLUMNS, NEGATIVE_STRENGTH, PICTURES, SCALE, STEPS
from .files import File, write_whole
from .judging import pose_error
from .runs import DrawnRow, WorkflowRun

STATEMENT = (
    "These are pictures and figures of a miniature: a small model of SD1.5's topology, trained on drawn people (Mini-Human) alone, and judged "
    "by a pose estimator that was trained on drawn people, too, on a handful of rows. They show that the method runs and what its parts do "
    "here; they say nothing about SD1.5, photographs of people, Human-Art or the paper's results."
)
SAMPLING = {
    "sampler": "ddim", "scheduler": "ddim_uniform", "steps": STEPS, "cfg": SCALE, "negative_strength": NEGATIVE_STRENGTH,
    "pictures_per_row_and_column": PICTURES,
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The whole run. columns and rows: see `column_entries` and `row_entry`; estimator: its own error on true pictures, as its file tells."""

    host: str
    python: str
    torch: str
    processors: int
    pack_nodes: list[str]
    weights: list[File]
    sampling: dict[str, Any]
    columns: list[dict[str, Any]]
    estimator: dict[str, Any]
    rows: list[dict[str, Any]]
    workflows: list[WorkflowRun]
    pictures: list[File]
    seconds: dict[str, float]
    statement: str = STATEMENT


def column_entries(estimator: Any, drawn: Sequence[DrawnRow]) -> list[dict[str, Any]]:
    """Per column: its strengths, and the pose error of its pictures in all rows together."""
    entries = []
    for column in COLUMNS:
        pairs = [(picture, each.row.pose) for each in drawn for picture in each.columns[column.name]]
        entries.append({"name": column.name, "title": column.title, **column.strengths, **pose_error(estimator, *zip(*pairs))})
    return entries


def row_entry(drawn: DrawnRow) -> dict[str, Any]:
    """One row: what was asked for, where it comes from, and its files."""
    row = drawn.row
    files = [asdict(file) for file in drawn.files]
    return {"name": row.name, "prompt": row.prompt, "pose": row.source, "seed": row.seed, "seconds": drawn.seconds, "pictures": files}


def write_report(path: Path, report: Report) -> None:
    """Write the report as JSON."""
    write_whole(path, json.dumps(asdict(report), indent=1).encode())
