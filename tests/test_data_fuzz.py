"""Bar B6 for training data: broken pictures, captions, poses and entries are all named with a fitting kind, none ends the run."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testbed.sample_data import (
    SIZE,
    body,
    openpose_json,
    picture,
    write_captioned,
    write_folder,
    write_humanart,
    write_humansd,
    write_humansd_pose,
    write_picture,
)
from train.data.records import DataTable, load_image
from train.data.sources import open_dataset
from train.data.validate import Report, validate

SEED = 20_240_607
SOUND = 20
ODD = [None, True, 7, -1, 0.5, float("nan"), float("inf"), 10**400, "", "x", "\0", "\ud800", [], [[]], {}, {"x": {}}, ["x"] * 51, "9" * 9999]
FOREIGN = [
    b"%PDF-1.7\n",
    b"PK\x03\x04",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF",
    b"<svg/>",
    b"\0\0\0\x20ftypmp42",
]  # heads of other files
NO_KEYPOINTS = [None, 3, "x", [], [1] * 50, [1] * 54, ["x"] * 51, [[1, 2]] * 17, [float("nan")] * 51, [10**400] * 51]

Expected = dict[str, set[str]]  # the kinds that fit, by the name of a broken entry


def encoded(image: Image.Image, suffix: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims another size than it has."""
    whole = bytearray(encoded(picture(0), "png"))
    whole[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


def broken_picture(rng: random.Random) -> tuple[str, bytes]:
    """A suffix, and bytes that are no whole picture."""
    suffix = rng.choice(["png", "jpeg", "webp", "gif", "bmp", "tiff"])
    whole = encoded(picture(rng.randrange(1000)), suffix)
    cut = whole[: int(len(whole) * rng.uniform(0.01, 0.9))]
    junk = rng.randbytes(rng.randrange(1, 3000))
    corrupted = bytearray(encoded(picture(rng.randrange(1000)), "png"))  # noise does not compress: its checksum tells
    start = rng.randrange(100, len(corrupted) - 100)
    corrupted[start : start + 20] = bytes(255 - value for value in corrupted[start : start + 20])
    return rng.choice(
        [
            (suffix, cut),
            (suffix, cut),
            (suffix, b""),
            (suffix, bytes(rng.randrange(1, 5000))),
            (suffix, junk),
            (suffix, whole[:12] + junk),
            (suffix, b"<html><body>403 Forbidden</body></html>"),
            (suffix, "каштан 🌰".encode() * rng.randrange(1, 50)),
            (suffix, rng.choice(FOREIGN) + junk),
            ("png", bytes(corrupted)),
            ("png", png_header(rng.choice([60_000, 2**31 - 1]), rng.choice([60_000, 2**31 - 1]))),
            ("png", png_header(*rng.choice([(0, 0), (0, 9), (9, 0)]))),
        ]
    )


def broken_caption(rng: random.Random) -> tuple[set[str], bytes | None]:
    """The kinds that fit, and the bytes of the .txt (None = no file)."""
    space = "".join(rng.choices(" \t\r\n\u3000\u00a0", k=rng.randrange(9))).encode()
    text = "a man on a horse"
    return rng.choice(
        [
            ({"missing_caption"}, None),
            ({"empty_caption"}, b""),
            ({"empty_caption"}, space),
            ({"empty_caption"}, b"\xef\xbb\xbf" + space),
            ({"unreadable_caption"}, text.encode() + bytes([rng.randrange(128, 256)])),
            ({"unreadable_caption"}, text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32"]))),
            ({"unreadable_caption"}, text.encode() + b"\0" * rng.randrange(1, 9)),
            ({"unreadable_caption"}, text.encode() * 5000),
            ({"unreadable_caption"}, b"\xff" + rng.randbytes(rng.randrange(300))),
        ]
    )


def broken_pose_json(rng: random.Random) -> tuple[set[str], bytes]:
    """The kinds that fit, and the bytes of the pose JSON."""
    whole = openpose_json([body(rng.randrange(1000)) for _ in range(rng.randrange(1, 4))])
    frame = json.loads(whole)
    odd = rng.choice(ODD)
    no_json = [
        whole[: rng.randrange(len(whole))].encode(),
        rng.randbytes(rng.randrange(300)),
        b"[" * rng.randrange(2000, 200_000),
        b'{"a":' * rng.randrange(2000, 20_000),
        whole.encode("utf-16"),
        b"\xff" + whole.encode(),
        json.dumps([frame, frame]).encode(),
    ]
    wrong = [
        {**frame, "people": rng.choice([3, "x", {"a": 1}, [3], ["x"]])},
        {**frame, "people": [{"pose_keypoints_2d": list(range(1, rng.choice([2, 5, 49, 53, 90])))}]},
        {**frame, "people": [{"pose_keypoints_2d": rng.choice([7, "x", {"a": 1}, [[1, 2]], ["x"] * 51, [10**400] * 51])}]},
        {"images": rng.choice([3, [3], [{"id": []}]]), "annotations": []},
        {"images": [{"id": 1, "width": 9, "height": 9}], "annotations": [{"image_id": 1, "keypoints": odd}]},
        [{"image_id": 1, "keypoints": [[1, 2, 3]] * rng.choice([1, 16, 18])}],
        {"annotations": [{"image_id": 1}]},
        rng.choice([3, "x", {}, [], {"animals": []}]),
    ]
    nobody = [
        {**frame, "people": []},
        [None],
        {**frame, "people": [{}, None]},
        {**frame, "people": [{"pose_keypoints_2d": [rng.choice([0, float("nan"), float("inf"), 1e300, -1e9, None])] * 51}]},
    ]
    pick = rng.choice(no_json + wrong + nobody)
    if isinstance(pick, bytes):
        return {"unreadable_pose"}, pick
    return {"empty_pose"} if pick in nobody else {"unreadable_pose"}, json.dumps(pick).encode()


def fuzz_folder(root: Path, rng: random.Random) -> Expected:
    """150 pictures, 60 captions and 70 poses are broken; returns what must be reported."""
    expected: Expected = {}
    for i in range(150):
        suffix, data = broken_picture(rng)
        path = write_captioned(root / f"picture{i}.png", i, "sound").rename(root / f"picture{i}.{suffix}")
        path.write_bytes(data)
        expected[path.name] = {"unreadable_image"}
    for i in range(60):
        kinds, data = broken_caption(rng)
        path = write_picture(root / f"caption{i}.png", 1000 + i)
        if data is not None:
            path.with_suffix(".txt").write_bytes(data)
        expected[path.name] = kinds
    for i in range(70):
        kinds, data = broken_pose_json(rng)
        path = write_captioned(root / f"pose{i}.png", 2000 + i, "sound")
        path.with_suffix(".json").write_bytes(data)
        expected[path.name] = kinds
    write_folder(root / "sound", SOUND)
    return expected


def fuzz_humanart(root: Path, rng: random.Random) -> tuple[Path, Expected]:
    """90 of the entries of the annotation file are broken; returns it and what must be reported."""
    path = write_humanart(root, SOUND)
    table = json.loads(path.read_text())
    expected: Expected = {}
    for i in range(90):
        key, name = 1000 + i, f"broken{i}.png"
        image = {"id": key, "file_name": name, "width": SIZE[0], "height": SIZE[1], "description": "sound"}
        annotation = {"image_id": key, "keypoints": body(i).flatten().tolist()}
        write_picture(root / name, 3000 + i)
        where = f"{path.name}: images[{len(table['images'])}]"
        what = rng.choice(["image", "id", "file_name", "description", "keypoints", "image_id"])
        if what == "image":
            image, expected[where] = rng.choice([None, 3, "x", [], [[]]]), {"bad_entry"}
        elif what == "id":
            image["id"], expected[where] = rng.choice([None, 0.5, [], {}, [1], float("nan")]), {"bad_entry"}
        elif what == "file_name":
            image["file_name"] = rng.choice([None, 3, [], {}, "", "/" + name, "../" + name, "a/../../" + name, "C:\\" + name, "\0" + name])
            text = image["file_name"]
            expected[text if isinstance(text, str) else f"image {key}"] = {"bad_entry"}
        elif what == "description":
            image["description"] = rng.choice([None, "", " \n", 3, [], {}, "\0", "\ud800"])
            expected[name] = {"missing_caption", "empty_caption", "unreadable_caption"}
        elif what == "keypoints":
            annotation["keypoints"] = rng.choice(NO_KEYPOINTS)
            expected[name] = {"unreadable_pose", "empty_pose"}
        else:
            annotation["image_id"] = rng.choice([None, -1, 0.5, [], {}, "x"])
            expected[f"{path.name}: annotations[{len(table['annotations'])}]"] = {"bad_annotation"}
            expected[name] = {"missing_pose"}
        table["images"].append(image)
        if what not in ("image", "id"):
            table["annotations"].append(annotation)
    path.write_text(json.dumps(table))
    return path, expected


class Attack:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def broken_npz(path: Path, rng: random.Random) -> None:
    """Overwrite a sound .npz with something that is no pose."""
    whole = path.read_bytes()
    array = zipfile.ZipFile(path).read("arr_0.npy")
    start = array.index(b"\n") + 1

    def archive(content: bytes, name: str = "arr_0.npy") -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr(name, content)
        return buffer.getvalue()

    wrong_shape = rng.choice([(17, 2), (16, 3), (51,), (1, 17, 3), (0, 3), ()])
    person = rng.choice([None, 3, "x", [], {}, {"keypoints": None}, {"keypoints": [[1, 2, 3]] * 17}, {"keypoints": np.zeros(wrong_shape)}])
    attacks = [Attack(), {"keypoints": Attack()}, {"keypoints": np.array([[Attack()] * 3] * 17)}]
    pickles = [*attacks, {"keypoints": np.full((17, 3), "x")}, person, person, person]
    broken: list[Callable[[], bytes]] = [
        lambda: whole[: rng.randrange(len(whole))],
        lambda: rng.randbytes(rng.randrange(2000)),
        lambda: archive(array, "pose.npy"),
        lambda: archive(array[: rng.randrange(len(array))]),
        lambda: archive(array[:start] + rng.randbytes(rng.randrange(500))),
        lambda: archive(bytes(1 << 22)),
        lambda: archive(array[:start] + pickle.dumps([rng.choice(pickles)], protocol=rng.randrange(6))),
        lambda: archive(array[:start] + pickle.dumps(np.array([rng.choice(pickles), None], dtype=object)[:1], protocol=rng.randrange(3, 5))),
        lambda: archive(array[:start] + b"\x80\x04" + b"(" * 50_000),
        lambda: archive(array[:start] + b"\x80\x04)" + b"\x85" * 50_000 + b"."),
        lambda: archive(array[:start] + b"\x80\x04Nr\xff\xff\xff\x7f."),
        lambda: archive(array[:start] + b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little")),
    ]
    path.write_bytes(rng.choice(broken)())


def fuzz_humansd(root: Path, rng: random.Random) -> tuple[Path, Expected]:
    """130 of the entries or their .npz are broken; returns the mapping file and what must be reported."""
    path = write_humansd(root, SOUND)
    mapping = json.loads(path.read_text())
    expected: Expected = {}
    for i in range(130):
        key, name = f"broken{i}", f"broken/{i}.png"
        write_picture(root / name, 4000 + i)
        entry = {"img_path": name, "prompt": "sound", "pose_path": f"broken/{i}.npz"}
        write_humansd_pose(root / entry["pose_path"], [body(i)])
        what = rng.choice(["entry", "img_path", "prompt", "pose_path", *["npz"] * 8])
        if what == "entry":
            entry, expected[f"{path.name}: {key}"] = rng.choice([None, 3, "x", [], {}, [[1]]]), {"bad_entry"}
        elif what == "img_path":
            entry["img_path"] = rng.choice([None, 3, [], "", "/" + name, "../" + name, "x\0"])
            expected[f"{path.name}: {key}"] = {"bad_entry"}
        elif what == "prompt":
            entry["prompt"] = rng.choice([None, "", " \n", 3, [], {}, "\0"])
            expected[f"{path.name}: {key}"] = {"missing_caption", "empty_caption", "unreadable_caption"}
        elif what == "pose_path":
            entry["pose_path"] = rng.choice([None, "broken/nowhere.npz", 3, [], "", "/x.npz", "../x.npz", "x\0", "broken"])
            expected[name] = {"missing_pose", "unreadable_pose"}
        else:
            broken_npz(root / entry["pose_path"], rng)
            expected[name] = {"unreadable_pose", "empty_pose"}
        mapping[key] = entry
    path.write_text(json.dumps(mapping))
    return path, expected


def assert_all_named(table: DataTable, expected: Expected, report_path: Path) -> Report:
    """Every broken entry is reported with a fitting kind, nothing else is, and the sound ones can be used."""
    dataset = open_dataset(table)
    report = validate(dataset, report_path)
    found: Expected = {}
    for problem in report.problems:
        assert problem.message
        found.setdefault(problem.name, set()).add(problem.kind)
    assert found.keys() == expected.keys()
    assert {name: kinds for name, kinds in found.items() if not kinds <= expected[name]} == {}
    sound = [record for record in dataset.records if record.name not in expected]
    assert len(sound) == SOUND
    for record in sound:
        assert load_image(record).size == SIZE and record.caption and len(record.pose().people) == 1
    assert len(json.loads(report_path.read_text())["problems"]) == len(report.problems)
    return report


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_500_broken_inputs_are_all_named_and_none_ends_the_run(tmp_path):
    rng = random.Random(SEED)
    folder, humanart, humansd = tmp_path / "folder", tmp_path / "humanart", tmp_path / "humansd"
    in_folder = fuzz_folder(folder, rng)
    annotations, in_humanart = fuzz_humanart(humanart, rng)
    mapping, in_humansd = fuzz_humansd(humansd, rng)
    assert len(in_folder) + len(in_humanart) + len(in_humansd) >= 500
    assert_all_named(DataTable(folder), in_folder, tmp_path / "1.json")
    assert_all_named(DataTable(humanart, "coco", (annotations,)), in_humanart, tmp_path / "2.json")
    assert_all_named(DataTable(humansd, "humansd", (mapping,)), in_humansd, tmp_path / "3.json")
