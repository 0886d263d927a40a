"""The grid's columns: the adapter's sections switched on one after the other, all in one graph per row."""

from __future__ import annotations

from dataclasses import dataclass

from train.adapter.workflow import workflow

from .graphs import Graph
from .miniature import LISTED
from .rows import Row

STEPS, SCALE = 50, 7.5  # DDIM steps and guidance scale, those of the miniature's bars
NEGATIVE_STRENGTH = 0.0  # the negative prompt is drawn by the base alone, so that the guidance scale strengthens what the columns switch on
PICTURES = 2  # per row and column: the host draws them as one batch of one seed
STEERED = ("KBDMAdapterApply", "KSampler", "VAEDecode", "SaveImage")  # the nodes that each column has for itself
COLUMN_IDS = 100  # the nodes of column c are numbered from 100 (c + 1) on
POSE = "pose"


@dataclass(frozen=True)
class Column:
    """A column: its name in files, its heading, and the strengths of the three sections."""

    name: str
    title: str
    kb_strength: float
    dm_strength: float
    pose_strength: float

    @property
    def strengths(self) -> dict[str, float]:
        """As inputs of KB-DM Adapter Apply."""
        return {name: getattr(self, name) for name in ("kb_strength", "dm_strength", "pose_strength")}


COLUMNS = (
    Column("base", "base, no pose", 0.0, 0.0, 0.0),
    Column("kb", "+ KB", 1.0, 0.0, 0.0),
    Column("kb-dm", "+ KB + DM", 1.0, 1.0, 0.0),
    Column("full", "full adapter", 1.0, 1.0, 1.0),
)


def row_graph(row: Row) -> Graph:
    """One graph that draws the row's pictures of every column; the preview nodes are titled as the columns are named, and `pose`.

    All rows have the same nodes under the same numbers, so that the host loads model, knowledge base and adapter once.
    """
    one = workflow(LISTED, row.prompt, "phrases", row.prompt, row.pose, row.seed, STEPS, SCALE)
    steered = {key: node for key, node in one.items() if node["class_type"] in STEERED}
    graph = {key: node for key, node in one.items() if key not in steered}
    for node in graph.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"]["batch_size"] = PICTURES
    for number, column in enumerate(COLUMNS, start=1):
        own = {key: str(COLUMN_IDS * number + int(key)) for key in steered}
        for key, node in steered.items():
            inputs = {name: [own.get(value[0], value[0]), value[1]] if isinstance(value, list) else value for name, value in node["inputs"].items()}
            if node["class_type"] == "KBDMAdapterApply":
                inputs |= {**column.strengths, "negative_strength": NEGATIVE_STRENGTH}
            graph[own[key]] = {**node, "inputs": inputs}
            if node["class_type"] == "SaveImage":
                graph[own[key]] = preview(inputs["images"], column.name)
    (rendered,) = (key for key, node in graph.items() if node["class_type"] == "KBDMRenderPose")
    return {**graph, str(COLUMN_IDS): preview([rendered, 0], POSE)}


def preview(images: list, title: str) -> dict:
    """A node that keeps pictures for as long as the host runs."""
    return {"class_type": "PreviewImage", "inputs": {"images": images}, "_meta": {"title": title}}
