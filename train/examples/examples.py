"""Batches of examples: cached latents and masks of chosen variants, with their captions, and their pose pictures drawn when asked for."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from kbdm_core.errors import KBDMError
from train.data.ahead import ahead
from train.data.records import Problem
from train.data.validate import report_of, save_report
from train.examples.buckets import BatchOrder, Bucket, buckets
from train.examples.encoding import Cache, Encode, Entry, ExamplesTable, encode_entries, latent_key, list_entries
from train.examples.masks import mask_key, pose_picture
from train.examples.sources import Source
from train.examples.variants import AugmentTable
from train.features.store import FeatureRows
from train.run.loop import Run

PROBLEMS = "problems.json"
DRY_PICTURES, DRY_LOOK = 4, 64  # how many stand for all in a dry run, and among how many they are looked for


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one bucket of W x H px, on the CPU. h, w = H/8, W/8."""

    latent_mean: Tensor
    """[B,4,h,w] float32, scaled as the UNet sees latents."""
    latent_std: Tensor
    """[B,4,h,w] float32: mean + std * noise is a sample."""
    captions: tuple[str, ...]
    pose_pictures: Tensor
    """[B,H,W,3] float32 in 0..1: OpenPose skeletons, black where no pose is known."""
    masks: Tensor
    """[B,2,h,w] float32 in {0,1}: coarse and fine, see `latent_masks`; 0 where no pose is known."""
    has_pose: Tensor
    """bool [B]."""


Request = tuple[Bucket, Tensor, Tensor]  # bucket, items [B], variants [B]


@dataclass(frozen=True, eq=False)
class Examples:
    """Items 0, 1, ... in the order of their source, `variants` of each. Rows per bucket: place of the item in it * variants + variant."""

    entries: tuple[Entry, ...]
    places: Tensor
    """int64 [items]: the item's place among the rows of its bucket."""
    augment: AugmentTable
    latents: dict[Bucket, FeatureRows | np.ndarray]
    masks: dict[Bucket, FeatureRows | np.ndarray]
    fingerprint: str
    """A hash of everything that is learnt from, the same for any number of processes."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def variants(self) -> int:
        """How many variants there are of each item."""
        return self.augment.variants

    @property
    def captions(self) -> tuple[str, ...]:
        """Of all items."""
        return tuple(entry.caption for entry in self.entries)

    @property
    def keys(self) -> tuple[str, ...]:
        """Content keys of all items' pictures, by which training and held-out ones are told apart."""
        return tuple(entry.key for entry in self.entries)

    def order(self, batch: int, seed: int, items: Tensor | None = None) -> BatchOrder:
        """The order of batches over all items, or over these [n] alone. Raises KBDMError if there are none."""
        members: dict[Bucket, list[int]] = {}
        for item in range(len(self)) if items is None else items.tolist():
            members.setdefault(self.entries[item].bucket, []).append(item)
        used = sorted(members)
        return BatchOrder(tuple(used), tuple(torch.tensor(members[bucket]) for bucket in used), batch, seed)

    def batch(self, bucket: Bucket, items: Tensor, variants: Tensor) -> Batch:
        """The variants [B] of items [B], which are all of that bucket. Raises KBDMError if they are not."""
        entries = [self.entries[item] for item in items.tolist()]
        known = len(items) == len(variants) and all(0 <= number < self.variants for number in variants.tolist())
        if not known or {entry.bucket for entry in entries} != {bucket}:
            raise KBDMError(
                f"Items {items.tolist()} in the variants {variants.tolist()} were asked for in the bucket {bucket}; expected items of that bucket, "
                f"each in a variant below {self.variants}."
            )
        rows = (self.places[items] * self.variants + variants).numpy()
        mean, std = torch.from_numpy(self.latents[bucket][rows]).float().chunk(2, dim=1)
        masks = torch.from_numpy(self.masks[bucket][rows]).float()
        poses = [entry.variant(self.augment, number).pose(entry.pose) for entry, number in zip(entries, variants.tolist())]
        pictures = torch.stack([pose_picture(pose) for pose in poses])
        return Batch(mean, std, tuple(entry.caption for entry in entries), pictures, masks, torch.tensor([bool(pose.people) for pose in poses]))

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """The batches of these requests, each read and drawn in a thread while the one before it is learnt from."""
        with ThreadPoolExecutor(1) as pool, closing(ahead(pool, lambda request: self.batch(*request), requests, 1)) as prepared:
            for _, future in prepared:
                yield future.result()


