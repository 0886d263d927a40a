"""make demo in a fake host: its graphs, rows, figures and report, and what an interruption leaves."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from demo import __main__ as demo_main
from demo import host as demo_host
from demo import judging, miniature, places, pose, rows
from demo.columns import COLUMNS, PICTURES, row_graph
from demo.graphs import WORKFLOWS, amount_of_work, fitted, sampling_steps, shipped_graph
from demo.host import HostError, Picture
from demo.miniature import CONTENTS, mini_files
from demo.pose import single_image
from demo.report import STATEMENT
from demo.rows import SCENES, held_out, in_square
from demo.runs import draw_row, save
from kbdm_core.errors import FileFormatError, PoseError
from kbdm_core.keypoints import Person, Pose, parse_pose_json
from testbed.random_mini import write_mini
from train.adapter.workflow import pose_json
from train.mini import build
from train.mini.world.captions import STYLES
from train.mini.world.dataset import example
from train.mini.world.scene import scene

FAKE_HOST = places.ROOT / "testbed" / "fake_host.py"
BODY = [number for joint in range(17) for number in (5.0 + joint, 7.0 + 2 * joint, 2)]
COCO = {"images": [{"id": 1, "width": 50, "height": 60, "license": 4}, {"id": 2, "width": 9, "height": 9}],
        "annotations": [{"image_id": 2, "keypoints": [0] * 51}, {"image_id": 1, "keypoints": BODY}]}  # fmt: skip


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture
def small_demo(mini, tmp_path, monkeypatch):
    """The demo of one drawn and one real row with random weights, in folders of its own."""
    for name in ("OUT", "HOST"):
        monkeypatch.setattr(places, name, tmp_path / name.lower())
    for name in ("README_GRID", "README_ATTENTION"):
        monkeypatch.setattr(places, name, tmp_path / "assets" / f"{name.lower()}.jpg")
    monkeypatch.setattr(places, "MINI", mini)
    monkeypatch.setattr(rows, "SCENES", SCENES[:1])
    monkeypatch.setattr(pose, "coco_json", lambda: single_image(COCO, 1))
    monkeypatch.setattr(demo_main, "STEPS", 2)
    return tmp_path


def use_fake_host(monkeypatch, *manners: str) -> None:
    """ComfyUI's HTTP API in a child process, without ComfyUI."""
    monkeypatch.setattr(demo_host, "host_command", lambda folder, port: [sys.executable, str(FAKE_HOST), str(port), *manners])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_fitted_graph_is_the_shipped_one_on_the_miniature(name):
    shipped, graph = shipped_graph(name), fitted(shipped_graph(name), "a man", "{}")
    assert shipped.keys() == graph.keys()
    for key, node in graph.items():
        links = {name: value for name, value in shipped[key]["inputs"].items() if isinstance(value, list)}
        assert links.items() <= node["inputs"].items()
        if shipped[key]["class_type"] == "CheckpointLoaderSimple":
            assert node["class_type"] == "KBDMLoadMini" and node["inputs"] == {}
        else:
            assert node["class_type"] == shipped[key]["class_type"] and node["inputs"].keys() == shipped[key]["inputs"].keys()
    values = json.dumps(graph)
    assert "mini/knowledge_base.safetensors" in values and "mini/adapter.safetensors" in values and "kbdm_sd15" not in values


def test_a_fitted_graph_asks_for_the_prompt_and_nothing_negative():
    graph = fitted(shipped_graph("knowledge_base_and_adapter"), "a man", '{"a": 1}')
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    assert [graph[sampler["inputs"][role][0]]["inputs"]["text"] for role in ("positive", "negative")] == ["a man", ""]
    query = next(node for node in graph.values() if node["class_type"] == "KBDMTextQuery")
    assert (query["inputs"]["text"], query["inputs"]["negative_text"]) == ("a man", "")
    assert sampler["inputs"]["steps"] == sampling_steps(graph) == 25 and amount_of_work(graph) == len(graph) + 25


def test_the_columns_of_a_row_differ_in_the_strengths_alone():
    graph = row_graph(held_out(59, 7))
    found = {}
    for node in graph.values():
        if node["class_type"] == "PreviewImage" and node["_meta"]["title"] != "pose":
            decoded = graph[node["inputs"]["images"][0]]
            sampler = graph[decoded["inputs"]["samples"][0]]
            applied = graph[sampler["inputs"]["model"][0]]
            assert applied["class_type"] == "KBDMAdapterApply"
            rest = {name: value for name, value in applied["inputs"].items() if name not in ("kb_strength", "dm_strength", "pose_strength")}
            settings = {name: value for name, value in sampler["inputs"].items() if name != "model"}
            found[node["_meta"]["title"]] = [applied["inputs"][f"{section}_strength"] for section in ("kb", "dm", "pose")], rest, settings
    assert {name: strengths for name, (strengths, _, _) in found.items()} == {
        "base": [0.0, 0.0, 0.0], "kb": [1.0, 0.0, 0.0], "kb-dm": [1.0, 1.0, 0.0], "full": [1.0, 1.0, 1.0],
    }  # fmt: skip
    (_, rest, settings), *others = found.values()
    assert all(other[1:] == (rest, settings) for other in others)
    assert {"kb_tokens", "pose_image"} <= rest.keys() and rest["negative_strength"] == 0.0
    expected = {"seed": 7, "steps": 50, "cfg": 7.5, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}
    assert expected.items() <= settings.items()
    assert graph[settings["latent_image"][0]]["inputs"] == {"width": 128, "height": 128, "batch_size": PICTURES}
    assert sampling_steps(graph) == 4 * 50


