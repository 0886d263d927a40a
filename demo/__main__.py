"""make demo: starts a real ComfyUI, draws prompts x poses on the miniature over its HTTP API, leaves pictures and report.json in demo/out/."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from kbdm_core.errors import KBDMError
from train.adapter.workflow import pose_json

from . import places
from .attention import watch
from .attention_picture import draw_attention
from .columns import COLUMNS, SCALE, STEPS
from .files import file_entry, write_picture
from .graphs import WORKFLOWS, fitted, shipped_graph
from .grid import GridRow, draw_grid
from .host import Host, HostError, host_name, running_host
from .judging import judge, open_picture
from .miniature import ESTIMATOR_FILE, mini_files
from .report import SAMPLING, STATEMENT, Report, column_entries, row_entry, write_report
from .rows import README_ROWS, Row, demo_rows
from .runs import DrawnRow, WorkflowRun, draw_rows, run_workflow

LOG_TAIL = 30
FOOTER = "A miniature trained on drawn people. It shows what the parts of the adapter do here, and nothing about SD1.5 or photographs."
Result = TypeVar("Result")


async def demo(readme: bool = False) -> None:
    """The whole demo. readme: make the README's pictures anew, too."""
    logging.disable(logging.INFO)  # libraries are chatty when imported
    seconds: dict[str, float] = {}
    out = places.OUT
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    weights = mini_files(places.MINI)
    estimator, judged = judge(places.MINI / ESTIMATOR_FILE)
    with stopwatch(seconds, "rows"):
        rows = demo_rows()
    install_pack()
    print(f"Starting {host_name()} ...", flush=True)
    started = time.perf_counter()
    async with running_host(places.HOST, out / places.HOST_LOG) as host:
        seconds["host start"] = round(time.perf_counter() - started, 1)
        pack_nodes = await nodes_of_the_pack(host)
        print(f"It answers after {seconds['host start']:.0f} s and offers {', '.join(pack_nodes)}.", flush=True)
        with stopwatch(seconds, "grid"):
            drawn = await draw_rows(host, rows, out)
        with stopwatch(seconds, "workflows"):
            runs = await run_workflows(host, rows[-1], out)
    with stopwatch(seconds, "attention"):
        found = await in_thread(lambda check: watch(places.MINI, rows[0], STEPS, SCALE, check))
    with stopwatch(seconds, "judging"):
        columns = column_entries(estimator, drawn)
    pictures = [(out / places.GRID, picture_grid(drawn)), (out / places.ATTENTION, draw_attention(found))]
    if readme:
        pictures += [(places.README_GRID, picture_grid(drawn[:README_ROWS])), (places.README_ATTENTION, pictures[1][1])]
    for path, picture in pictures:
        write_picture(path, picture)
    files = [file_entry(path, path.stem) for path, _ in pictures]
    write_report(
        out / places.REPORT,
        Report(
            host=host_name(), python=platform.python_version(), torch=torch.__version__, processors=os.cpu_count() or 1, pack_nodes=pack_nodes,
            weights=weights, sampling=SAMPLING, columns=columns, estimator=judged, rows=[row_entry(each) for each in drawn], workflows=runs,
            pictures=files, seconds=seconds,
        ),
    )  # fmt: skip
    scores = [f"  {entry['title']:15s} PCK@0.2 {entry['pck@0.2']:.2f}   PCK@0.1 {entry['pck@0.1']:.2f}" for entry in columns]
    written = [f"  {file.path}" for file in files] + [f"  {places.shown(out / places.REPORT)}"]
    print("\n".join(["", *scores, "", *written, "", STATEMENT]))


async def nodes_of_the_pack(host: Host) -> list[str]:
    """The pack's nodes that the host offers. Raises HostError if there are none."""
    nodes = [node for node in await host.node_ids() if node.startswith("KBDM")]
    if not nodes:
        raise HostError("the host did not load the pack")
    return nodes


async def run_workflows(host: Host, row: Row, folder: Path) -> list[WorkflowRun]:
    """The shipped workflows that the miniature has all files for, on a row's prompt and pose."""
    graphs = {name: fitted(shipped_graph(name), row.prompt, pose_json(row.pose)) for name in WORKFLOWS}
    return [await run_workflow(host, name, graph, folder) for name, graph in graphs.items()]


def picture_grid(drawn: Sequence[DrawnRow]):
    """The grid of the first picture of every row and column."""
    rows = [
        GridRow(
            each.row.prompt, each.row.pose, open_picture(each.pose_picture), [open_picture(each.columns[column.name][0]) for column in COLUMNS]
        )
        for each in drawn
    ]
    return draw_grid(rows, [column.title for column in COLUMNS], FOOTER)


def install_pack() -> None:
    """Link the repository into the host's custom_nodes, as a git clone there would be."""
    link = places.HOST / "custom_nodes" / places.PACK_NAME
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.resolve() != places.ROOT:
        link.unlink(missing_ok=True)
        link.symlink_to(places.ROOT, target_is_directory=True)


async def in_thread(work: Callable[[Callable[[], None]], Result]) -> Result:
    """Run long work beside the event loop, so that Ctrl-C is heard. The work calls what it is given now and then; that ends it after one."""
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise InterruptedError

    try:
        return await asyncio.to_thread(work, check)
    finally:
        stop.set()


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
    return "\n".join([f"The last lines of {places.shown(log)}:", *(f"  {line}" for line in lines)])


async def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if all went well. SIGTERM ends it as Ctrl-C does."""
    parser = argparse.ArgumentParser("python -m demo", description="Draws prompts x poses on the miniature in a real ComfyUI.")
    shown = ", ".join(places.shown(path) for path in (places.README_GRID, places.README_ATTENTION))
    parser.add_argument("--readme", action="store_true", help=f"also make the README's pictures anew: {shown}")
    chosen = parser.parse_args(arguments)
    task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers here
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await demo(chosen.readme)
    except (HostError, KBDMError) as error:
        print(f"\nThe demo failed: {error}\n{log_tail(places.OUT / places.HOST_LOG)}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("\nStopped; the host too.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
