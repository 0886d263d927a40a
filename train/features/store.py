"""A store of equally shaped rows by content key: append-only, memory-mapped, many writers, safe at any crash.

A folder holds `store.json` (what the rows are) and, per writer, `shard-NAME.rows` (raw little-endian numbers) and `shard-NAME.keys`
(64 hexadecimal digits and a newline per row). Row i of the keys belongs to row i of the rows. Rows reach the disk before their keys do,
so a key on disk is a promise that its row is whole; what a crash leaves behind without a key is cut off when the shard is next written.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import numpy as np

from kbdm_core.errors import FileFormatError, KBDMError, MismatchError
from train.files import write_text

try:
    import fcntl
except ImportError:  # Windows: two runs on one shard are not noticed there
    fcntl = None

FORMAT = "kbdm.features"
FORMAT_VERSION = 1
DTYPES = ("float32", "float16")
COMMIT_SECONDS = 5.0
COPY_BYTES = 1 << 24  # what one request copies at a time besides its result
KEY = re.compile(r"[0-9a-f]{64}")
KEY_BYTES = 65  # 64 digits and a newline
IS_HEX = np.isin(np.arange(256), list(b"0123456789abcdef"))
ROW_BITS = 40  # a place is shard << ROW_BITS | row, so that sorted places are in the order of the disk


class FeatureStore:
    """The rows [*shape] of one folder, of every writer that has committed them. Make one by `FeatureStore.open`."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str, description: dict):
        self.folder, self.shape, self.dtype, self.description = folder, shape, np.dtype(dtype).newbyteorder("<"), description
        self.row_bytes = math.prod(shape) * self.dtype.itemsize
        self._shards: list[str] = []
        self._counts: list[int] = []
        self._places: dict[bytes, int] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike, shape: Sequence[int], dtype: str, description: dict) -> FeatureStore:
        """Open the store in `folder`, or make it. Rows are [*shape] of dtype float32 or float16; description is JSON: what the rows are.

        Raises MismatchError if the folder holds other rows, FileFormatError if its store.json is not one, KBDMError if it cannot be made.
        """
        folder, shape = Path(folder), tuple(int(size) for size in shape)
        if dtype not in DTYPES or not all(size > 0 for size in shape):
            raise KBDMError(f"A feature store was asked for rows {list(shape)} of {dtype}; expected positive sizes and one of {', '.join(DTYPES)}.")
        wanted = {"format": FORMAT, "format_version": FORMAT_VERSION, "shape": list(shape), "dtype": dtype, "description": description}
        path = folder / "store.json"
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(wanted, indent=1))
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise KBDMError(f"The feature store {folder} cannot be made or read ({error}); choose a folder that this user may write to.") from error
        except ValueError as error:
            raise FileFormatError(f"{path} is not JSON ({error}); delete the folder {folder} and its features are computed again.") from error
        if found != json.loads(json.dumps(wanted)):
            raise MismatchError(
                f"The feature store {folder} holds {_summary(found)}, but this run needs {_summary(wanted)}; "
                "choose another cache folder, or delete this one if its features are no longer wanted."
            )
        store = cls(folder, shape, dtype, description)
        store.refresh()
        return store

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return KEY.fullmatch(key) is not None and bytes.fromhex(key) in self._places

    def keys(self) -> list[str]:
        """Every key once, shard by shard in the order of the rows."""
        return [key.hex() for key in self._places]

    def refresh(self) -> None:
        """See the rows that any writer has committed since. Costs the reading of the new keys only."""
        for path in sorted(self.folder.glob("shard-*.keys")):
            name = path.name.removesuffix(".keys")
            if name not in self._shards:
                self._shards.append(name)
                self._counts.append(0)
            shard = self._shards.index(name)
            start = self._counts[shard]
            keys = _whole_keys(path, self._rows_path(name), self.row_bytes, start)
            for row, key in enumerate(keys, start):
                self._places.setdefault(key, shard << ROW_BITS | row)  # two writers may have computed the same row: either will do
            self._counts[shard] = start + len(keys)

    @classmethod
    def existing(cls, folder: Path) -> FeatureStore:
        """The store in a folder that holds one, as its store.json describes it. Raises FileFormatError for another folder."""
        path = folder / "store.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls.open(folder, found["shape"], found["dtype"], found["description"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileFormatError(f"{folder} is no folder of features ({path.name}: {error!r}).") from error

    def rows(self, keys: Sequence[str]) -> FeatureRows:
        """The rows of these keys, in their order, read when asked for. Raises KBDMError if some are not in the store."""
        missing = [key for key in keys if key not in self]
        if missing:
            raise KBDMError(
                f"{len(missing)} of {len(keys)} features are not in the store {self.folder} (first: {missing[0]}); run the extraction again."
            )
        places = np.fromiter((self._places[bytes.fromhex(key)] for key in keys), np.int64, len(keys))
        return FeatureRows(tuple(self._rows_path(name) for name in self._shards), places, self.shape, self.dtype)

    def writer(self, name: str, commit_seconds: float = COMMIT_SECONDS) -> FeatureWriter:
        """Context manager that appends to the shard `name`; one process at a time may hold a shard. Raises KBDMError if it cannot be written."""
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise KBDMError(f"A shard of a feature store was to be called '{name}'; expected letters, digits and underscores.")
        return FeatureWriter(self.folder / f"shard-{name}.keys", self._rows_path(f"shard-{name}"), self.shape, self.dtype, commit_seconds)

    def _rows_path(self, shard: str) -> Path:
        return self.folder / f"{shard}.rows"


