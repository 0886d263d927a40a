"""Content keys of picture files, remembered so that a large data set is hashed once."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from train.data.errors import DataError


class ImageKeys:
    """Keys of picture files, for one kind of `settings`; a context, in which new hashes are appended to `folder`/images-`name`.jsonl.

    The hash of a file is remembered as long as its size and time of change stay as they were. Every list in the folder is read.
    """

    def __init__(self, folder: Path, name: str, settings: str):
        self._path, self._settings = folder / f"images-{name}.jsonl", settings
        self._known: dict[str, tuple[int, int, str]] = {}  # path -> size, time, SHA-256 of the bytes
        for path in folder.glob("images-*.jsonl"):
            for line in path.read_bytes().splitlines():
                try:
                    image, *status = json.loads(line)
                except ValueError:  # cut off by a crash
                    continue
                self._known[image] = tuple(status)

    def __enter__(self) -> ImageKeys:
        self._file = open(self._path, "ab", buffering=0)  # one write per line: safe from any thread
        self._file.write(b"\n")  # ends a line that a crash cut off
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def of(self, image: Path) -> str:
        """SHA-256 over the file's bytes and the settings. Raises DataError if the file cannot be read."""
        name = str(image.absolute())
        if not image.is_file():  # a pipe would be read for ever
            raise DataError(f"{image}: no such file.")
        try:
            status = image.stat()
            seen = self._known.get(name)
            if seen is None or seen[:2] != (status.st_size, status.st_mtime_ns):
                seen = (status.st_size, status.st_mtime_ns, _sha256(image))
                with suppress(OSError):  # a full disk is not this picture's fault, and the list only saves time
                    self._file.write(json.dumps([name, *seen]).encode() + b"\n")
        except OSError as error:
            raise DataError(f"{image} cannot be read ({error.strerror}).") from error
        return hashlib.sha256(f"{seen[2]} {self._settings}".encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
