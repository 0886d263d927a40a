"""The validation report names every problem of the data once, is written whole or not at all, and changes nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from testbed.sample_data import body, openpose_json, write_captioned, write_folder
from train.data.records import PROBLEM_KINDS, DataTable
from train.data.sources import open_dataset
from train.data.validate import validate


def broken_folder(root: Path) -> Path:
    """Seven pictures: 0 sound, 1 the same bytes, 2 without pose, 3 with an unreadable pose, 4 without people, 5 cut off, 6 without caption."""
    for i in range(7):
        write_captioned(root / f"{i}.png", i, f"number {i}").with_suffix(".json").write_text(openpose_json([body(i)]))
    shutil.copy(root / "0.png", root / "1.png")
    (root / "2.json").unlink()
    (root / "3.json").write_text("{")
    (root / "4.json").write_text(openpose_json([]))
    (root / "5.png").write_bytes((root / "5.png").read_bytes()[:200])
    (root / "6.txt").unlink()
    return root


EXPECTED = {"1": "duplicate", "2": "missing_pose", "3": "unreadable_pose", "4": "empty_pose", "5": "unreadable_image", "6": "missing_caption"}


def test_the_report_names_every_problem_and_counts_it(tmp_path):
    path = tmp_path / "out" / "report.json"
    report = validate(open_dataset(DataTable(broken_folder(tmp_path / "data"))), path)
    assert (report.records, report.usable) == (7, 5)
    assert {problem.name: problem.kind for problem in report.problems} == {f"{i}.png": kind for i, kind in EXPECTED.items()}
    assert report.counts == dict.fromkeys(EXPECTED.values(), 1) and set(report.counts) <= set(PROBLEM_KINDS)
    written = json.loads(path.read_text())
    assert set(written) == {"records", "usable", "counts", "problems"} and set(written["problems"][0]) == {"kind", "name", "message"}
    assert (written["records"], written["usable"], written["counts"], len(written["problems"])) == (7, 5, report.counts, 6)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_a_check_that_raises_ends_the_run_and_leaves_the_old_report(tmp_path):
    dataset = open_dataset(DataTable(write_folder(tmp_path / "data", 5)))
    path = tmp_path / "report.json"
    path.write_text("old")
    calls = []

    def stop_at_the_third() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        validate(dataset, path, stop_at_the_third)
    assert len(calls) == 3 and path.read_text() == "old" and sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "report.json"]


def test_validation_leaves_the_data_as_it_is(tmp_path):
    def digests() -> dict[str, str]:
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(tmp_path.rglob("*.*"))}

    broken_folder(tmp_path)
    before = digests()
    validate(open_dataset(DataTable(tmp_path)), None)
    assert digests() == before