class FeatureRows:
    """An array [n, *shape] on disk. Indexing with a slice or an integer array reads those rows and returns a copy.

    Files are mapped for the length of a request only, so that a dataset of any size costs no memory between requests
    and an object of this class travels to other processes as a list of places.
    """

    def __init__(self, files: tuple[Path, ...], places: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        self.shape, self.dtype = (len(places), *shape), dtype
        self._files, self._places = files, places  # [n]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows [m, *shape], read in the order in which they lie on disk, returned in the order asked for."""
        places = self._places[index if isinstance(index, slice) else np.asarray(index, np.int64).reshape(-1)]  # [m]
        files, rows = places >> ROW_BITS, places & ((1 << ROW_BITS) - 1)
        order = places.argsort(kind="stable")
        result = np.empty((len(places), *self.shape[1:]), self.dtype)
        step = max(1, COPY_BYTES // (math.prod(self.shape[1:]) * self.dtype.itemsize))
        for file in np.unique(files):
            of_file = order[files[order] == file]
            for start in range(0, len(of_file), step):
                part = of_file[start : start + step]
                mapped = np.memmap(self._files[file], self.dtype, "r", shape=(int(rows[part[-1]]) + 1, *self.shape[1:]))
                result[part] = mapped[rows[part]]
                del mapped  # pages of the file that have been touched count as memory while they are mapped
        return result


class FeatureWriter:
    """Appends rows to one shard. Rows count from the next commit on: every few seconds, and when the context ends, by an error too."""

    def __init__(self, keys: Path, rows: Path, shape: tuple[int, ...], dtype: np.dtype, commit_seconds: float):
        self._keys_path, self._rows_path, self._shape, self._dtype, self._commit_seconds = keys, rows, shape, dtype, commit_seconds
        self._row_bytes = math.prod(shape) * dtype.itemsize
        self._pending: list[str] = []

    def __enter__(self) -> FeatureWriter:
        self._in_words("opened", self._open)
        self._committed_at = time.monotonic()
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            self.commit()
        except KBDMError:
            if kind is None:  # otherwise the error that ended the context is the one to tell
                raise
        finally:
            self._files.close()  # gives the lock back

    def append(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Add rows [n, *shape] under n keys of 64 hexadecimal digits; they are cast to the store's dtype.

        Raises KBDMError if a key or a shape is wrong, if a number is not finite in that dtype, or if the disk refuses.
        """
        if np.shape(rows) != (len(keys), *self._shape) or not all(KEY.fullmatch(key) for key in keys):
            raise KBDMError(
                f"{len(keys)} keys and rows {list(np.shape(rows))} were given to a feature store of rows {list(self._shape)}, keyed by SHA-256."
            )
        with np.errstate(over="ignore"):  # said below
            rows = np.ascontiguousarray(rows, self._dtype)
        if not np.isfinite(rows).all():
            raise KBDMError(
                f"Features are not finite as {self._dtype.name}: {self._keys_path.parent} would be spoiled. Store float32, without autocast."
            )
        self._in_words(
            "written", _write_at, self._rows, (self._count + len(self._pending)) * self._row_bytes, memoryview(rows.reshape(-1).view(np.uint8))
        )
        self._pending += keys
        if time.monotonic() - self._committed_at >= self._commit_seconds:
            self.commit()

    def commit(self) -> None:
        """Make everything appended so far durable and visible to `refresh`: the rows first, then their keys."""
        self._in_words("written", self._commit)
        self._committed_at = time.monotonic()

    def _open(self) -> None:
        with ExitStack() as files:
            self._keys, self._rows = (files.enter_context(_open_file(path)) for path in (self._keys_path, self._rows_path))
            if not _lock(self._keys):
                raise KBDMError(
                    f"Another process is writing {self._keys_path}; wait until that run has ended, or give this one another cache folder."
                )
            self._count = len(_whole_keys(self._keys_path, self._rows_path, self._row_bytes, 0))
            self._keys.truncate(self._count * KEY_BYTES)
            self._rows.truncate(self._count * self._row_bytes)
            self._files = files.pop_all()

    def _commit(self) -> None:
        if self._pending:
            os.fsync(self._rows.fileno())
            _write_at(self._keys, self._count * KEY_BYTES, memoryview("".join(key + "\n" for key in self._pending).encode()))
            os.fsync(self._keys.fileno())
            self._count += len(self._pending)
            self._pending = []

    def _in_words(self, verb: str, action: Callable, *arguments) -> None:
        try:
            action(*arguments)
        except OSError as error:
            raise KBDMError(
                f"The feature store's {self._keys_path.with_suffix('')} cannot be {verb} ({error}); what was committed is safe. "
                "Make room or choose a folder that this user may write to, and run again."
            ) from error


def _open_file(path: Path) -> FileIO:
    """Open for writing in place, unbuffered: a failed write leaves nothing that closing would try again."""
    path.touch()
    return open(path, "r+b", buffering=0)


def _lock(file: FileIO) -> bool:
    """Hold the file until it is closed or the process dies. False if another process holds it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks: go on as on Windows
        return True
    return True


def _write_at(file: FileIO, offset: int, data: memoryview) -> None:
    """Write at an explicit offset, not at the end: after a write that failed half-way the next one still falls into place."""
    file.seek(offset)
    while data:
        data = data[file.write(data) :]


def _whole_keys(keys: Path, rows: Path, row_bytes: int, start: int) -> list[bytes]:
    """The 32-byte keys from row `start` on whose line and row are both complete."""
    with open(keys, "rb") as opened:
        opened.seek(start * KEY_BYTES)
        text = opened.read()
    lines = np.frombuffer(text, np.uint8, len(text) // KEY_BYTES * KEY_BYTES).reshape(-1, KEY_BYTES)
    whole = IS_HEX[lines[:, :-1]].all(1) & (lines[:, -1] == ord("\n"))
    count = len(lines) if whole.all() else int(whole.argmin())  # up to the first line that is torn
    size = 0
    if rows.exists():
        with open(rows, "rb") as opened:  # opening asks a network file system anew, stat may tell what it has told before
            size = opened.seek(0, os.SEEK_END)
    count = max(0, min(count, size // row_bytes - start))
    digests = bytes.fromhex(text[: count * KEY_BYTES].decode("ascii"))  # skips the newlines
    return [digests[at : at + 32] for at in range(0, len(digests), 32)]


def _summary(content: object) -> str:
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        return f"something else than {FORMAT} of version {FORMAT_VERSION}"
    return f"rows {content.get('shape')} of {content.get('dtype')}, {json.dumps(content.get('description'), sort_keys=True)}"
