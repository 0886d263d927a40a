"""Training data: three formats give the same kind of record, with the right pixels, caption and pose, in a fixed order."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from kbdm_core.errors import KBDMError
from testbed.real_poses import real_coco
from testbed.sample_data import (
    SIZE,
    body,
    openpose_json,
    picture,
    write_captioned,
    write_folder,
    write_humanart,
    write_humansd,
    write_picture,
)
from train.data.records import DataError, Dataset, DataTable, Record, load_image
from train.data.sources import open_dataset


def open_folder(root: Path) -> Dataset:
    return open_dataset(DataTable(root))


def names(dataset: Dataset) -> list[str]:
    return [record.name for record in dataset.records]


def kinds(dataset: Dataset) -> dict[str, str]:
    return {problem.name: problem.kind for problem in dataset.problems}


def assert_shows(record: Record, seed: int) -> None:
    """The record's picture is that of the seed, but for what a JPEG loses; another one is 85 levels away."""
    found = np.asarray(load_image(record), dtype=float)
    assert np.abs(found - np.asarray(picture(seed))).mean() < 5


# Folder


def test_a_folder_gives_pixels_caption_and_pose(tmp_path):
    dataset = open_folder(write_folder(tmp_path, 4))
    assert names(dataset) == ["part 0/0000.png", "part 0/0002.png", "part 1/0001.png", "part 1/0003.png"] and not dataset.problems
    for record, i in zip(dataset.records, (0, 2, 1, 3)):
        assert record.caption == f"picture number {i}"
        np.testing.assert_array_equal(np.asarray(load_image(record)), np.asarray(picture(i)))
        pose = record.pose()
        assert (pose.width, pose.height, len(pose.people)) == (*SIZE, 1)
        np.testing.assert_allclose(pose.people[0].body, body(i))


def test_names_and_order_do_not_depend_on_how_the_files_came_there(tmp_path):
    files = ["b/2.png", "a.png", "b/10.png", "ä/z.png", "Z.png", "b.png", "b/a/1.png"]
    listed = []
    for seed in range(3):
        for i, name in enumerate(random.Random(seed).sample(files, len(files))):
            write_captioned(tmp_path / str(seed) / name, i, name)
        listed.append(names(open_folder(tmp_path / str(seed))))
    assert listed[0] == listed[1] == listed[2] == sorted(files)


def test_unicode_names_and_suffixes_in_capitals_are_read(tmp_path):
    write_captioned(tmp_path / "слон 🐘.JPG", 0, "an elephant 🐘")
    write_picture(tmp_path / "photo.final.PNG", 1)
    (tmp_path / "photo.final.TXT").write_text("capitals")
    (tmp_path / "photo.final.JSON").write_text(openpose_json([body(1)]))
    by_name = {record.name: record for record in open_folder(tmp_path).records}
    assert {name: record.caption for name, record in by_name.items()} == {"слон 🐘.JPG": "an elephant 🐘", "photo.final.PNG": "capitals"}
    assert by_name["photo.final.PNG"].pose() is not None


@pytest.mark.skipif(os.name == "nt", reason="file names are text on Windows")
def test_a_file_name_that_is_no_utf8_can_be_reported(tmp_path):
    write_captioned(tmp_path / os.fsdecode(b"caf\xe9.png"), 0, "a café")
    (record,) = open_folder(tmp_path).records
    assert record.name == "caf\\udce9.png" and load_image(record).size == SIZE


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"  a man\r\n\r\n  on a horse \n", "a man on a horse"),
        (b"\xef\xbb\xbfwith BOM", "with BOM"),
        ("一个人, ein Mädchen (x:1.2) 🤸".encode(), "一个人, ein Mädchen (x:1.2) 🤸"),
    ],
)
def test_a_caption_is_one_stripped_line(tmp_path, data, caption):
    write_picture(tmp_path / "a.png", 0)
    (tmp_path / "a.txt").write_bytes(data)
    assert [record.caption for record in open_folder(tmp_path).records] == [caption]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (None, "missing_caption"),
        (b"", "empty_caption"),
        (b"\xef\xbb\xbf \n\t ", "empty_caption"),
        (b"caf\xe9", "unreadable_caption"),
        ("a man".encode("utf-16"), "unreadable_caption"),
        ("a man".encode("utf-16-le"), "unreadable_caption"),
        (b"x" * 70_000, "unreadable_caption"),
    ],
)
def test_a_picture_without_usable_caption_is_a_problem_and_no_record(tmp_path, data, kind):
    write_picture(tmp_path / "a.png", 0)
    if data is not None:
        (tmp_path / "a.txt").write_bytes(data)
    dataset = open_folder(tmp_path)
    assert not dataset.records and kinds(dataset) == {"a.png": kind}


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    write_captioned(tmp_path / "seen.png", 0, "seen")
    for name in ("._seen.png", ".cache/hidden.png", "__MACOSX/._seen.png"):
        write_captioned(tmp_path / name, 1, "hidden")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "alone.txt").write_text("no picture")
    dataset = open_folder(tmp_path)
    assert names(dataset) == ["seen.png"] and not dataset.problems


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    root = tmp_path / "root"
    write_captioned(root / "b" / "1.png", 0, "inside")
    write_captioned(tmp_path / "elsewhere" / "2.png", 1, "linked")
    (root / "b" / "up").symlink_to(root, target_is_directory=True)
    (root / "b" / "self").symlink_to(root / "b", target_is_directory=True)
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(root, target_is_directory=True)
    assert names(open_folder(root)) == ["b/1.png", "linked/2.png"]


