"""Our codebook trainer beside faiss, scikit-learn, vector-quantize-pytorch and the literal paper, on real image patches (Eq. 2-6).

python -m benchmarks.codebook: every contender fits K entries to the same .npy file in a process of its own, alternating over
the rounds, with the same number of threads. What it found is measured here, by one function for all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from testbed.real_photos import write_patches

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).parent / "out"
BASE = "faiss 25"
PAIRED = (BASE, "ours")  # run in every round; the others in the first --rounds-others
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


# The contenders. Each gets (features file, K, seed) and returns the codebook [K,C]; its libraries are imported before its clock starts.


def faiss_25(features: Path, entries: int, seed: int) -> np.ndarray:
    """Lloyd's algorithm from sampled vectors, 25 iterations, on all vectors."""
    import faiss

    data = np.load(features)
    kmeans = faiss.Kmeans(data.shape[1], entries, niter=25, seed=1234 + seed, gpu=False, max_points_per_centroid=len(data))
    kmeans.train(data)
    return kmeans.centroids


def minibatch_kmeans(features: Path, entries: int, seed: int) -> np.ndarray:
    """scikit-learn's MiniBatchKMeans, one k-means++ start, its own stopping rule."""
    from sklearn.cluster import MiniBatchKMeans

    return MiniBatchKMeans(entries, batch_size=8192, n_init=1, random_state=seed).fit(np.load(features)).cluster_centers_


def vector_quantize(features: Path, entries: int, seed: int) -> np.ndarray:
    """vector-quantize-pytorch's EMA codebook: k-means on the first batch, 10 epochs, codes with an average below 1 per batch replaced."""
    import torch
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(seed)
    data = torch.from_numpy(np.load(features))
    codebook = VectorQuantize(data.shape[1], entries, kmeans_init=True, threshold_ema_dead_code=1, commitment_weight=0.0)
    batch = min(8 * entries, len(data))  # so that an entry is met 8 times a batch
    for _ in range(10):
        for rows in torch.randperm(len(data)).split(batch):
            codebook(data[rows][None])
    return codebook.codebook.numpy()


