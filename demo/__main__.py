"""make demo: starts a real ComfyUI, queues the shipped workflows over its HTTP API, leaves pictures and report.json in demo/out/."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from . import pose
from .graphs import WORKFLOWS, Graph, amount_of_work, fitted, sampling_steps, shipped_graph, title
from .host import Host, HostError, Picture, host_name, running_host
from .places import HOST, HOST_LOG, OUT, PACK_NAME, REPORT, ROOT, shown
from .report import STATEMENT, File, Report, WorkflowRun, write_report, write_whole
from .weights import Weights, make_weights

LOG_TAIL = 30
BAR = "{desc:28s} {percentage:3.0f} %|{bar}| {elapsed}, {remaining} to go"


async def demo() -> None:
    """The whole demo."""
    logging.disable(logging.INFO)  # the host's classes are chatty when imported
    seconds: dict[str, float] = {}
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with stopwatch(seconds, "pose and weights"):
        pose_json = pose.coco_json()
        weights = make_weights(HOST / "models")
    install_pack()
    print(f"Starting {host_name()} ...", flush=True)
    started = time.perf_counter()
    async with running_host(HOST, HOST_LOG) as host:
        seconds["host start"] = round(time.perf_counter() - started, 1)
        pack_nodes = [node for node in await host.node_ids() if node.startswith("KBDM")]
        if not pack_nodes:
            raise HostError("the host did not load the pack")
        print(f"It answers after {seconds['host start']:.0f} s and offers {', '.join(pack_nodes)}.", flush=True)
        runs = [await run_workflow(host, name, fitted(shipped_graph(name), pose_json)) for name in WORKFLOWS]
    seconds["workflows"] = round(sum(run.seconds for run in runs), 1)
    write_report(
        REPORT,
        Report(
            host=host_name(), python=platform.python_version(), torch=torch.__version__, processors=os.cpu_count() or 1, pose=pose.SOURCE,
            pack_nodes=pack_nodes, weights=[weights_entry(each) for each in weights], workflows=runs, seconds=seconds,
        ),
    )  # fmt: skip
    pictures = [f"  {file.path}  {file.content}" for run in runs for file in run.pictures]
    print("\n".join(["", *pictures, f"  {shown(REPORT)}", "", STATEMENT]))


async def run_workflow(host: Host, name: str, graph: Graph) -> WorkflowRun:
    """Queue one workflow, show its progress, save its pictures."""
    started = time.perf_counter()
    with tqdm(total=amount_of_work(graph), desc=name, bar_format=BAR) as bar:
        pictures = await host.run(graph, bar.update)
        bar.update(bar.total - bar.n)
    seconds = round(time.perf_counter() - started, 1)
    nodes = sorted(node["class_type"] for node in graph.values())
    return WorkflowRun(name, seconds, nodes, sampling_steps(graph), save(name, graph, pictures))


def save(name: str, graph: Graph, pictures: list[Picture]) -> list[File]:
    """Save pictures as WORKFLOW.NODE-TITLE.png, numbered where a node made several."""
    files, seen = [], Counter()
    for picture in sorted(pictures, key=lambda each: int(each.node)):
        content = title(graph, picture.node)
        slug = re.sub(r"[^a-z0-9]+", "-", content.lower()).strip("-")
        seen[slug] += 1
        number = f"-{seen[slug]}" if seen[slug] > 1 else ""
        path = OUT / f"{name}.{slug}{number}{picture.suffix}"
        write_whole(path, picture.content)
        files.append(File(shown(path), len(picture.content), content))
    return files


def install_pack() -> None:
    """Link the repository into the host's custom_nodes, as a git clone there would be."""
    link = HOST / "custom_nodes" / PACK_NAME
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.resolve() != ROOT:
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT, target_is_directory=True)


def weights_entry(weights: Weights) -> File:
    """A weights file as the report lists it."""
    return File(shown(weights.path), weights.path.stat().st_size, weights.content)


@contextlib.contextmanager
def stopwatch(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Note how long the block took."""
    started = time.perf_counter()
    yield
    seconds[what] = round(time.perf_counter() - started, 1)


def log_tail(log: Path) -> str:
    """The end of the host's log, for the person whose demo failed."""
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    return "\n".join([f"The last lines of {shown(log)}:", *(f"  {line}" for line in lines)])


async def main() -> int:
    """Run the demo; 0 if all went well. SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers here
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await demo()
    except HostError as error:
        print(f"\nThe demo failed: {error}\n{log_tail(HOST_LOG)}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("\nStopped; the host too.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
