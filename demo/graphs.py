"""The shipped graphs, fitted to the demo: its files, its pose, small pictures, few steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .places import GRAPHS
from .weights import ADAPTER, CHECKPOINT, KNOWLEDGE_BASE

Graph = dict[str, dict[str, Any]]  # node id -> class_type, inputs, _meta: ComfyUI's API format

WORKFLOWS = ("knowledge_base_and_adapter", "look_inside")
SIDE, STEPS = 256, 4
BY_CLASS: Mapping[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "KBDMLoadKnowledgeBase": {"knowledge_base_name": KNOWLEDGE_BASE},
    "KBDMLoadAdapter": {"adapter_name": ADAPTER},
    "EmptyLatentImage": {"width": SIDE, "height": SIDE},
    "KBDMLoadPose": {"width": SIDE, "height": SIDE},
    "KSampler": {"steps": STEPS},
}


def shipped_graph(name: str) -> Graph:
    """The API twin of workflows/<name>.json."""
    return json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))


def fitted(graph: Graph, pose_json: str) -> Graph:
    """A copy of the graph with the demo's values; links and everything else stay as shipped."""
    changes = {**BY_CLASS, "KBDMLoadPose": {**BY_CLASS["KBDMLoadPose"], "json": pose_json}}
    return {key: {**node, "inputs": {**node["inputs"], **changes.get(node["class_type"], {})}} for key, node in graph.items()}


def amount_of_work(graph: Graph) -> int:
    """Units of the progress bar: one for each node, and one for each sampling step."""
    return len(graph) + sampling_steps(graph)


def sampling_steps(graph: Graph) -> int:
    """Steps of all samplers of the graph together."""
    return sum(node["inputs"]["steps"] for node in graph.values() if node["class_type"] == "KSampler")


def title(graph: Graph, node: str) -> str:
    """The node's title on the canvas."""
    return graph[node].get("_meta", {}).get("title", graph[node]["class_type"])