def test_openpose_names_and_other_canvases_are_read_in_pixels_of_the_picture(tmp_path):
    write_captioned(tmp_path / "a.png", 0, "a man")
    (tmp_path / "a_keypoints.json").write_text(openpose_json([body(3)], (SIZE[0] * 10, SIZE[1] * 5)))
    pose = open_folder(tmp_path).records[0].pose()
    np.testing.assert_allclose(pose.people[0].body, body(3) / (10, 5, 1))
    (tmp_path / "a.json").write_text(json.dumps([{"image_id": 1, "keypoints": body(4).flatten().tolist()}]))  # a bare COCO list, and it comes first
    np.testing.assert_allclose(open_folder(tmp_path).records[0].pose().people[0].body, body(4))


@pytest.mark.parametrize("text", ["", "{}", "[1, 2", b"\xff\xfe", "[" * 100_000, json.dumps([json.loads(openpose_json([body(0)]))] * 2)])
def test_a_broken_pose_is_an_error_only_when_it_is_read(tmp_path, text):
    write_captioned(tmp_path / "a.png", 0, "a man")
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (record,) = open_folder(tmp_path).records
    with pytest.raises(KBDMError):
        record.pose()


def test_without_a_pose_file_no_pose_is_known(tmp_path):
    write_captioned(tmp_path / "a.png", 0, "a man")
    assert open_folder(tmp_path).records[0].pose() is None


# COCO and Human-Art


@pytest.mark.parametrize("root_holds_humanart", [True, False])
def test_humanart_is_read_with_root_above_or_at_its_folder(tmp_path, root_holds_humanart):
    annotations = write_humanart(tmp_path, 3)
    root = tmp_path if root_holds_humanart else tmp_path / "HumanArt"
    dataset = open_dataset(DataTable(root, "coco", (annotations,)))
    prefix = "HumanArt/" if root_holds_humanart else ""
    assert names(dataset) == [f"{prefix}images/digital_art/{i:012}.jpg" for i in range(3)] and not dataset.problems
    for i, record in enumerate(dataset.records):
        assert record.caption == f"number {i}"
        assert_shows(record, i)
        np.testing.assert_allclose(record.pose().people[0].body, body(i) * (1, 1, 0) + (0, 0, 1), rtol=1e-6)


def coco_files(root: Path, images: list, **annotations: list) -> DataTable:
    """Pictures of the images, and one JSON file per keyword, all with the same images."""
    for i, image in enumerate(images):
        write_picture(root / image["file_name"], i)
    paths = tuple(root / f"{name}.json" for name in annotations)
    for path in paths:
        path.write_text(json.dumps({"images": images, "annotations": annotations[path.stem]}))
    return DataTable(root, "coco", paths)


def test_coco_captions_and_keypoints_come_from_two_files(tmp_path):
    images = [{"id": 9, "file_name": "9.jpg", "width": 48, "height": 32}, {"id": 4, "file_name": "4.png", "width": 96, "height": 64}]
    captions = [{"image_id": 9, "caption": "first of 9\n"}, {"image_id": 4, "caption": "of 4"}, {"image_id": 9, "caption": "second of 9"}]
    visible, joints = body(0) * (1, 1, 0) + (0, 0, 2), list(range(17))
    visible[3] = (-7, -9, 0)
    persons = [
        {"image_id": 4, "keypoints": (visible * (2, 2, 1)).flatten().tolist(), "num_keypoints": 16},
        {"image_id": 4, "keypoints": [1] * 51, "num_keypoints": 17, "iscrowd": 1},
        {"image_id": 4, "keypoints": [0] * 51, "num_keypoints": 0},
        {"image_id": 9, "bbox": [0, 0, 5, 5], "category_id": 18},
    ]
    first, second = open_dataset(coco_files(tmp_path, images, captions_train=captions, person_keypoints_train=persons)).records
    assert [(r.name, r.caption) for r in (first, second)] == [("9.jpg", "first of 9"), ("4.png", "of 4")]
    assert first.pose() is None
    (person,) = second.pose().people
    assert [j for j in joints if person.body[j, 2] == 1] == [j for j in joints if j != 3] and not person.body[3].any()
    np.testing.assert_allclose(person.body[4, :2], visible[4, :2], rtol=1e-6)  # the file says 96 x 64, the picture has 48 x 32


