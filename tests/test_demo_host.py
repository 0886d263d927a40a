"""How the demo deals with a host: started, spoken to, failing, stubborn and dying hosts."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from demo import host as demo_host
from demo.host import Host, HostError, Picture, host_command, running_host
from demo.places import ROOT

FAKE_HOST = ROOT / "testbed" / "fake_host.py"


@pytest.fixture
def fake_host(monkeypatch):
    """ComfyUI's HTTP API in a child process, without ComfyUI."""
    monkeypatch.setattr(demo_host, "host_command", lambda folder, port: [sys.executable, str(FAKE_HOST), str(port)])


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