def paper(features: Path, entries: int, seed: int, sampled: bool = False) -> np.ndarray:
    """The paper's stage 1: 30 epochs of AdamW, lr 1e-3 with cosine decay, batches of 4096, entries from VQ-VAE's uniform(-1/K, 1/K)."""
    import torch

    from kbdm_core.codebook import codebook_loss, quantise

    torch.manual_seed(seed)
    data = torch.from_numpy(np.load(features))
    start = data[torch.randperm(len(data))[:entries]] if sampled else torch.empty(entries, data.shape[1]).uniform_(-1 / entries, 1 / entries)
    codebook = torch.nn.Parameter(start)
    epochs, batch = 30, 4096
    optimiser = torch.optim.AdamW([codebook], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-len(data) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(batch):
            z_e = data[rows]
            optimiser.zero_grad()
            codebook_loss(quantise(z_e, codebook)[0], z_e).backward()
            optimiser.step()
            schedule.step()
    return codebook.detach().numpy()


def paper_sampled(features: Path, entries: int, seed: int) -> np.ndarray:
    """The same from K sampled vectors."""
    return paper(features, entries, seed, sampled=True)


@dataclass(frozen=True)
class Contender:
    """How a codebook is made: `fit` in a process of its own after the imports, or our own command (None); what pip calls its library."""

    fit: Callable[[Path, int, int], np.ndarray] | None
    imports: tuple[str, ...]
    pip: str


CONTENDERS = {
    "ours": Contender(None, ("train",), ""),
    BASE: Contender(faiss_25, ("faiss",), "faiss-cpu"),
    "MiniBatchKMeans": Contender(minibatch_kmeans, ("sklearn.cluster",), "scikit-learn"),
    "vector-quantize-pytorch": Contender(vector_quantize, ("torch", "vector_quantize_pytorch"), "vector-quantize-pytorch"),
    "paper": Contender(paper, ("torch", "torch._dynamo", "kbdm_core.codebook"), "torch"),  # torch.optim imports _dynamo at its first step
    "paper, sampled start": Contender(paper_sampled, ("torch", "torch._dynamo", "kbdm_core.codebook"), "torch"),
}


def fit_here(name: str, features: Path, entries: int, seed: int, output: Path) -> None:
    """Run one contender in this process, as `train codebook` would: `codebook.weight` to `output`, a JSON line with the seconds to stdout."""
    for module in CONTENDERS[name].imports:
        importlib.import_module(module)
    start = time.perf_counter()
    codebook = CONTENDERS[name].fit(features, entries, seed)
    seconds = time.perf_counter() - start
    save_file({"codebook.weight": np.ascontiguousarray(codebook, np.float32)}, output)
    print(json.dumps({"seconds": seconds}))


# The measuring.


@dataclass(frozen=True)
class Sample:
    """One fit. mse, used and perplexity are measured here; seconds from before the data is read to the codebook, as the contender's
    own clock says; process_seconds with interpreter and imports; memory in MB (10^6 bytes): VmHWM of the process, and the same
    minus its resident memory just before the features file was opened and minus the data's size.
    """

    mse: float
    used: int
    perplexity: float
    seconds: float
    process_seconds: float
    process_mb: float
    beyond_data_mb: float | None  # None if the opening was never seen
    reported: dict


def resident(pid: int) -> dict[str, float]:
    """VmRSS and VmHWM of a process in MB (Linux); empty when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value.split()[0]) * 1024 / 1e6 for key, _, value in (line.partition(":") for line in lines) if key in ("VmRSS", "VmHWM")}


def has_opened(pid: int, features: Path) -> bool:
    """Whether a process holds the file open or mapped now (Linux)."""
    try:
        if str(features) in Path(f"/proc/{pid}/maps").read_text():
            return True
        return any(os.readlink(link) == str(features) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # ended, or a descriptor closed meanwhile
        return False


def run(command: Sequence[str], features: Path, threads: int) -> tuple[dict, dict]:
    """Run a contender's process. Returns its JSON line, and seconds, peak and before (memory in MB) as seen from outside.

    The peak is the kernel's own high-water mark, read every 10 ms, so only one that is reached in the last 10 ms is missed. (ru_maxrss
    would be simpler, but Linux starts it at the size of the process that forked.)
    """
    before, opened, peak = None, False, 0.0
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        start = time.perf_counter()
        environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr, text=True)
        try:
            while process.poll() is None:
                now = resident(process.pid)
                peak = max(peak, now.get("VmHWM", 0.0))
                if not opened:
                    opened = has_opened(process.pid, features)
                    before = before if opened else now.get("VmRSS", before)
                time.sleep(0.01)
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
        seconds = time.perf_counter() - start
        stdout.seek(0)
        stderr.seek(0)
        said, complaint = stdout.read().strip().splitlines(), stderr.read().strip().splitlines()
    if process.returncode or not said:
        raise RuntimeError(complaint[-1] if complaint else f"exit status {process.returncode}, nothing said")
    return json.loads(said[-1]), {"seconds": seconds, "peak": peak, "before": before if opened else None}


def measure(codebook: np.ndarray, data: np.ndarray) -> tuple[float, int, float]:
    """Mean squared error over all N*C numbers, used entries and perplexity of the nearest entries. codebook [K,C], data [N,C]."""
    import torch

    from kbdm_core.codebook import NEAREST_CHUNK, nearest_entries

    entries = torch.from_numpy(codebook)
    total, counts = 0.0, torch.zeros(len(codebook), dtype=torch.int64)
    for start in range(0, len(data), NEAREST_CHUNK):
        z_e = torch.from_numpy(np.array(data[start : start + NEAREST_CHUNK]))
        nearest = nearest_entries(z_e, entries)
        counts += torch.bincount(nearest, minlength=len(codebook))
        total += (z_e - entries[nearest]).square().sum(dtype=torch.float64).item()
    shares = counts[counts > 0].double() / len(data)
    return total / data.size, len(shares), torch.exp(-(shares * shares.log()).sum()).item()


def sample(name: str, features: Path, entries: int, seed: int, threads: int) -> Sample:
    """One fit of one contender, measured. Raises if its process fails or leaves no codebook of K entries."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "codebook.safetensors"
        own = name == "ours"
        command = ["-m", "train", "codebook", "--run.seed"] if own else ["-m", "benchmarks.codebook", "--contender", name, "--seed"]
        command += [str(seed), "--features", str(features), "--entries", str(entries), "--output", str(output)]
        reported, seen = run([sys.executable, *command], features, threads)
        codebook = load_file(output)["codebook.weight"].astype(np.float32)
    if len(codebook) != entries:
        raise RuntimeError(f"{len(codebook)} entries came back, {entries} were asked for")
    data = np.load(features, mmap_mode="r")
    beyond = None if seen["before"] is None else seen["peak"] - seen["before"] - data.nbytes / 1e6
    return Sample(*measure(codebook, data), reported["seconds"], seen["seconds"], seen["peak"], beyond, reported)


def obstacle(name: str) -> str | None:
    """Why a contender is not run, or None."""
    missing = [module for module in CONTENDERS[name].imports if find_spec(module.partition(".")[0]) is None]
    if missing:
        return f"not installed: pip install {CONTENDERS[name].pip}"
    return None


def summary(samples: list[Sample], base: list[Sample]) -> dict:
    """Medians of one contender, and medians of its ratios to faiss in the same round; `base` is empty if faiss did not run."""

    def ratio(field: str) -> float | None:
        return statistics.median(getattr(a, field) / getattr(b, field) for a, b in zip(samples, base)) if base else None

    fields = ("mse", "perplexity", "seconds", "process_seconds", "process_mb")
    beyond = [s.beyond_data_mb for s in samples]
    return {
        **{field: statistics.median(getattr(s, field) for s in samples) for field in fields},
        "used": min(s.used for s in samples),
        "beyond_data_mb": None if None in beyond else max(beyond),
        "mse_ratio": ratio("mse"),
        "seconds_ratio": ratio("seconds"),
        "process_seconds_ratio": ratio("process_seconds"),
        "rounds": len(samples),
    }


