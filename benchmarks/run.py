"""make bench: a query; codebook and training step beside other libraries; a step of a full-size SD1.5 UNet with each part of the guidance."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from benchmarks import codebook, query
from benchmarks.variants import Step, build, own_callbacks

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).parent / "out"
PAIRED = ("dynamic mask", "everything")  # measured in every round; the others in the first --rounds-others


@dataclass
class Sample:
    """One step: wall seconds, peak resident memory in MiB, seconds inside our callbacks."""

    seconds: float
    peak_mib: float
    own: float


def measure(run, step: Step) -> Sample:
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (Linux)
    with own_callbacks() as own:
        start = time.perf_counter()
        run(step)
        seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return Sample(seconds, int(peak.split()[1]) / 1024, own())


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Mean of paired ratios (on the log scale) with its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:  # no spread to tell
        return (math.exp(mean),) * 3
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / len(logs) ** 0.5
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="alternating rounds of unpatched, dynamic mask, everything (default 12)")
    parser.add_argument("--rounds-others", type=int, default=3, help="rounds that also run the other variants (default 3)")
    parser.add_argument("--size", type=int, default=512, help="picture size in px (default 512)")
    parser.add_argument("--conds", type=int, default=1, help="chunks per batch: 1 = cond only, 2 = cond and uncond (default 1)")
    args = parser.parse_args()

    query.main()
    codebook.main([])
    subprocess.run([sys.executable, "-m", "benchmarks.training"], cwd=ROOT, check=True)  # its imports would count as memory of the steps below
    print(f"\nBuilding a full-size SD1.5 UNet with random weights, {args.size} px, {args.conds} cond(s), {torch.get_num_threads()} threads ...")
    variants, step = build(args.size), Step(args.size, args.conds)
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    plan = [
        [name for name in variants if name in ("unpatched", *PAIRED) or index < args.rounds_others] for index in range(args.rounds)
    ]
    first = {}
    with tqdm(total=len(variants) + sum(map(len, plan)), unit="step") as bar:
        for name, run in variants.items():  # warm-up; the first step also prepares keys, values and picture features
            bar.set_description(f"warm-up: {name}")
            first[name] = measure(run, step)
            bar.update()
        for index, names in enumerate(plan):
            for name in names if index % 2 == 0 else reversed(names):
                bar.set_description(name)
                samples[name].append(measure(variants[name], step))
                bar.update()
    report = {name: summary(name, samples, first[name]) for name in variants}
    print(table(report))
    OUT.mkdir(exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    (OUT / "steps.json").write_text(
        json.dumps({**machine, **vars(args), "variants": report, "samples": {k: [asdict(s) for s in v] for k, v in samples.items()}}, indent=1)
    )
    plot(report, OUT / "steps.png", args)
    print(f"Written: {OUT / 'steps.json'}, {OUT / 'steps.png'}")


def summary(name: str, samples: dict[str, list[Sample]], first: Sample) -> dict:
    """Medians of one variant, and ratios to the unpatched step of the same round."""
    mine, base = samples[name], samples["unpatched"]
    ratio, low, high = interval([a.seconds / b.seconds for a, b in zip(mine, base)]) if name != "unpatched" else (1.0, 1.0, 1.0)
    return {
        "rounds": len(mine),
        "seconds": statistics.median(s.seconds for s in mine),
        "ratio": ratio,
        "low": low,
        "high": high,
        "own_share": statistics.median(s.own / s.seconds for s in mine),
        "peak_ratio": statistics.median(s.peak_mib for s in mine) / statistics.median(s.peak_mib for s in base),
        "once_seconds": first.own - statistics.median(s.own for s in mine),
    }


def table(report: dict) -> str:
    """The report as text."""
    lines = [f"\n{'variant':20s} {'rounds':>6s} {'median s':>9s} {'x unpatched':>12s} {'95 % interval':>17s} {'own share':>10s} {'peak memory':>12s}"]
    for name, row in report.items():
        span = f"{row['low']:.3f}-{row['high']:.3f}" if row["rounds"] > 1 else "one round"
        lines.append(
            f"{name:20s} {row['rounds']:6d} {row['seconds']:9.2f} {row['ratio']:12.3f} {span:>17s} "
            f"{100 * row['own_share']:9.2f}% {row['peak_ratio']:11.3f}x"
        )
    return "\n".join(lines)


def plot(report: dict, path: Path, args: argparse.Namespace) -> None:
    """Ratios with their intervals as a bar chart."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="time of one step / unpatched", title=f"SD1.5 UNet, {args.size} px, CPU, random weights")
    names = [name for name in report if name != "unpatched"][::-1]
    errors = [[report[n]["ratio"] - report[n]["low"] for n in names], [report[n]["high"] - report[n]["ratio"] for n in names]]
    bars = axes.barh(names, [report[n]["ratio"] for n in names], xerr=errors, color="tab:blue", capsize=3)
    axes.bar_label(bars, labels=[f"{report[n]['ratio']:.3f}x" for n in names], padding=12)
    axes.axvline(1.0, color="black", lw=1)
    axes.margins(x=0.15)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