def test_every_link_of_a_row_leads_to_a_node_of_it():
    graph = row_graph(held_out(57, 1))
    for node in graph.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in graph
    assert all(key.isdecimal() for key in graph)


def test_rows_share_what_the_host_caches():
    """ComfyUI keeps what a node gave if number, type and inputs are those of the last graph."""
    one, other = row_graph(held_out(59, 1)), row_graph(held_out(57, 2))
    assert {key: node["class_type"] for key, node in one.items()} == {key: node["class_type"] for key, node in other.items()}
    same = {node["class_type"] for key, node in one.items() if node["inputs"] == other[key]["inputs"]}
    assert {"KBDMLoadMini", "KBDMLoadKnowledgeBase", "KBDMLoadAdapter"} <= same


def test_the_pose_that_the_host_reads_is_that_of_the_held_out_scene():
    row, truth = held_out(57, 0), example("held-out", 57)
    (read,) = parse_pose_json(pose_json(row.pose), 128, 128)
    assert row.prompt == truth.caption and (read.width, read.height) == (128, 128)
    assert len(read.people) == len(truth.pose.people) == 2
    for found, person in zip(read.people, truth.pose.people):
        seen = person.body[:, 2] > 0
        assert np.array_equal(found.body[:, 2] > 0, seen) and np.allclose(found.body[seen, :2], person.body[seen, :2])


def test_the_rows_show_all_styles_and_the_readme_drawn_people_alone(monkeypatch):
    monkeypatch.setattr(pose, "coco_json", lambda: single_image(COCO, 1))
    found = rows.demo_rows()
    assert {scene(10_000_000 + number).facts.style for number in SCENES} == set(STYLES)
    assert len({row.seed for row in found}) == len({row.name for row in found}) == len(found) == len(SCENES) + 1
    assert "CC BY-NC" in found[-1].source
    assert all(row.source.startswith("Mini-Human, held-out") for row in found[: rows.README_ROWS])


def test_the_pose_of_one_image_is_joined_by_its_id():
    (found,) = parse_pose_json(single_image(COCO, 1))
    assert (found.width, found.height) == (50, 60) and found.people[0].body[3].tolist() == [8.0, 13.0, 1.0]


def test_a_real_person_is_brought_into_a_square_without_being_stretched():
    body = np.array(BODY, float).reshape(17, 3)
    body[4] = 0.0
    placed = in_square(Pose((Person(body),), 50, 60), 128, 0.75).people[0].body
    assert placed[4].tolist() == [0.0, 0.0, 0.0]
    seen = body[:, 2] > 0
    steps = np.diff(placed[seen, :2], axis=0) / np.diff(body[seen, :2], axis=0)
    assert np.allclose(steps, 3.0)  # 96 of 128 px for 32
    assert np.allclose((placed[seen, :2].min(axis=0) + placed[seen, :2].max(axis=0)) / 2, 64.0)
    with pytest.raises(PoseError, match="no visible joint"):
        in_square(Pose((), 50, 60), 128, 0.75)


def png(colour: tuple[int, int, int]) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(content, "PNG")
    return content.getvalue()


class ByBrightness:
    """An estimator that sees the pose in white pictures and nobody in black ones."""

    def __init__(self, seen: Pose):
        self.seen = seen

    def estimate(self, pictures):
        assert pictures.shape[1:] == (3, 16, 16) and pictures.abs().max() == 1
        return [self.seen if picture.mean() > 0 else replace(self.seen, people=()) for picture in pictures]


def test_the_pose_error_counts_joints_and_people():
    asked = Pose((Person(np.array(BODY, float).reshape(17, 3)),), 128, 128)
    figures = judging.pose_error(ByBrightness(asked), [png((255, 255, 255)), png((0, 0, 0))], [asked, asked])
    assert (figures["pck@0.2"], figures["pck@0.1"], figures["people_error"], figures["pictures"]) == (0.5, 0.5, 0.5, 2)
    assert figures["pck@0.2_several_people"] is None and set(figures) == set(judging.FIGURES)