def table(report: dict[str, dict | str], data_mb: float) -> str:
    """The report as text; a contender that did not run says why."""
    lines = [
        f"{'contender':24s} {'MSE':>8s} {'x faiss':>8s} {'used':>6s} {'perpl.':>7s} {'fit s':>7s} {'x faiss':>8s} {'process s':>9s} "
        f"{'x faiss':>8s} {'peak, data = ' + format(data_mb, '.0f') + ' MB':>22s} {'process':>8s}"
    ]
    for name, row in report.items():
        if isinstance(row, str):
            lines.append(f"{name:24s} {row}")
            continue
        ratios = [f"{row[key]:8.3f}" if row[key] is not None else f"{'-':>8s}" for key in ("mse_ratio", "seconds_ratio", "process_seconds_ratio")]
        beyond = "not seen" if row["beyond_data_mb"] is None else f"data {row['beyond_data_mb']:+.0f} MB"
        lines.append(
            f"{name:24s} {row['mse']:8.5f} {ratios[0]} {row['used']:6d} {row['perplexity']:7.1f} {row['seconds']:7.2f} {ratios[1]} "
            f"{row['process_seconds']:9.2f} {ratios[2]} {beyond:>22s} {row['process_mb']:5.0f} MB"
        )
    return "\n".join(lines)


def versions() -> dict[str, str | None]:
    found = {}
    for package in ("torch", "numpy", "faiss-cpu", "scikit-learn", "vector-quantize-pytorch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; `main([])` runs the defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codebook", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="image patches, 768 numbers each (default 100000)")
    parser.add_argument("--entries", type=int, default=1024, help="codebook entries K (default 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of faiss and ours (default 3)")
    parser.add_argument("--rounds-others", type=int, default=1, help="rounds that also run the other contenders (default 1)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each contender (default: all cores)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME", help=", ".join(CONTENDERS))
    one = parser.add_argument_group("one contender in this process, as the benchmark starts it")
    one.add_argument("--contender", choices=[name for name, each in CONTENDERS.items() if each.fit])
    one.add_argument("--features", type=Path, help="a .npy file [N,C]")
    one.add_argument("--output", type=Path, help="where to write the codebook (.safetensors)")
    one.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.contender:
        fit_here(args.contender, args.features, args.entries, args.seed, args.output)
        return
    compare(args.count, args.entries, args.rounds, args.rounds_others, args.threads, args.only)


def compare(count: int, entries: int, rounds: int, rounds_others: int, threads: int, names: Sequence[str]) -> None:
    """Run the contenders, print the table and write benchmarks/out/codebook.json."""
    features = write_patches(ROOT / ".cache" / "photos" / f"patches-{count}.npy", count).resolve()
    data = np.load(features, mmap_mode="r")
    data_mb = data.nbytes / 1e6
    data.max()  # read once, so that the first contender finds it in the page cache as the others do
    print(f"{count} patches of real photos, {data.shape[1]} wide, K={entries}, {threads} threads, {rounds} rounds", flush=True)
    obstacles = {name: obstacle(name) for name in names}
    samples: dict[str, list[Sample]] = {name: [] for name in names if not obstacles[name]}
    for index in range(rounds):
        for name in list(samples) if index % 2 == 0 else reversed(list(samples)):
            if obstacles[name] or (index >= rounds_others and name not in PAIRED):  # it failed, or has had its rounds
                continue
            try:
                samples[name].append(sample(name, features, entries, index, threads))
            except Exception as error:  # whatever is wrong with one contender, the others go on
                obstacles[name] = f"failed: {error}"
            else:
                done = samples[name][-1]
                said = f" (it says {done.reported['mse']:.5f})" if "mse" in done.reported else ""
                print(f"  round {index + 1}, {name}: MSE {done.mse:.5f}{said}, {done.used} used, {done.seconds:.2f} s", file=sys.stderr, flush=True)
    base = [] if obstacles.get(BASE, "not asked for") else samples[BASE]
    report = {name: obstacles[name] or summary(samples[name], base) for name in names}
    print(table(report, data_mb))
    OUT.mkdir(exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "threads": threads, "versions": versions()}
    setting = {"count": count, "entries": entries, "rounds": rounds, "data_mb": data_mb}
    each = {name: [asdict(s) for s in rows] for name, rows in samples.items()}
    (OUT / "codebook.json").write_text(json.dumps({**machine, **setting, "contenders": report, "samples": each}, indent=1))
    print(f"Written: {OUT / 'codebook.json'}")


if __name__ == "__main__":
    main()
