"""Validation of training data: every picture is decoded, every pose read, and each problem named once in a list that programs can read."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from kbdm_core.errors import KBDMError
from train.data.errors import DataError
from train.data.pictures import read_rgb
from train.data.records import ERROR_KINDS, PROBLEM_KINDS, Dataset, Problem, Record
from train.files import write_text


@dataclass(frozen=True)
class Report:
    """`records` pictures were listed, `usable` have a caption and decode; `counts` gives the problems per kind, of PROBLEM_KINDS."""

    records: int
    usable: int
    counts: dict[str, int]
    problems: tuple[Problem, ...]


def validate(dataset: Dataset, report: Path | None, check: Callable[[], None] = lambda: None) -> Report:
    """Examine every record, and write the report as JSON if a path is given, whole or not at all.

    Of pictures with the same bytes the first is no duplicate. `check` is called per picture and may raise, which ends the run.
    """
    problems: list[Problem] = []
    known: dict[bytes, str] = {}
    for record in tqdm(dataset.records, desc="validate", unit="picture"):
        check()
        problems += _examine(record, known)
    found = report_of(len(dataset.records), dataset.problems, problems)
    if report is not None:
        save_report(found, report)
    return found


def report_of(records: int, of_source: Sequence[Problem], found: Sequence[Problem]) -> Report:
    """The problems of a source of so many records, counted: those that opening it found, and those found in its records."""
    problems = (*of_source, *found)
    counts = Counter(problem.kind for problem in problems)
    listed = records + sum(problem.kind in ERROR_KINDS for problem in of_source)
    usable = listed - sum(counts[kind] for kind in ERROR_KINDS)
    return Report(listed, usable, {kind: counts[kind] for kind in PROBLEM_KINDS if counts[kind]}, problems)


def save_report(report: Report, path: Path) -> None:
    """Write the report as JSON: {"records", "usable", "counts": {kind: n}, "problems": [{"kind", "name", "message"}]}."""
    write_text(path, json.dumps(asdict(report), indent=1))


def _examine(record: Record, known: dict[bytes, str]) -> list[Problem]:
    """The problems of one record. known: name of the first picture by SHA-256 of its bytes, which the record joins."""
    if not os.path.isfile(record.image):
        return [Problem("missing_image", record.name, "no such file")]
    try:
        read_rgb(record.image)
        digest = _sha256(record.image)
    except DataError as error:
        return [Problem("unreadable_image", record.name, str(error))]
    except OSError as error:
        return [Problem("unreadable_image", record.name, f"cannot be read ({error.strerror})")]
    problems = []
    if digest in known:
        problems.append(Problem("duplicate", record.name, f"the same bytes as {known[digest]}"))
    known.setdefault(digest, record.name)
    try:
        pose = record.pose()
    except KBDMError as error:
        problems.append(Problem("unreadable_pose", record.name, str(error)))
    else:
        if pose is None:
            problems.append(Problem("missing_pose", record.name, "no pose is known"))
        elif not pose.people:
            problems.append(Problem("empty_pose", record.name, "the pose has no people"))
    return problems


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.digest()
