"""Pictures of every kind become upright 8-bit RGB, and what cannot be read is an error that names the record."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testbed.sample_data import SIZE, body, openpose_json, picture, write_picture
from train.data.records import DataError, DataTable, Record, load_image
from train.data.sources import open_dataset


def image_record(path: Path) -> Record:
    return Record(path.name, path, "a caption")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(load_image(image_record(path)))


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def test_exif_orientation_is_applied_to_picture_and_pose(tmp_path):
    upright = np.asarray(picture(0))
    turn_back = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a), 8: lambda a: np.rot90(a, -1)}
    for orientation, turn in turn_back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("png", "tif", "webp"):
            stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
            path = save(tmp_path / f"{orientation}.{suffix}", stored, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
            np.testing.assert_array_equal(pixels(path), upright)
            path.with_suffix(".txt").write_text("turned")
            path.with_suffix(".json").write_text(openpose_json([body(2)]))
    for record in open_dataset(DataTable(tmp_path)).records:
        pose = record.pose()
        assert (pose.width, pose.height) == SIZE
        np.testing.assert_allclose(pose.people[0].body, body(2))


def test_16_bit_grey_keeps_its_range(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    expected = np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, axis=2)
    for suffix in ("png", "tif"):
        np.testing.assert_array_equal(pixels(save(tmp_path / f"deep.{suffix}", Image.fromarray(deep))), expected)


def test_transparency_lies_on_white(tmp_path):
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    clear[:2] = (200, 10, 30, 255)
    expected = np.full((4, 4, 3), 255, dtype=np.uint8)
    expected[:2] = (200, 10, 30)
    rgba = Image.fromarray(clear)
    np.testing.assert_array_equal(pixels(save(tmp_path / "rgba.png", rgba)), expected)
    palette = Image.fromarray(np.repeat([[0], [0], [1], [1]], 4, axis=1).astype(np.uint8), "P")
    palette.putpalette([200, 10, 30, 7, 8, 9])
    np.testing.assert_array_equal(pixels(save(tmp_path / "palette.png", palette, transparency=1)), expected)
    np.testing.assert_array_equal(pixels(save(tmp_path / "palette.gif", palette, transparency=1)), expected)
    grey = Image.fromarray(np.stack([np.full((2, 2), 100), [[255, 0], [0, 255]]], axis=2).astype(np.uint8), "LA")
    np.testing.assert_array_equal(pixels(save(tmp_path / "grey.png", grey))[..., 0], [[100, 255], [255, 100]])


def test_other_colour_models_and_animations_become_rgb(tmp_path):
    source = Image.new("RGB", SIZE, (180, 60, 20))
    for name, mode in (("cmyk.tif", "CMYK"), ("cmyk.jpg", "CMYK"), ("grey.jpg", "L"), ("bits.png", "1"), ("palette.bmp", "P")):
        found = pixels(save(tmp_path / name, source.convert(mode)))
        assert found.shape == (SIZE[1], SIZE[0], 3)
        assert "cmyk" not in name or np.abs(found.astype(int) - (180, 60, 20)).max() <= 6
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]
    for suffix in ("gif", "webp", "tif", "png"):
        path = save(tmp_path / f"moving.{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert np.abs(pixels(path).astype(int) - (255, 0, 0)).max() <= 4


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = save(tmp_path / "bomb.png", Image.new("1", (10_000, 10_000)))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataError, match=r"bomb\.png: a picture of 10000 x 10000 pixels"):
        load_image(image_record(path))


def test_a_picture_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    whole = write_picture(tmp_path / "whole.png", 0).read_bytes()
    for name, data in (("cut.png", whole[: len(whole) // 2]), ("text.png", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"^{name}: not a readable picture"):
            load_image(image_record(tmp_path / name))
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "nowhere.png"):
        with pytest.raises(DataError, match="no such file"):
            load_image(image_record(tmp_path / name))
