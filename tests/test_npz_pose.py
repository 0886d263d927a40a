"""HumanSD's .npz poses are read as numpy reads them, without unpickling: no code in a file runs, no file costs more than its size."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from kbdm_core.errors import PoseError
from testbed.sample_data import body, write_humansd_pose
from train.data.npz_pose import read_npz_bodies


def write_arr_0(path: Path, pickled: bytes) -> Path:
    """An .npz whose arr_0 is an object array of one dimension with that pickle in it."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + pickled)
    return path


def object_array(value: object) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def write_numpy_1(path: Path) -> None:
    """The file as numpy 1 writes it: protocol 3, whose names stand in text lines, and another name of the module."""
    pickled = pickle.dumps(object_array({"keypoints": body(7), "score": np.float32(0.5)}), protocol=3)
    write_arr_0(path, pickled.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


@pytest.mark.parametrize(
    ("write", "bodies"),
    [
        (lambda path: write_humansd_pose(path, [body(i) for i in range(12)]), [body(i) for i in range(12)]),
        (write_numpy_1, [body(7)]),
        (lambda path: write_humansd_pose(path, []), []),
        (lambda path: write_humansd_pose(path, [np.asfortranarray(body(5))]), [body(5)]),
        (lambda path: write_humansd_pose(path, [body(5).astype(">f8")]), [body(5)]),
        (lambda path: write_humansd_pose(path, [body(5).astype(np.float16)]), [body(5).astype(np.float16)]),
        (lambda path: write_humansd_pose(path, [body(5).round().astype(np.int64)]), [body(5).round()]),
        (lambda path: np.savez_compressed(path, np.array([{"keypoints": body(6), "tags": np.zeros((17, 1)), "bbox": [1, 2.5, None]}])), [body(6)]),
        (lambda path: write_humansd_pose(path, [body(3)[::-1]] * 2), [body(3)[::-1]] * 2),
    ],
    ids=["12 people", "numpy 1", "nobody", "column-major", "big-endian", "half", "integers", "compressed, more keys", "one object twice"],
)
def test_every_honest_file_reads_as_numpy_reads_it(tmp_path, write, bodies):
    write(tmp_path / "pose.npz")
    found = read_npz_bodies(tmp_path / "pose.npz")
    by_numpy = np.load(tmp_path / "pose.npz", allow_pickle=True)["arr_0"]
    assert len(found) == len(bodies) == len(by_numpy)
    for points, expected, person in zip(found, bodies, by_numpy):
        np.testing.assert_array_equal(points, expected)
        np.testing.assert_array_equal(points, person["keypoints"])


class Attack:
    """Unpickled, it writes a file."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch '{self.victim}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["person", "keypoints", "beside"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, protocol, place):
    victim = tmp_path / "executed"
    evil = {"person": Attack(victim), "keypoints": {"keypoints": Attack(victim)}, "beside": {"keypoints": body(0), "x": Attack(victim)}}[place]
    path = write_arr_0(tmp_path / "evil.npz", pickle.dumps(object_array(evil), protocol=protocol))
    with pytest.raises(PoseError, match=r"evil\.npz: its pickle .* refused"):
        read_npz_bodies(path)
    assert not victim.exists()
    np.load(path, allow_pickle=True)["arr_0"]  # the attack would have worked
    assert victim.exists()


@pytest.mark.parametrize("name", ["system", "eval", "getattr", "load", "_reconstruct"])
@pytest.mark.parametrize("module", ["posix", "builtins", "numpy.testing", "numpy.core", "numpy", ""])
def test_only_numpys_four_names_pass(tmp_path, module, name):
    path = write_arr_0(tmp_path / "pose.npz", f"\x80\x03c{module}\n{name}\n)R.".encode("latin-1"))
    with pytest.raises(PoseError, match=f"names '{module} {name}'.*refused"):
        read_npz_bodies(path)


NESTED = b"\x80\x04)" + b"\x85" * 900_000 + b"."  # a tuple in a tuple in ...; to hash it takes all of the stack
LAUGHS = b"\x80\x04]q\x00" + b"".join(b"](" + b"h%c" % i * 50 + b"eq%c" % (i + 1) for i in range(40)) + b"."  # 50^40 entries, if anybody counts
BOMBS = {
    "nested": NESTED,
    "nested key": NESTED[:-1].replace(b"\x80\x04", b"\x80\x04}") + b"Ns.",
    "laughs": LAUGHS,
    "a memo of 64 GB": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a text of an exabyte": b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little"),
    "marks": b"\x80\x04" + b"(" * 900_000,
    "zeros that were squeezed": None,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_does_not_go_off(tmp_path, bomb):
    path = write_arr_0(tmp_path / "bomb.npz", BOMBS[bomb] or bytes(1 << 25))
    with pytest.raises(PoseError, match=r"bomb\.npz"):  # one that works takes for ever, or all memory
        read_npz_bodies(path)


def test_any_change_to_the_bytes_gives_a_pose_or_a_pose_error(tmp_path):
    rng = random.Random(1)
    path = write_humansd_pose(tmp_path / "pose.npz", [body(0), body(1)])
    whole = zipfile.ZipFile(path).read("arr_0.npy")
    start = whole.index(b"\n") + 1
    refused = 0
    for _ in range(1000):
        changed = bytearray(whole[start:])
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        write_arr_0(path, bytes(changed))
        try:
            assert all(points.shape == (17, 3) for points in read_npz_bodies(path))
        except PoseError:
            refused += 1
    assert 100 < refused < 1000
