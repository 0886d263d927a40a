"""Format `coco`: COCO's `images` and `annotations`, joined on image_id, from one or more JSON files (COCO, Human-Art)."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from train.data.entries import clean_caption, coco_pose, printable, read_json, relative_path
from train.data.errors import DataError, EntryError
from train.data.records import Dataset, Problem, Record


@dataclass(eq=False)
class _Entry:
    """What the files say of one image, as it is gathered."""

    file_name: object
    canvas: tuple[object, object]
    captions: list[object] = field(default_factory=list)
    bodies: list[object] = field(default_factory=list)


def open_coco(root: Path, paths: Sequence[Path]) -> Dataset:
    """The images of all files in their order. An image's caption is its `description` or `caption` (Human-Art), else that of its first
    caption annotation; its pose is its keypoint annotations without crowds. Raises DataError for a file that is not COCO JSON."""
    tables = [(path, _table(path)) for path in paths]
    entries: dict[int | str, _Entry] = {}
    problems: list[Problem] = []
    for path, table in tables:
        _gather_images(path.name, _list(path, table, "images"), entries, problems)
    for path, table in tables:
        _gather_annotations(path.name, _list(path, table, "annotations"), entries, problems)
    records = []
    for key, entry in entries.items():
        try:
            records.append(_record(root, entry))
        except EntryError as error:
            name = entry.file_name if isinstance(entry.file_name, str) else f"image {key}"
            problems.append(Problem(error.kind, printable(name), str(error)))
    return Dataset(tuple(records), tuple(problems))


def _record(root: Path, entry: _Entry) -> Record:
    name = relative_path(root, entry.file_name)
    texts = [caption for caption in entry.captions if isinstance(caption, str) and caption.strip()]
    caption = clean_caption((texts or entry.captions or [None])[0])
    return Record(printable(name), root / name, caption, partial(coco_pose, entry.bodies, entry.canvas) if entry.bodies else None)


def _gather_images(file: str, images: list, entries: dict[int | str, _Entry], problems: list[Problem]) -> None:
    for i, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            problems.append(Problem("bad_entry", f"{file}: images[{i}]", f"{reprlib.repr(image)} is no image with an id (a number or a text)"))
            continue
        name = image.get("file_name")
        entry = entries.setdefault(image["id"], _Entry(name, (image.get("width"), image.get("height"))))
        if entry.file_name != name:
            message = f"id {reprlib.repr(image['id'])} names {reprlib.repr(name)} and {reprlib.repr(entry.file_name)}; the latter is kept"
            problems.append(Problem("bad_entry", f"{file}: images[{i}]", message))
            continue
        entry.captions += [image[key] for key in ("description", "caption") if image.get(key) is not None]


def _gather_annotations(file: str, annotations: list, entries: dict[int | str, _Entry], problems: list[Problem]) -> None:
    for i, annotation in enumerate(annotations):
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        entry = entries.get(key) if isinstance(key, int | str) else None
        if entry is None:
            message = f"{reprlib.repr(annotation)} belongs to no image of `images`"
            problems.append(Problem("bad_annotation", f"{file}: annotations[{i}]", message))
            continue
        if annotation.get("caption") is not None:
            entry.captions.append(annotation["caption"])
        if "keypoints" in annotation and not annotation.get("iscrowd") and annotation.get("num_keypoints") != 0:
            entry.bodies.append(annotation["keypoints"])


def _table(path: Path) -> dict:
    table = read_json(path)
    if not isinstance(table, dict) or "images" not in table:
        raise DataError(f"{path}: {reprlib.repr(table)} is no COCO JSON; expected a dict with `images` and `annotations`.")
    return table


def _list(path: Path, table: dict, key: str) -> list:
    entries = table.get(key, [])
    if not isinstance(entries, list):
        raise DataError(f"{path}: `{key}` is {reprlib.repr(entries)}; expected a list.")
    return entries
