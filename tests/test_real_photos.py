"""The patches of real photos that the codebook benchmark is measured on."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from testbed import real_photos


@pytest.fixture(scope="module")
def patches():
    return real_photos.real_patches(2000)


def test_patches_are_vectors_of_the_width_of_clips_joint_space(patches):
    assert patches.shape == (2000, 768)
    assert patches.dtype == np.float32


def test_patches_are_the_same_on_every_call(patches):
    assert np.array_equal(real_photos.real_patches(2000), patches)


def test_patches_are_normalised_as_clip_does_it(patches):
    bytes_again = (patches.reshape(-1, 3) * real_photos.CLIP_STD + real_photos.CLIP_MEAN) * 255
    assert bytes_again.min() > -1e-3
    assert bytes_again.max() < 255 + 1e-3
    assert bytes_again.std() > 30  # pictures, not one colour


def test_nearly_all_patches_differ(patches):
    assert len(np.unique(patches, axis=0)) > 0.95 * len(patches)


@pytest.mark.parametrize("side", real_photos.SIDES)
def test_a_cut_equals_opencvs_area_resize(side):
    picture = real_photos.photos()["astronaut.png"]
    tops, lefts = np.array([0, 17, 512 - side]), np.array([3, 200, 512 - side])
    for patch, top, left in zip(real_photos.cut(picture, side, tops, lefts), tops, lefts):
        square = np.ascontiguousarray(picture[top : top + side, left : left + side], np.float32)
        assert np.allclose(patch, cv2.resize(square, (16, 16), interpolation=cv2.INTER_AREA), atol=1e-3)


def test_photos_and_frames_are_rgb():
    bus = real_photos.photos()["bus.jpg"]
    red, _, blue = bus[300:600, 100:700].reshape(-1, 3).mean(0)
    assert blue > red  # the bus is blue
    assert {frame.shape for frame in real_photos.video_frames(3)} == {(576, 768, 3)}


def test_written_patches_are_kept(tmp_path):
    path = real_photos.write_patches(tmp_path / "patches.npy", 50)
    written = path.stat().st_mtime_ns
    assert np.array_equal(np.load(path), real_photos.real_patches(50))
    assert real_photos.write_patches(path, 50).stat().st_mtime_ns == written
    assert [each.name for each in tmp_path.iterdir()] == ["patches.npy"]


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"cannot be fetched; .*-c raise SystemExit\('no network'\) said:\nno network"):
        real_photos._run([sys.executable, "-c", "raise SystemExit('no network')"], tmp_path)
    with pytest.raises(RuntimeError, match="no-such-program download cannot be started"):
        real_photos._run(["no-such-program", "download"], tmp_path)