def test_the_demo_leaves_pictures_and_a_report(small_demo, monkeypatch):
    use_fake_host(monkeypatch)
    asyncio.run(demo_main.demo(readme=True))
    out = places.OUT
    report = json.loads((out / "report.json").read_text())
    assert set(report) == {
        "host", "python", "torch", "processors", "pack_nodes", "weights", "sampling", "columns", "estimator", "rows", "workflows", "pictures",
        "seconds", "statement",
    }  # fmt: skip
    assert report["statement"] == STATEMENT and "miniature" in STATEMENT and "nothing about SD1.5" in STATEMENT
    assert report["pack_nodes"] == ["KBDMLoadMini"] and [row["name"] for row in report["rows"]] == ["scene-59", "coco"]
    for entry, column in zip(report["columns"], COLUMNS, strict=True):
        assert column.strengths.items() <= entry.items() and {"pck@0.2", "pck@0.1", "people_error"} <= entry.keys()
        assert entry["name"] == column.name and entry["pictures"] == 2 * PICTURES
    assert len(report["weights"]) == len(CONTENTS) and report["estimator"]["held_out"] == {"pictures": 4, "pck@0.2": 0.9}
    assert report["sampling"] == {
        "sampler": "ddim", "scheduler": "ddim_uniform", "steps": 50, "cfg": 7.5, "negative_strength": 0.0,
        "pictures_per_row_and_column": PICTURES,
    }  # fmt: skip
    assert {"host start", "grid", "workflows", "attention", "judging"} <= report["seconds"].keys()
    assert [run["name"] for run in report["workflows"]] == list(WORKFLOWS)
    named = [*report["weights"], *report["pictures"], *(file for run in [*report["rows"], *report["workflows"]] for file in run["pictures"])]
    for file in named:
        assert places.ROOT.joinpath(file["path"]).stat().st_size == file["bytes"]
    assert len(report["rows"][0]["pictures"]) == 1 + len(COLUMNS) * PICTURES
    assert Image.open(places.README_GRID).format == "JPEG" and places.README_ATTENTION.exists()
    assert not list(small_demo.rglob("*.part"))


def test_an_interruption_leaves_whole_pictures_and_no_report(small_demo, monkeypatch):
    use_fake_host(monkeypatch, "hangs")

    async def interrupted() -> None:
        task = asyncio.create_task(demo_main.demo())
        while not list(places.OUT.glob("scene-59.full-*.png")):
            assert not task.done(), task.exception()
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    left = {path.name for path in places.OUT.iterdir()}
    drawn = {f"scene-59.{column.name}-{number}.png" for column in COLUMNS for number in range(1, PICTURES + 1)}
    assert left == drawn | {"scene-59.pose.png", "host.log"}
    for name in drawn:
        Image.open(places.OUT / name).load()


def test_work_in_a_thread_ends_at_its_next_check():
    ended = []

    def work(check) -> None:
        try:
            while True:
                check()
        finally:
            ended.append(True)

    async def run() -> None:
        task = asyncio.create_task(demo_main.in_thread(work))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())  # waits for its threads
    assert ended == [True]


def test_a_column_without_a_picture_is_an_error(tmp_path):
    class Forgetful:
        async def run(self, graph, on_progress):
            return [Picture("100", png((1, 2, 3)), ".png")]

    row = held_out(59, 0)
    with pytest.raises(HostError, match="no picture for base, kb, kb-dm, full"):
        asyncio.run(draw_row(Forgetful(), row, row_graph(row), tmp_path, lambda units: None))
    assert not list(tmp_path.iterdir())


def test_a_missing_file_of_the_miniature_is_named(mini, tmp_path, small_demo, capsys, monkeypatch):
    assert [file.bytes for file in mini_files(mini)] == [(mini / name).stat().st_size for name in CONTENTS]
    monkeypatch.setattr(places, "MINI", tmp_path)
    with pytest.raises(FileFormatError, match=r"estimator\.safetensors"):
        mini_files(tmp_path)
    assert asyncio.run(demo_main.main([])) == 1
    assert "The demo failed: the miniature is not whole: checkpoint.safetensors" in capsys.readouterr().err


def test_the_files_are_those_that_the_build_of_the_miniature_writes():
    built = {build.CHECKPOINT, build.ESTIMATOR, build.KNOWLEDGE_BASE, build.ADAPTER, build.CLIP / "open_clip_model.safetensors"}
    assert {path.as_posix() for path in built} == CONTENTS.keys()
    assert build.CLIP.as_posix() == miniature.CLIP_FOLDER


def test_pictures_are_named_after_workflow_and_node(tmp_path):
    graph = {"1": {"class_type": "PreviewImage", "_meta": {"title": "KB tokens"}}, "2": {"class_type": "SaveImage"}}
    files = save("look_inside", graph, [Picture("2", b"b", ".png"), Picture("1", b"a", ".png"), Picture("1", b"c", ".png")], tmp_path)
    names = ["look_inside.kb-tokens.png", "look_inside.kb-tokens-2.png", "look_inside.saveimage.png"]
    assert [file.path.rsplit("/", 1)[-1] for file in files] == names
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"c", b"a", b"b"]


def test_no_log_is_no_tail(tmp_path):
    assert demo_main.log_tail(tmp_path / "none.log") == ""
