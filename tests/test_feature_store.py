"""The feature store: what was committed is there and right, whatever dies and wherever."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kbdm_core.errors import FileFormatError, KBDMError, MismatchError
from train.features import store as store_module
from train.features.store import KEY_BYTES, FeatureStore

SHAPE = (4, 6)
ROW_BYTES = 4 * 6 * 2


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def row(number: int) -> np.ndarray:
    """What row `number` must be in every test."""
    return np.random.default_rng(number).standard_normal(SHAPE).astype(np.float16)


def rows(numbers) -> np.ndarray:
    return np.stack([row(number) for number in numbers])


def open_store(folder, shape=SHAPE, dtype="float16", description=None) -> FeatureStore:
    return FeatureStore.open(folder, shape, dtype, {"holds": "tests"} if description is None else description)


def write(store: FeatureStore, numbers, name: str = "0") -> None:
    with store.writer(name) as writer:
        writer.append([key(number) for number in numbers], rows(numbers))
    store.refresh()


def assert_holds(store: FeatureStore, numbers) -> None:
    assert sorted(store.keys()) == sorted(key(number) for number in numbers)
    assert np.array_equal(store.rows([key(number) for number in numbers])[:], rows(numbers) if len(numbers) else np.empty((0, *SHAPE)))


def test_rows_come_back_in_the_order_of_the_keys_as_numpy_indexes_them(tmp_path):
    store = open_store(tmp_path)
    write(store, range(0, 20), "a")
    write(store, range(20, 30), "b")
    order = np.random.default_rng(0).permutation(30)
    found = open_store(tmp_path).rows([key(number) for number in order])
    expected = rows(order)
    assert found.shape == expected.shape and len(found) == 30 and found.dtype == expected.dtype
    for index in (slice(None), slice(3, 25, 4), slice(28, 2, -3), [], [5], [-1, 0, 7, 7, 0], np.array([29, 3, 11]), slice(4, 4)):
        assert np.array_equal(found[index], expected[np.array(index, int) if isinstance(index, list) else index])
    assert found[:2].flags.writeable and type(found[:2]) is np.ndarray


def test_a_request_larger_than_one_copy_step_is_put_together_right(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "COPY_BYTES", 3 * ROW_BYTES)
    store = open_store(tmp_path)
    write(store, range(20))
    assert_holds(store, range(20))


def test_an_index_beyond_the_rows_and_a_key_that_is_not_there_are_errors(tmp_path):
    store = open_store(tmp_path)
    write(store, range(3))
    with pytest.raises(IndexError):
        store.rows([key(0)])[[1]]
    with pytest.raises(KBDMError, match=f"1 of 2 features.*{key(9)}"):
        store.rows([key(0), key(9)])
    assert key(2) in store and key(3) not in store and "no key" not in store


def test_an_empty_store_has_no_rows_and_that_is_no_error(tmp_path):
    store = open_store(tmp_path)
    with store.writer("0") as writer:
        writer.append([], np.empty((0, *SHAPE)))
    assert_holds(open_store(tmp_path), [])
    assert len(store) == 0 and store.rows([]).shape == (0, *SHAPE)


def test_float32_rows_are_cast_to_the_dtype_of_the_store(tmp_path):
    values = np.random.default_rng(0).standard_normal((2, *SHAPE))
    for dtype in ("float32", "float16"):
        store = open_store(tmp_path / dtype, dtype=dtype)
        with store.writer("0") as writer:
            writer.append([key(0), key(1)], values)
        store.refresh()
        assert np.array_equal(store.rows([key(0), key(1)])[:], values.astype(dtype))


def test_other_shapes_dtypes_and_descriptions_are_refused_by_name(tmp_path):
    open_store(tmp_path)
    for change, words in (
        ({"shape": (4, 7)}, r"\[4, 6\] of float16.*\[4, 7\] of float16"),
        ({"dtype": "float32"}, "of float16.*of float32"),
        ({"description": {"holds": "latents"}}, '"tests".*"latents"'),
    ):
        with pytest.raises(MismatchError, match=words):
            open_store(tmp_path, **change)
    for change in ({"dtype": "bfloat16"}, {"dtype": "int32"}, {"shape": (0, 6)}):
        with pytest.raises(KBDMError, match="float32, float16"):
            open_store(tmp_path / "new", **change)


def test_a_store_json_that_is_none_is_named(tmp_path):
    open_store(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "kbdm.fea')
    with pytest.raises(FileFormatError, match=r"store.json is not JSON"):
        open_store(tmp_path)
    for content in ("[]", "{}", json.dumps({"format": "kbdm.features", "format_version": 2})):
        (tmp_path / "store.json").write_text(content)
        with pytest.raises(MismatchError, match="something else"):
            open_store(tmp_path)


def test_wrong_rows_and_keys_are_refused_and_harm_nothing(tmp_path):
    store = open_store(tmp_path)
    infinite = row(1)[None].astype(np.float32)
    infinite[0, 2, 3] = 1e6  # more than float16 holds
    with store.writer("0") as writer:
        for keys, values in (([key(1)], row(1)), ([key(1)], rows([1, 2])), (["abc"], rows([1])), ([key(1).upper()], rows([1])), ([key(1)], infinite)):
            with pytest.raises(KBDMError):
                writer.append(keys, values)
        writer.append([key(0)], rows([0]))
    assert_holds(open_store(tmp_path), [0])
    with pytest.raises(KBDMError, match="letters, digits"):
        store.writer("../elsewhere")


def test_two_writers_fill_one_store_and_the_same_row_twice_counts_once(tmp_path):
    first, second = open_store(tmp_path), open_store(tmp_path)
    with first.writer("0", commit_seconds=0) as zero, second.writer("1", commit_seconds=0) as one:
        for number in range(10):
            zero.append([key(number)], rows([number]))
            one.append([key(number + 5)], rows([number + 5]))
        first.refresh()
        assert_holds(first, range(15))
    write(second, range(15, 18), "1")
    first.refresh()
    assert_holds(first, range(18))


def test_a_shard_has_one_writer_at_a_time(tmp_path):
    store = open_store(tmp_path)
    with store.writer("0"), pytest.raises(KBDMError, match="Another process is writing"), open_store(tmp_path).writer("0"):
        pass
    write(store, [1])
    assert_holds(store, [1])


def test_rows_count_from_their_commit_on(tmp_path):
    store = open_store(tmp_path)
    with store.writer("0", commit_seconds=1e9) as writer:
        writer.append([key(0)], rows([0]))
        store.refresh()
        assert len(store) == 0
        writer.commit()
        store.refresh()
        assert_holds(store, [0])


def test_an_error_in_the_writers_context_keeps_what_was_appended(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.writer("0") as writer:
        writer.append([key(0)], rows([0]))
        raise ZeroDivisionError
    assert_holds(open_store(tmp_path), [0])


@pytest.mark.parametrize("file", ["shard-0.rows", "shard-0.keys"])
def test_a_file_cut_at_any_byte_costs_the_rows_behind_the_cut_only(tmp_path, file):
    store = open_store(tmp_path)
    write(store, range(4))
    whole = {path: path.read_bytes() for path in tmp_path.glob("shard-0.*")}
    size = ROW_BYTES if file.endswith("rows") else KEY_BYTES
    for length in range(len(whole[tmp_path / file]) + 1):
        for path, content in whole.items():
            path.write_bytes(content)
        os.truncate(tmp_path / file, length)
        kept = list(range(length // size))
        assert_holds(open_store(tmp_path), kept)
        with open_store(tmp_path).writer("0", commit_seconds=1e9) as writer:
            writer.append([key(7), key(8)], rows([7, 8]))
            assert_holds(open_store(tmp_path), kept)  # keys of lost rows do not count for new ones
        assert_holds(open_store(tmp_path), [*kept, 7, 8])
        sizes = [(tmp_path / f"shard-0.{part}").stat().st_size for part in ("rows", "keys")]
        assert sizes == [(len(kept) + 2) * ROW_BYTES, (len(kept) + 2) * KEY_BYTES]


def test_keys_that_a_power_cut_left_as_zeros_do_not_count(tmp_path):
    store = open_store(tmp_path)
    write(store, range(4))
    path = tmp_path / "shard-0.keys"
    path.write_bytes(path.read_bytes()[: 2 * KEY_BYTES] + bytes(2 * KEY_BYTES))
    assert_holds(open_store(tmp_path), [0, 1])


def test_a_disk_that_is_full_for_a_while_spoils_nothing(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    with store.writer("0") as writer:
        writer.append([key(0)], rows([0]))
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "_write_at", half_a_write)
            with pytest.raises(KBDMError, match=r"shard-0 cannot be written.*disk full.*Make room"):
                writer.append([key(1)], rows([1]))
            with pytest.raises(KBDMError, match="disk full"):
                writer.commit()
        writer.append([key(2)], rows([2]))
    assert_holds(open_store(tmp_path), [0, 2])


def half_a_write(file, offset, data):
    file.seek(offset)
    file.write(data[: len(data) // 2])
    raise OSError("disk full")


def test_a_folder_that_may_only_be_read_is_read_and_refuses_writers():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(open_store(folder / "store"), range(3))
        (folder / "store").chmod(0o555)
        for path in (folder / "store").iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        try:
            if root:  # who may write everywhere
                os.seteuid(65534)
            store = open_store(folder / "store")
            assert_holds(store, range(3))
            for name in ("0", "1"):
                with pytest.raises(KBDMError, match=f"shard-{name} cannot be opened.*may write to"), store.writer(name):
                    pass
            with pytest.raises(KBDMError, match="cannot be made or read"):
                open_store(folder / "other")
        finally:
            if root:
                os.seteuid(0)
            for path in (folder, folder / "store"):
                path.chmod(stat.S_IRWXU)


def test_rows_travel_to_other_processes_as_places(tmp_path):
    store = open_store(tmp_path)
    write(store, range(50))
    found = store.rows([key(number) for number in range(50)])
    packed = pickle.dumps(found)
    assert len(packed) < 50 * ROW_BYTES
    assert np.array_equal(pickle.loads(packed)[10:20], rows(range(10, 20)))


def test_reading_a_slice_takes_the_memory_of_the_slice(tmp_path):
    store = FeatureStore.open(tmp_path, (256, 64), "float16", {})
    with store.writer("0") as writer:
        for start in range(0, 2000, 100):
            writer.append([key(number) for number in range(start, start + 100)], np.full((100, 256, 64), start, np.float16))
    store.refresh()
    found = store.rows([key(number) for number in range(2000)])  # 65 MB
    tracemalloc.start()
    part = found[np.arange(0, 2000, 20)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(part[:, 0, 0], np.repeat(np.arange(0, 2000, 100), 5))
    assert peak < 3 * part.nbytes


WRITE_FOR_EVER = """
import sys
from test_feature_store import key, open_store, row
import numpy as np
store = open_store(sys.argv[1])
number = len(store)
with store.writer("0", commit_seconds=0.002) as writer:
    print(number, flush=True)
    while True:
        writer.append([key(number + i) for i in range(3)], np.stack([row(number + i) for i in range(3)]))
        number += 3
"""


def test_kill_9_at_random_moments_leaves_right_rows_only(tmp_path):
    """Each run goes on where the last one was killed; with one writer the rows present must be 0, 1, 2 ... without a gap."""
    generator, present = random.Random(0), 0
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
        assert int(process.stdout.readline()) == present
        time.sleep(generator.uniform(0.001, 0.06))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = open_store(tmp_path)
        assert len(store) >= present
        present = len(store)
        assert_holds(store, range(present))
    assert present > 50
