"""A real ComfyUI as a child process: started, spoken to over its HTTP API, and stopped again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp

from .graphs import Graph
from .places import CHECKOUT

START_SECONDS, STOP_SECONDS = 300, 10
SILENCE_SECONDS = 600  # a host that says nothing for so long hangs


class HostError(RuntimeError):
    """The host did not start, refused a graph, or failed in a node."""


@dataclass(frozen=True)
class Picture:
    """One picture that a node of the graph made."""

    node: str
    content: bytes
    suffix: str


@contextlib.asynccontextmanager
async def running_host(folder: Path, log: Path) -> AsyncIterator[Host]:
    """ComfyUI with `folder` as its own folder, its output in `log`; stopped on leaving, whatever the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    hub = folder / "huggingface"  # the host lists this cache, and complains where there is none
    hub.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *host_command(folder, port), cwd=folder, env=environment, stdout=output, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops the host
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await _wait_until_it_answers(session, process)
            yield Host(session, process)
    finally:
        await _stop(process)


def host_command(folder: Path, port: int) -> list[str]:
    """The command line of the PyPI host, or of the checkout at COMFYUI_PATH, run by COMFYUI_PYTHON if that is set.

    Never run it in the repository, whose `nodes` would hide ComfyUI's.
    """
    attention = "--use-pytorch-cross-attention"  # as on a GPU; the CPU's default is slower
    common = ["--cpu", attention, "--listen", "127.0.0.1", "--port", str(port)]
    if checkout := os.environ.get("COMFYUI_PATH"):
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        return [python, str(CHECKOUT), checkout, "--base-directory", str(folder), "--disable-auto-launch", *common]
    return [sys.executable, "-m", "comfy.cmd.main", "--cwd", str(folder), "--disable-known-models", *common]


def host_name() -> str:
    """The host and its version, for the report."""
    checkout = os.environ.get("COMFYUI_PATH")
    if not checkout:
        return f"comfyui {version('comfyui')} from PyPI (ComfyUI of June 2024)"
    stated = Path(checkout, "comfyui_version.py")
    found = re.search(r'__version__ = "(.+)"', stated.read_text(encoding="utf-8")) if stated.exists() else None
    return f"ComfyUI {found[1]} (checkout)" if found else "ComfyUI of unknown version (checkout)"


@dataclass(frozen=True)
class Host:
    """A host that answers."""

    session: aiohttp.ClientSession
    process: asyncio.subprocess.Process

    async def node_ids(self) -> list[str]:
        """All node types that the host offers."""
        return sorted(await self._get("/object_info"))

    async def run(self, graph: Graph, on_progress: Callable[[int], None]) -> list[Picture]:
        """Queue a graph, report units of work as they are done, and fetch its pictures. Raises HostError."""
        client = uuid.uuid4().hex
        async with self.session.ws_connect("/ws", params={"clientId": client}, max_msg_size=0) as socket_:
            async with self.session.post("/prompt", json={"prompt": graph, "client_id": client}) as response:
                answer = await response.json()
                if response.status != 200:
                    raise HostError(f"the host refused the graph:\n{json.dumps(answer, indent=1)}")
            await self._follow(socket_, answer["prompt_id"], on_progress)
        history = await self._get(f"/history/{answer['prompt_id']}")
        outputs = history[answer["prompt_id"]]["outputs"]
        return [await self._picture(node, entry) for node, output in outputs.items() for entry in output.get("images", [])]

    async def _follow(self, socket_: aiohttp.ClientWebSocketResponse, prompt: str, on_progress: Callable[[int], None]) -> None:
        running, step = None, 0
        while True:
            message = await socket_.receive(timeout=SILENCE_SECONDS)
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                raise HostError("the host closed the connection")
            if message.type != aiohttp.WSMsgType.TEXT:
                continue  # previews of the picture
            event = message.json()
            kind, data = event["type"], event["data"]
            if data.get("prompt_id", prompt) != prompt:
                continue
            if kind == "execution_error":
                raise HostError(f"{data['node_type']}: {data['exception_message']}\n{''.join(data['traceback'])}")
            if kind == "execution_cached":
                on_progress(len(data["nodes"]))
            elif kind == "progress":
                on_progress(data["value"] - step)
                step = data["value"]
            elif kind == "executing":
                on_progress(1 if running else 0)
                running, step = data["node"], 0
                if running is None:
                    return

    async def _picture(self, node: str, entry: dict[str, str]) -> Picture:
        async with self.session.get("/view", params=entry) as response:
            response.raise_for_status()
            return Picture(node, await response.read(), Path(entry["filename"]).suffix)

    async def _get(self, path: str) -> Any:
        async with self.session.get(path) as response:
            response.raise_for_status()
            return await response.json()


async def _wait_until_it_answers(session: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise HostError(f"the host ended with exit status {process.returncode} before it answered")
        try:
            async with session.get("/system_stats") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)
    raise HostError(f"the host did not answer within {START_SECONDS} s")


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask, then insist. A second Ctrl-C meanwhile cuts this short, and the host's life too."""
    try:
        for wish in (signal.SIGINT, signal.SIGTERM):
            if process.returncode is None:
                process.send_signal(wish)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
