"""The shipped workflows agree with the node classes of pack and host, and with their API twins."""

from __future__ import annotations

import itertools
import json

import pytest

from kbdm_core.keypoints import parse_pose_json
from testbed.host_nodes import node_classes
from testbed.pack import ROOT, load_pack

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
VIRTUAL = {"Note"}  # drawn by the page, unknown to the server
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN"}
SEEDS = {"seed", "noise_seed"}  # the page adds a widget after them: what happens to the seed after each run
TITLE_HEIGHT = 30

each_workflow = pytest.mark.parametrize("name", NAMES)


def ui(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def api(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def real_nodes(name: str) -> list[dict]:
    return [node for node in ui(name)["nodes"] if node["type"] not in VIRTUAL]


def inputs_of(node_type: str) -> dict[str, tuple]:
    """Name -> declaration, in the order in which ComfyUI lists them."""
    declared = node_classes()[node_type].INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


def is_widget(declaration: tuple) -> bool:
    return isinstance(declaration[0], list) or declaration[0] in WIDGET_TYPES


def widgets_of(node: dict) -> dict[str, object]:
    """Widget name -> value: `widgets_values` as the page reads them."""
    names: list[str | None] = []
    for name, declaration in inputs_of(node["type"]).items():
        if is_widget(declaration):
            names += [name, None] if name in SEEDS else [name]
    assert len(names) == len(node["widgets_values"]), f"{node['type']} has the widgets {names}"
    return {name: value for name, value in zip(names, node["widgets_values"]) if name}


def test_there_is_a_workflow_for_each_use():
    assert NAMES == [
        "adapter_with_controlnet_and_lora", "dynamic_mask_with_openpose_controlnet", "knowledge_base_and_adapter", "look_inside", "miniature",
    ]  # fmt: skip
    assert sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json")) == NAMES


def test_every_node_of_the_pack_is_in_a_workflow():
    used = {node["type"] for name in NAMES for node in real_nodes(name)}
    assert set(load_pack().NODE_CLASS_MAPPINGS) <= used


@each_workflow
def test_the_api_twin_is_the_same_graph(name):
    graph, twin = ui(name), api(name)
    sources = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    same = {}
    for node in real_nodes(name):
        linked = {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
        same[str(node["id"])] = {"class_type": node["type"], "inputs": {**widgets_of(node), **linked}}
    assert {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in twin.items()} == same
    for node in real_nodes(name):
        assert "title" not in node or twin[str(node["id"])]["_meta"]["title"] == node["title"]


@each_workflow
def test_slots_are_those_of_the_node_class(name):
    for node in real_nodes(name):
        declared = {key: value[0] for key, value in inputs_of(node["type"]).items() if not is_widget(value)}
        slots = {entry["name"]: entry["type"] for entry in node["inputs"]}
        assert slots.items() <= declared.items(), node["type"]  # a newer host may have more optional ones
        assert list(slots) == [key for key in declared if key in slots], f"{node['type']}: order"
        cls = node_classes()[node["type"]]
        names = getattr(cls, "RETURN_NAMES", None) or cls.RETURN_TYPES
        assert [(entry["name"], entry["type"]) for entry in node["outputs"]] == list(zip(names, cls.RETURN_TYPES)), node["type"]


@each_workflow
def test_widget_values_are_allowed(name):
    for node in real_nodes(name):
        for key, value in widgets_of(node).items():
            kind, *options = inputs_of(node["type"])[key]
            limits = options[0] if options else {}
            where = f"{node['type']}.{key} = {value!r}"
            if isinstance(kind, list):
                assert key.endswith("_name") or value in kind, where  # files are the user's
            else:
                assert isinstance(value, {"INT": int, "FLOAT": int | float, "STRING": str, "BOOLEAN": bool}[kind]), where
            if "min" in limits and not isinstance(kind, list):
                assert limits["min"] <= value <= limits["max"], where


@each_workflow
def test_required_inputs_are_connected(name):
    for node in api(name).values():
        assert node_classes()[node["class_type"]].INPUT_TYPES()["required"].keys() <= node["inputs"].keys(), node["class_type"]


@each_workflow
def test_links_join_an_output_to_an_input_of_its_type(name):
    graph = ui(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    ids = [link[0] for link in graph["links"]]
    assert len(set(ids)) == len(ids) and max(ids) == graph["last_link_id"] and max(nodes) == graph["last_node_id"]
    for link, source, source_slot, target, target_slot, kind in graph["links"]:
        output, entry = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"] and entry["link"] == link and output["type"] == entry["type"] == kind
        assert nodes[source]["order"] < nodes[target]["order"]
    for node in graph["nodes"]:
        for slot, output in enumerate(node["outputs"]):
            assert output["links"] == [link[0] for link in graph["links"] if link[1:3] == [node["id"], slot]]


@each_workflow
def test_nodes_tell_their_pack(name):
    packs = {"comfy-core", "comfyui-kb-dmgen"}
    for node in real_nodes(name):
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"] and properties["cnr_id"] in packs and properties["ver"]
        assert (properties["cnr_id"] == "comfyui-kb-dmgen") == (node["type"] in load_pack().NODE_CLASS_MAPPINGS)


@each_workflow
def test_nodes_lie_apart_and_in_groups(name):
    def box(entry: dict) -> tuple[float, float, float, float]:
        (x, y), (width, height) = entry["pos"], entry["size"]
        return x, y - TITLE_HEIGHT, x + width, y + height

    graph = ui(name)
    for a, b in itertools.combinations(map(box, graph["nodes"]), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    groups = [(x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in graph["groups"])]
    for node in real_nodes(name):
        left, top, right, bottom = box(node)
        assert any(g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3] for g in groups), node["type"]


@each_workflow
def test_a_note_says_where_every_file_goes(name):
    note = " ".join(node["widgets_values"][0] for node in ui(name)["nodes"] if node["type"] == "Note")
    folders = {
        "ckpt_name": "models/checkpoints/", "control_net_name": "models/controlnet/", "lora_name": "models/loras/",
        "knowledge_base_name": "models/kbdm_knowledge_bases/", "adapter_name": "models/kbdm_adapters/",
    }  # fmt: skip
    for node in real_nodes(name):
        for key in widgets_of(node):
            assert key not in folders or folders[key] in note, key


@each_workflow
def test_the_pose_is_one_whole_person_inside_the_canvas(name):
    for node in real_nodes(name):
        if node["type"] == "KBDMLoadPose":
            (pose,) = parse_pose_json(widgets_of(node)["json"])
            (person,) = pose.people
            assert (person.body[:, 2] == 1).all()
            assert (person.body[:, :2] > 0).all() and (person.body[:, :2] < [pose.width, pose.height]).all()


@each_workflow
def test_the_thumbnail_is_small(name):
    thumbnail = ROOT / "workflows" / f"{name}.jpg"
    assert thumbnail.read_bytes().startswith(b"\xff\xd8") and thumbnail.stat().st_size < 60_000
