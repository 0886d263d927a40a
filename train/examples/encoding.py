"""Pictures to entries, and their variants through the frozen autoencoder into the cache: what is there is not computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from kbdm_core.errors import KBDMError
from kbdm_core.keypoints import Pose
from train.data.ahead import ahead
from train.data.errors import EntryError
from train.data.records import Problem
from train.examples.buckets import Bucket, nearest
from train.examples.masks import latent_masks, mask_key, pose_picture
from train.examples.sources import Source
from train.examples.variants import AugmentTable, Variant, settings, variant
from train.features.store import FeatureStore

LATENTS = "latents 1"  # part of their keys: another number when variants come to be made otherwise
Encode = Callable[[Tensor], Tensor]  # pictures [B,3,H,W] in -1..1 -> mean and deviation of their scaled latents [B,8,H/8,W/8]


@dataclass(frozen=True)
class ExamplesTable:
    """[examples]: what size pictures are learnt at, and where their latents are kept."""

    resolution: Annotated[int, Ge(32)] = 512
    """Pictures come in buckets of about this many pixels squared, of an aspect up to 1:2."""
    need_pose: bool = True
    """Leave out pictures without a usable pose; off: they are learnt with an empty one."""
    batch: Annotated[int, Ge(1)] = 8
    """Pictures per pass through the autoencoder."""
    workers: Annotated[int, Ge(1)] = 2
    """Threads that read and decode pictures ahead of the autoencoder."""
    cache: Path = Path(".cache/latents")
    """Folder of latents and masks. At 512 px a picture takes 82 kB in each variant. It may be kept and shared."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A picture that can be used: number in its source, content key, size (width, height), bucket, caption, and its pose, perhaps of nobody."""

    number: int
    key: str
    size: tuple[int, int]
    bucket: Bucket
    caption: str
    pose: Pose

    def variant(self, table: AugmentTable, number: int) -> Variant:
        """Variant `number`, from 0."""
        return variant(table, self.key, number, self.size, self.bucket)


@dataclass(frozen=True, eq=False)
class Cache:
    """The rows of one bucket and one autoencoder: mean and deviation of latents [8,h,w], and coarse and fine mask [2,h,w], in float16."""

    latents: FeatureStore
    masks: FeatureStore

    @classmethod
    def open(cls, folder: Path, bucket: Bucket, encoder_key: str) -> Cache:
        """The bucket's stores in `folder`, made if need be. Raises KBDMError."""
        encoder = hashlib.sha256(encoder_key.encode()).hexdigest()
        holds = {"bucket": [bucket.width, bucket.height]}
        latents = {"holds": "latents", "encoder": encoder, **holds}
        return cls(
            FeatureStore.open(folder / f"latents-{bucket}-{encoder[:12]}", (8, *bucket.latent), "float16", latents),
            FeatureStore.open(folder / f"masks-{bucket}", (2, *bucket.latent), "float16", {"holds": "masks", **holds}),
        )

    def refresh(self) -> None:
        """See what any process has written since."""
        self.latents.refresh()
        self.masks.refresh()


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a thread has made of an entry: pixels uint8 [H,W,3] and masks [2,h,w] of the variants that the cache lacks, by key."""

    pixels: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]


def latent_key(entry: Entry, table: AugmentTable, number: int, encoder_key: str) -> str:
    """Content key of a variant's latents: over the picture, the bucket, what decides the variant, and the autoencoder."""
    return hashlib.sha256(f"{LATENTS} {entry.key} {entry.bucket} {settings(table, number)} {encoder_key}".encode()).hexdigest()


def list_entries(
    source: Source,
    numbers: Sequence[int],
    choices: Sequence[Bucket],
    table: ExamplesTable,
    rank: int = 0,
    check: Callable[[], None] = lambda: None,
) -> tuple[list[Entry], list[Problem]]:
    """The entries of these numbers, in order, and why others are none: no pixel is decoded. `check` as in `encode_entries`."""
    entries, problems = [], []
    table.cache.mkdir(parents=True, exist_ok=True)

    def prepare(number: int) -> tuple[Entry | None, list[Problem]]:
        try:
            key, size = key_of(number), source.size(number)
        except EntryError as error:
            return None, [Problem(error.kind, source.name(number), str(error))]
        bucket, found = nearest(choices, *size), []
        try:
            pose = source.pose(number, *size)
        except KBDMError as error:
            pose, found = None, [Problem("unreadable_pose", source.name(number), str(error))]
        entry = Entry(number, key, size, bucket, source.caption(number), pose or Pose((), *size))
        if table.need_pose and not found:
            found = _without_pose(entry, pose, source.name(number))
        return None if table.need_pose and found else entry, found

    with (
        tqdm(total=len(numbers), desc="poses", unit="pictures", disable=rank != 0) as progress,
        source.keys(table.cache, str(rank)) as key_of,
        ThreadPoolExecutor(table.workers) as pool,
        closing(ahead(pool, prepare, numbers, 16 * table.workers)) as prepared,
    ):
        for _, future in prepared:
            check()
            entry, found = future.result()
            entries += [] if entry is None else [entry]
            problems += found
            progress.update()
    return entries, problems


