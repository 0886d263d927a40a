"""A training step of our adapter beside one of diffusers' ControlNet training, on a full-size SD1.5 UNet with random weights, fp32 (Eq. 1).

python -m benchmarks.training: every contender takes its steps in a process of its own, alternating over the rounds, with the same batch and
number of threads. No VAE and no text encoder: both trainers would run the same ones, or keep what these give. Beside it, worked out and not
measured, what a step needs in memory and operations, also for a batch of 4 at 512 px.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil
import torch

from benchmarks.account import Account, account
from benchmarks.codebook import OUT, ROOT, THREADS, resident
from benchmarks.trainees import BASE, OURS, SCALES, TRAINEES, random_inputs
from train.files import write_text

PAIRED = (OURS, BASE)  # run in every round; the others in the first --rounds-others
ELSEWHERE = (512, 4)  # size and batch that are worked out beside the measured ones
IMPORTS_MB = 1500  # more than what a process holds beside its tensors


@dataclass(frozen=True)
class Sample:
    """One process. seconds: the median of its steps after the first; memory in MB (10^6 bytes): VmHWM at the end, VmRSS after the imports."""

    seconds: float
    peak_mb: float
    imports_mb: float
    steps: tuple[float, ...]

    @property
    def beyond_mb(self) -> float:
        """The peak without what Python and its libraries hold."""
        return self.peak_mb - self.imports_mb


def steps_here(name: str, scale: str, size: int, batch: int, steps: int) -> None:
    """Take a contender's steps in this process: a JSON line to stdout."""
    imports = resident(os.getpid())["VmRSS"]
    trainee, inputs = TRAINEES[name](SCALES[scale]), random_inputs(SCALES[scale], size, batch)
    trainee.step(inputs)  # makes the moments, and whatever PyTorch makes once
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        trainee.step(inputs)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"steps": seconds, "imports_mb": imports, "peak_mb": resident(os.getpid())["VmHWM"]}))


def sample(name: str, scale: str, size: int, batch: int, steps: int, threads: int) -> Sample:
    """One process of one contender. Raises RuntimeError if it fails."""
    options = {"contender": name, "scale": scale, "size": size, "batch": batch, "steps": steps}
    command = [sys.executable, "-m", "benchmarks.training", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}, nothing said"])[-1])
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Sample(statistics.median(said["steps"]), said["peak_mb"], said["imports_mb"], tuple(said["steps"]))


def obstacle(needs: Account) -> str | None:
    """Why a contender is not run, or None: a machine without swap would end the whole benchmark for want of memory."""
    wanted, free = needs.peak / 1e6 + IMPORTS_MB, psutil.virtual_memory().available / 1e6
    return None if wanted < free else f"needs about {wanted / 1e3:.1f} GB of memory, {free / 1e3:.1f} are free"


def summary(samples: list[Sample], base: list[Sample]) -> dict:
    """Medians of one contender, and medians of its ratios to the ControlNet's in the same round; `base` is empty if that did not run."""

    def ratio(field: str) -> float | None:
        return statistics.median(getattr(a, field) / getattr(b, field) for a, b in zip(samples, base)) if base else None

    fields = ("seconds", "peak_mb", "beyond_mb", "imports_mb")
    return {
        **{field: statistics.median(getattr(s, field) for s in samples) for field in fields},
        "speed_ratio": statistics.median(b.seconds / a.seconds for a, b in zip(samples, base)) if base else None,
        "peak_ratio": ratio("peak_mb"),
        "beyond_ratio": ratio("beyond_mb"),
        "rounds": len(samples),
    }


def table(report: dict[str, dict | str]) -> str:
    """What was measured, as text; a contender that did not run says why."""
    lines = [
        f"{'measured':28s} {'rounds':>6s} {'s/step':>8s} {'steps/s x':>10s} {'peak MB':>8s} {'x':>6s} {'beyond imports':>15s} {'x':>6s}"
        f"   (x: as a multiple of {BASE}'s)"
    ]
    for name, row in report.items():
        if isinstance(row, str):
            lines.append(f"{name:28s} {row}")
            continue
        speed, peak, beyond = (f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("speed_ratio", "peak_ratio", "beyond_ratio"))
        lines.append(
            f"{name:28s} {row['rounds']:6d} {row['seconds']:8.2f} {speed:>10s} {row['peak_mb']:8.0f} {peak:>6s} {row['beyond_mb']:15.0f} {beyond:>6s}"
        )
    return "\n".join(lines)


