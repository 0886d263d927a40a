"""The shipped graphs, fitted to the miniature: its loader and files, its size, words and pose that it knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .miniature import ADAPTER, KNOWLEDGE_BASE, SIDE
from .places import GRAPHS

Graph = dict[str, dict[str, Any]]  # node id -> class_type, inputs, _meta: ComfyUI's API format

WORKFLOWS = ("knowledge_base_and_adapter", "look_inside")
DILATION = 3  # px of 128: the fine mask that the adapter was trained with, 13 of 512
BY_CLASS: Mapping[str, dict[str, Any]] = {
    "KBDMLoadKnowledgeBase": {"knowledge_base_name": KNOWLEDGE_BASE},
    "KBDMLoadAdapter": {"adapter_name": ADAPTER},
    "EmptyLatentImage": {"width": SIDE, "height": SIDE},
    "KBDMLoadPose": {"width": SIDE, "height": SIDE},
    "KBDMPoseToMask": {"dilation": DILATION},
}
CHECKPOINT_LOADER = "CheckpointLoaderSimple"
MINI_LOADER = {"class_type": "KBDMLoadMini", "inputs": {}, "_meta": {"title": "Load Mini Model"}}  # the same three outputs
TEXTS = {"Prompt": "positive", "KB Text Query": "positive", "Negative prompt": "negative"}  # by the nodes' titles


def shipped_graph(name: str) -> Graph:
    """The API twin of workflows/<name>.json."""
    return json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))


def fitted(graph: Graph, prompt: str, pose_json: str) -> Graph:
    """A copy of the graph on the miniature, with this prompt (and none for the negative one) and pose; all else stays as shipped."""
    texts = {"positive": prompt, "negative": ""}
    changed = {}
    for key, node in graph.items():
        kind, values = node["class_type"], dict(BY_CLASS.get(node["class_type"], {}))
        if kind == "KBDMLoadPose":
            values["json"] = pose_json
        if (role := TEXTS.get(title(graph, key))) is not None:
            values["text"] = texts[role]
        changed[key] = MINI_LOADER if kind == CHECKPOINT_LOADER else {**node, "inputs": {**node["inputs"], **values}}
    return changed


def amount_of_work(graph: Graph) -> int:
    """Units of the progress bar: one for each node, and one for each sampling step."""
    return len(graph) + sampling_steps(graph)


def sampling_steps(graph: Graph) -> int:
    """Steps of all samplers of the graph together."""
    return sum(node["inputs"]["steps"] for node in graph.values() if node["class_type"] == "KSampler")


def title(graph: Graph, node: str) -> str:
    """The node's title on the canvas."""
    return graph[node].get("_meta", {}).get("title", graph[node]["class_type"])