def encode_entries(
    source: Source,
    entries: Sequence[Entry],
    table: ExamplesTable,
    augment: AugmentTable,
    encode: Encode,
    encoder_key: str,
    rank: int = 0,
    check: Callable[[], None] = lambda: None,
) -> tuple[list[Entry], list[Problem]]:
    """Latents and masks of all variants of this process's entries into the cache -> those that could be read, in order, and what could not.

    encoder_key tells all that decides the latents' values besides the picture: weights, scale, precision. `check` is called before every picture
    and may raise to end the run; what was computed until then stays. Process `rank` writes the shards of that name.
    Raises KBDMError for latents of another shape.
    """
    good, problems = [], []
    with tqdm(total=len(entries), desc="latents", unit="pictures", disable=rank != 0) as progress:
        for bucket in sorted({entry.bucket for entry in entries}):
            cache = Cache.open(table.cache, bucket, encoder_key)
            of_bucket = [entry for entry in entries if entry.bucket == bucket]
            with cache.latents.writer(str(rank)) as latents, cache.masks.writer(str(rank)) as masks:
                scheduled: set[str] = set()
                batch: dict[str, np.ndarray] = {}
                with closing(_prepared(source, of_bucket, table, augment, cache, encoder_key)) as prepared_entries:
                    for entry, prepared in prepared_entries:
                        check()
                        progress.update()
                        if isinstance(prepared, EntryError):
                            problems.append(Problem(prepared.kind, source.name(entry.number), str(prepared)))
                            continue
                        good.append(entry)
                        new = {key: mask for key, mask in prepared.masks.items() if key not in scheduled}
                        batch |= {key: pixels for key, pixels in prepared.pixels.items() if key not in scheduled}
                        scheduled |= new.keys() | prepared.pixels.keys()
                        if new:
                            masks.append(list(new), np.stack(list(new.values())))
                        while len(batch) >= table.batch:
                            latents.append(*_encoded(encode, {key: batch.pop(key) for key in list(batch)[: table.batch]}))
                if batch:
                    latents.append(*_encoded(encode, batch))
    return sorted(good, key=lambda entry: entry.number), problems


def _without_pose(entry: Entry, pose: Pose | None, name: str) -> list[Problem]:
    """Why the entry shows nobody whose pose is known."""
    if pose is None:
        return [Problem("missing_pose", name, "no pose is known")]
    if not pose.people:
        return [Problem("empty_pose", name, "the pose has no people")]
    if not entry.variant(AugmentTable(), 0).pose(pose).people:
        return [Problem("empty_pose", name, f"no joint is left on the {entry.bucket} px in the middle of the picture")]
    return []


def _prepared(
    source: Source, entries: Iterable[Entry], table: ExamplesTable, augment: AugmentTable, cache: Cache, encoder_key: str
) -> Iterator[tuple[Entry, _Prepared | EntryError]]:
    """Entries in order with what the cache lacks of them, or why the picture cannot be read, made ahead in threads."""

    def prepare(entry: Entry) -> _Prepared:  # Pillow and torch work without the interpreter's lock
        variants = [entry.variant(augment, number) for number in range(augment.variants)]
        keys = [latent_key(entry, augment, number, encoder_key) for number in range(augment.variants)]
        missing = [(key, variant) for key, variant in zip(keys, variants) if key not in cache.latents]
        picture = source.picture(entry.number) if missing else None
        pixels = {key: np.asarray(variant.picture(picture)) for key, variant in missing}
        poses = {mask_key(pose): pose for pose in (variant.pose(entry.pose) for variant in variants)}
        masks = {key: latent_masks(pose_picture(pose)[None])[0].numpy() for key, pose in poses.items() if key not in cache.masks}
        return _Prepared(pixels, masks)

    with ThreadPoolExecutor(table.workers) as pool, closing(ahead(pool, prepare, entries, table.batch + table.workers)) as futures:
        for entry, future in futures:
            try:
                prepared: _Prepared | EntryError = future.result()
            except EntryError as error:
                prepared = error
            yield entry, prepared


def _encoded(encode: Encode, batch: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Keys and latents [B,8,h,w] of a batch of pixels."""
    pixels = torch.from_numpy(np.stack(list(batch.values()))).permute(0, 3, 1, 2).float() / 127.5 - 1  # [B, 3, H, W]
    latents = encode(pixels)
    expected = (len(pixels), 8, pixels.shape[2] // 8, pixels.shape[3] // 8)
    if tuple(latents.shape) != expected:
        raise KBDMError(f"The autoencoder made latents of shape {list(latents.shape)} from pictures {list(pixels.shape)}; expected {list(expected)}.")
    return list(batch), latents.float().cpu().numpy()