def account_table(accounts: dict[str, Account]) -> str:
    """What was worked out, as text; memory in MB, operations in TFLOP."""
    lines = [
        f"{'worked out, not measured':28s} {'trained':>8s} {'weights':>8s} {'gradients':>9s} {'moments':>8s} {'for backward':>12s} {'peak MB':>8s} "
        f"{'x':>6s} {'TFLOP':>7s} {'forward':>8s} {'fewer x':>8s}"
    ]
    base = accounts[BASE]
    for name, each in accounts.items():
        mb = [value / 1e6 for value in (each.weights, each.gradients, each.moments, each.saved, each.peak)]
        lines.append(
            f"{name:28s} {each.trained / 1e6:6.1f} M {mb[0]:8.0f} {mb[1]:9.0f} {mb[2]:8.0f} {mb[3]:12.0f} {mb[4]:8.0f} {each.peak / base.peak:6.3f} "
            f"{each.flops / 1e12:7.3f} {each.forward / 1e12:8.3f} {base.flops / each.flops:8.3f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; `main([])` runs the defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=SCALES, default="sd15", help="size of the models (default sd15)")
    parser.add_argument("--size", type=int, default=256, help="picture size in px (default 256)")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step (default 1)")
    parser.add_argument("--steps", type=int, default=3, help="steps per process, after one to warm up (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help=f"alternating rounds of {' and '.join(PAIRED)} (default 3)")
    parser.add_argument("--rounds-others", type=int, default=1, help="rounds that also run the other contenders (default 1)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each contender (default: all cores)")
    parser.add_argument("--contender", choices=TRAINEES, help="take this one's steps in this process, as the benchmark starts it")
    args = parser.parse_args(arguments)
    if args.contender:
        steps_here(args.contender, args.scale, args.size, args.batch, args.steps)
        return
    compare(args.scale, args.size, args.batch, args.steps, args.rounds, args.rounds_others, args.threads)


def compare(scale: str, size: int, batch: int, steps: int, rounds: int, rounds_others: int, threads: int) -> None:
    """Run the contenders, print both tables and write benchmarks/out/training.json."""
    print(f"\nTraining step, {scale} UNet, {size} px, batch {batch}, fp32, AdamW, no checkpointing, {threads} threads, {rounds} rounds", flush=True)
    print("without VAE and text encoder, which both trainers would run alike", flush=True)
    accounts = {setting: {name: account(name, scale, *setting) for name in TRAINEES} for setting in dict.fromkeys([(size, batch), ELSEWHERE])}
    obstacles = {name: obstacle(each) for name, each in accounts[size, batch].items()}
    samples: dict[str, list[Sample]] = {name: [] for name in TRAINEES}
    for index in range(rounds):
        for name in list(samples) if index % 2 == 0 else reversed(list(samples)):
            if obstacles[name] or (index >= rounds_others and name not in PAIRED):  # it failed, or has had its rounds
                continue
            try:
                samples[name].append(sample(name, scale, size, batch, steps, threads))
            except RuntimeError as error:  # whatever is wrong with one contender, the others go on
                obstacles[name] = f"failed: {error}"
            else:
                done = samples[name][-1]
                print(f"  round {index + 1}, {name}: {done.seconds:.2f} s per step, peak {done.peak_mb:.0f} MB", file=sys.stderr, flush=True)
    base = [] if obstacles[BASE] else samples[BASE]
    report = {name: obstacles[name] or summary(samples[name], base) for name in TRAINEES}
    print(table(report))
    for setting, each in accounts.items():
        print(f"\n{setting[0]} px, batch {setting[1]}\n{account_table(each)}")
    machine = {"machine": platform.processor() or platform.machine(), "threads": threads, "torch": torch.__version__}
    setting = {"scale": scale, "size": size, "batch": batch, "steps": steps, "rounds": rounds}
    worked_out = [{"size": s, "batch": b, **{name: asdict(one) for name, one in each.items()}} for (s, b), each in accounts.items()]
    each = {name: [asdict(s) for s in rows] for name, rows in samples.items()}
    write_text(OUT / "training.json", json.dumps({**machine, **setting, "contenders": report, "worked_out": worked_out, "samples": each}, indent=1))
    print(f"Written: {OUT / 'training.json'}")


if __name__ == "__main__":
    main()
