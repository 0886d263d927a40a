"""Files that the demo writes: whole or not at all."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .places import shown


@dataclass(frozen=True)
class File:
    """A file of the demo: its path in the repository, its size in bytes, and what it holds."""

    path: str
    bytes: int
    content: str


def file_entry(path: Path, content: str) -> File:
    """A file that is there, as the report lists it."""
    return File(shown(path), path.stat().st_size, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it: under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(path.name + ".part")
    try:
        half_written.write_bytes(content)
        os.replace(half_written, path)
    finally:
        half_written.unlink(missing_ok=True)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, or as JPEG where the file's name says so."""
    content = io.BytesIO()
    if path.suffix == ".jpg":
        picture.save(content, "JPEG", quality=88, optimize=True)
    else:
        picture.save(content, "PNG")
    write_whole(path, content.getvalue())
