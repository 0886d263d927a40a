"""Pictures as people have them, to upright 8-bit RGB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from train.data.errors import DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # no others: Pillow would start Ghostscript for an EPS
MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above this
MOST_ELONGATED = 50  # a model scales the shorter side to its own: a picture of 1 x 60,000 pixels would become 9 GB
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
WHITE_LEVEL = {"I": 65535, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I;16N": 65535, "F": 1}  # Pillow's modes deeper than 8 bits


def read_rgb(path: Path) -> Image.Image:
    """The picture in RGB, turned upright by its EXIF orientation, transparency on white, the first frame of an animation.

    Raises DataError for whatever cannot be decoded to the end, and above MAX_PIXELS (before any pixel is decoded).
    """
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in WHITE_LEVEL:  # Pillow's own conversion would clip all above 255 to white
            grey = np.nan_to_num(np.asarray(image, dtype=np.float64) / WHITE_LEVEL[image.mode])
            image = Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, from its header if that says upright. Raises DataError."""
    with _opened(path) as opened:
        if opened.getexif().get(ORIENTATION) in TURNED:  # versions of Pillow differ in whether a TIFF's size is turned before it is decoded
            opened = ImageOps.exif_transpose(opened)
        return opened.size


def refuse_elongated(name: str, size: tuple[int, int]) -> None:
    """Raise DataError for a picture (width, height) of which a crop shows next to nothing and the whole would be huge."""
    if max(size) > MOST_ELONGATED * min(size):
        raise DataError(f"{name}: {size[0]} x {size[1]} pixels; expected sides that differ by at most {MOST_ELONGATED} times.")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture with its header read; whatever goes wrong until it is closed is a DataError."""
    if not os.path.isfile(path):  # a pipe named x.png would block for ever
        raise DataError("no such file")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if not 0 < width * height <= MAX_PIXELS:
                raise DataError(f"a picture of {width} x {height} pixels; 1 to {MAX_PIXELS} pixels are read: scale it down")
            yield opened
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type there is for broken files
        raise DataError(f"not a readable picture ({type(error).__name__}: {error}); expected a whole file of {', '.join(FORMATS)}") from error
