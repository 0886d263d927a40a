"""What the demo asks of the host: the rows of the grid, then the shipped workflows; and the pictures that it keeps of them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .columns import COLUMNS, POSE, row_graph
from .files import File, file_entry, write_whole
from .graphs import Graph, amount_of_work, sampling_steps, title
from .host import Host, HostError, Picture
from .rows import Row

BAR = "{desc:28s} {percentage:3.0f} %|{bar}| {elapsed}, {remaining} to go"


@dataclass(frozen=True)
class WorkflowRun:
    """One workflow: its time in the host, the node types in it, and its pictures."""

    name: str
    seconds: float
    nodes: list[str]
    sampling_steps: int
    pictures: list[File]


@dataclass(frozen=True, eq=False)
class DrawnRow:
    """A row with what the host drew: the pose picture, and per column as many pictures as its batch has, as PNG."""

    row: Row
    seconds: float
    pose_picture: bytes
    columns: dict[str, list[bytes]]
    files: list[File]


async def draw_rows(host: Host, rows: list[Row], folder: Path) -> list[DrawnRow]:
    """Queue the rows one after the other, and save each row's pictures as soon as they are there."""
    graphs = [row_graph(row) for row in rows]
    with tqdm(total=sum(map(amount_of_work, graphs)), bar_format=BAR) as bar:
        drawn = []
        for number, (row, graph) in enumerate(zip(rows, graphs), start=1):
            bar.set_description_str(f"row {number} of {len(rows)}")
            drawn.append(await draw_row(host, row, graph, folder, bar.update))
        return drawn


async def draw_row(host: Host, row: Row, graph: Graph, folder: Path, on_progress: Callable[[int], None]) -> DrawnRow:
    """Queue one row. Raises HostError if the host gives no picture for a column."""
    started = time.perf_counter()
    found: dict[str, list[bytes]] = {POSE: [], **{column.name: [] for column in COLUMNS}}
    for picture in await host.run(graph, on_progress):
        found[title(graph, picture.node)].append(picture.content)
    if missing := [name for name, pictures in found.items() if not pictures]:
        raise HostError(f"row {row.name} has no picture for {', '.join(missing)}; the host's log may tell why.")
    files = []
    for name, pictures in found.items():
        for number, content in enumerate(pictures, start=1):
            path = folder / f"{row.name}.{name}{f'-{number}' if len(pictures) > 1 else ''}.png"
            write_whole(path, content)
            files.append(file_entry(path, name))
    (pose_picture,) = found.pop(POSE)
    return DrawnRow(row, round(time.perf_counter() - started, 1), pose_picture, found, files)


async def run_workflow(host: Host, name: str, graph: Graph, folder: Path) -> WorkflowRun:
    """Queue one workflow, show its progress, save its pictures."""
    started = time.perf_counter()
    with tqdm(total=amount_of_work(graph), desc=name, bar_format=BAR) as bar:
        pictures = await host.run(graph, bar.update)
        bar.update(bar.total - bar.n)
    seconds = round(time.perf_counter() - started, 1)
    nodes = sorted(node["class_type"] for node in graph.values())
    return WorkflowRun(name, seconds, nodes, sampling_steps(graph), save(name, graph, pictures, folder))


def save(name: str, graph: Graph, pictures: list[Picture], folder: Path) -> list[File]:
    """Save pictures as WORKFLOW.NODE-TITLE.png, numbered where a node made several."""
    files, seen = [], Counter()
    for picture in sorted(pictures, key=lambda each: int(each.node)):
        content = title(graph, picture.node)
        slug = re.sub(r"[^a-z0-9]+", "-", content.lower()).strip("-")
        seen[slug] += 1
        number = f"-{seen[slug]}" if seen[slug] > 1 else ""
        path = folder / f"{name}.{slug}{number}{picture.suffix}"
        write_whole(path, picture.content)
        files.append(file_entry(path, content))
    return files