def open_examples(run: Run, source: Source, table: ExamplesTable, augment: AugmentTable, encode: Encode, encoder_key: str) -> Examples:
    """The examples of a source: what the cache lacks is read and encoded first, by all processes together. See `encode_entries`.

    Pictures that cannot be used are listed in problems.json in the run's folder. In a dry run a few pictures stand for all, and nothing is kept.
    Raises KBDMError if nothing can be used.
    """
    with ExitStack() as stack:
        numbers = range(len(source))[run.rank :: run.world]
        if run.dry:  # each process for itself
            numbers = range(len(source))[:DRY_LOOK]
            table = replace(table, cache=Path(stack.enter_context(tempfile.TemporaryDirectory())))
        entries, problems = list_entries(source, numbers, buckets(table.resolution), table, run.rank, run.signals.check)
        if run.dry:
            entries = entries[:DRY_PICTURES]
        entries, more = encode_entries(source, entries, table, augment, encode, encoder_key, run.rank, run.signals.check)
        entries, problems = _together(run, entries, [*problems, *more])
        _report(run, source, table, entries, problems)
        run.accelerator.wait_for_everyone()
        examples = _opened(entries, table, augment, encoder_key)
        return _repeated(examples, len(source)) if run.dry else examples


def _together(run: Run, entries: list[Entry], problems: list[Problem]) -> tuple[list[Entry], list[Problem]]:
    """Those of all processes, in the order of the source."""
    if run.world > 1 and not run.dry:
        entries, problems = gather_object(entries), gather_object(problems)
    return sorted(entries, key=lambda entry: entry.number), sorted(problems, key=lambda problem: problem.name)


def _report(run: Run, source: Source, table: ExamplesTable, entries: Sequence[Entry], problems: Sequence[Problem]) -> None:
    """Say and write what is wrong. Raises KBDMError if nothing is left."""
    report = report_of(len(source), source.problems, problems)
    if report.problems and not run.dry:
        counts = ", ".join(f"{number} {kind}" for kind, number in report.counts.items())
        left_out = "; those without a usable pose are left out (examples.need_pose)" if table.need_pose else ""
        run.say(f"examples: {len(entries)} of {report.records} pictures are used; {counts}{left_out}; listed in {run.folder / PROBLEMS}")
        if run.is_main:
            save_report(report, run.folder / PROBLEMS)
    if not entries:
        first = f" (first: {report.problems[0].name}: {report.problems[0].message})" if report.problems else ""
        raise KBDMError(f"none of the {report.records} pictures can be used{first}.")


def _opened(entries: Sequence[Entry], table: ExamplesTable, augment: AugmentTable, encoder_key: str) -> Examples:
    """The examples of entries whose rows are all in the cache."""
    digest, places = hashlib.sha256(), torch.empty(len(entries), dtype=torch.int64)
    latents, masks = {}, {}
    for bucket in sorted({entry.bucket for entry in entries}):
        items = [item for item, entry in enumerate(entries) if entry.bucket == bucket]
        places[items] = torch.arange(len(items))
        variants = [(entries[item], number) for item in items for number in range(augment.variants)]
        keys = [latent_key(entry, augment, number, encoder_key) for entry, number in variants]
        mask_keys = [mask_key(entry.variant(augment, number).pose(entry.pose)) for entry, number in variants]
        cache = Cache.open(table.cache, bucket, encoder_key)
        latents[bucket], masks[bucket] = cache.latents.rows(keys), cache.masks.rows(mask_keys)
        digest.update("\n".join((*keys, *mask_keys, *(entries[item].caption for item in items))).encode("utf-8", "surrogatepass"))
    return Examples(tuple(entries), places, augment, latents, masks, digest.hexdigest())


def _repeated(few: Examples, items: int) -> Examples:
    """The few examples, read into memory, as if they were `items`: a dry run has the sizes of the real one."""
    numbers = torch.arange(items) % len(few)
    latents, masks = ({bucket: rows[:] for bucket, rows in each.items()} for each in (few.latents, few.masks))
    return replace(few, entries=tuple(few.entries[n] for n in numbers.tolist()), places=few.places[numbers], latents=latents, masks=masks)