def test_real_coco_poses_come_out_as_labelled(tmp_path):
    coco = real_coco()
    coco = {"images": coco["images"][:40], "annotations": coco["annotations"]}
    for image in coco["images"]:
        write_picture(tmp_path / image["file_name"], 0, (image["width"], image["height"]))
        image["caption"] = "a person"
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    dataset = open_dataset(DataTable(tmp_path, "coco", (tmp_path / "coco.json",)))
    truth = {annotation["image_id"]: np.array(annotation["keypoints"], dtype=float).reshape(17, 3) for annotation in coco["annotations"]}
    assert len(dataset.records) == 40 and {problem.kind for problem in dataset.problems} == {"bad_annotation"}  # of the images left out
    for image, record in zip(coco["images"], dataset.records):
        (person,) = record.pose().people
        seen = truth[image["id"]][:, 2] > 0
        np.testing.assert_array_equal(person.body[:, 2] > 0, seen)
        np.testing.assert_array_equal(person.body[seen, :2], truth[image["id"]][seen, :2])


OUTSIDE = ["../out.png", "a/../../out.png", "/etc/out.png", "C:\\out.png", "..\\out.png", "", ".", None, 7, "a\0.png", "\ud800.png"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leaves_the_root_is_a_problem(tmp_path, path):
    write_picture(tmp_path / "out.png", 0)
    root = tmp_path / "root"
    root.mkdir()
    (root / "c.json").write_text(json.dumps({"images": [{"id": 1, "file_name": path, "caption": "x"}]}))
    (root / "m.json").write_text(json.dumps({"1": {"img_path": path, "prompt": "x"}}))
    for table in (DataTable(root, "coco", (root / "c.json",)), DataTable(root, "humansd", (root / "m.json",))):
        dataset = open_dataset(table)
        assert not dataset.records and [problem.kind for problem in dataset.problems] == ["bad_entry"]


def test_one_id_for_two_files_is_a_problem(tmp_path):
    images = [{"id": 1, "file_name": "a.png", "caption": "a"}, {"id": 1, "file_name": "b.png", "caption": "b"}]
    dataset = open_dataset(coco_files(tmp_path, images, captions=[]))
    assert names(dataset) == ["a.png"] and kinds(dataset) == {"captions.json: images[1]": "bad_entry"}


# HumanSD


def test_humansd_gives_pixels_prompt_and_pose(tmp_path):
    dataset = open_dataset(DataTable(tmp_path, "humansd", (write_humansd(tmp_path, 3),)))
    assert names(dataset) == ["images/00000.jpg", "images/00001.jpg", "images/00002.jpg"] and not dataset.problems
    for i, record in enumerate(dataset.records):
        assert record.caption == f"oil painting, number {i}"
        assert_shows(record, i)
        pose = record.pose()
        assert (pose.width, pose.height) == SIZE
        np.testing.assert_array_equal(pose.people[0].body, body(i))


def test_a_pose_file_that_is_not_there_is_no_pose(tmp_path):
    mapping = write_humansd(tmp_path, 1)
    (tmp_path / "pose/00000.npz").unlink()
    assert open_dataset(DataTable(tmp_path, "humansd", (mapping,))).records[0].pose() is None


def test_records_travel_to_other_processes(tmp_path):
    write_folder(tmp_path, 1)
    for table in (
        DataTable(tmp_path),
        DataTable(tmp_path, "coco", (write_humanart(tmp_path, 1),)),
        DataTable(tmp_path, "humansd", (write_humansd(tmp_path, 1),)),
    ):
        record = open_dataset(table).records[0]
        copy = pickle.loads(pickle.dumps(record))
        assert (copy.name, copy.caption) == (record.name, record.caption)
        np.testing.assert_array_equal(copy.pose().people[0].body, record.pose().people[0].body)


# The source as a whole


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "null", "[" * 100_000, '{"images": 3}', '{"images": [], "annotations": {}}', "\xff"])
def test_a_broken_json_file_is_one_error_that_names_it(tmp_path, text):
    path = tmp_path / "broken.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"broken\.json"):
        open_dataset(DataTable(tmp_path, "coco", (path,)))
    if text is None or not text.startswith("{") or text == "{":
        with pytest.raises(DataError, match=r"broken\.json"):
            open_dataset(DataTable(tmp_path, "humansd", (path,)))


def test_a_table_that_cannot_be_meant_is_an_error(tmp_path):
    (tmp_path / "empty.json").write_text("{}")
    for table, message in (
        (DataTable(), r"data\.root is None"),
        (DataTable(tmp_path / "nowhere"), r"data\.root is .*nowhere"),
        (DataTable(tmp_path), "no picture"),
        (DataTable(tmp_path, "folder", (tmp_path / "a.json",)), "takes none"),
        (DataTable(tmp_path, "coco"), "at least one JSON file"),
        (DataTable(tmp_path, "humansd", (tmp_path / "empty.json",)), "no picture"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(table)
