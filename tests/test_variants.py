"""Numbered variants: picture and pose move together, left and right change names in the mirror, and a variant is always the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person, Pose
from kbdm_core.skeleton import capsule, paint
from testbed.sample_data import picture
from train.examples.buckets import Bucket
from train.examples.placement import BODY_MIRRORED, FACE_MIRRORED, mirrored, placement
from train.examples.variants import AugmentTable, settings, variant

KEYS = [f"{number:064x}" for number in (3 << 200, 5 << 210, 11 << 220)]
TABLE = AugmentTable(variants=6, zoom=1.25, rotation=12.0, colour=0.2)
LEFT = ("left_eye", "left_ear", "left_shoulder", "left_elbow", "left_wrist", "left_hip", "left_knee", "left_ankle")
COCO = ("nose", *(name for left in LEFT for name in (left, left.replace("left", "right"))))
SOURCES = [((640, 480), Bucket(256, 256)), ((300, 500), Bucket(192, 320)), ((150, 110), Bucket(320, 192)), ((256, 256), Bucket(256, 256))]


def full_person(size: tuple[int, int], seed: int = 0) -> Person:
    """Body, 70 points of the face, both hands and a neck, all inside the picture."""
    random = np.random.default_rng(seed)
    lists = [np.column_stack([random.uniform(0.05, 0.95, (n, 2)) * size, random.uniform(0.3, 1, n)]) for n in (17, 70, 21, 21, 1)]
    return Person(*lists[:4], lists[4][0])


def points(pose: Pose) -> np.ndarray:
    """All points of all people [N,3]."""
    return np.concatenate([part for p in pose.people for part in (p.body, p.face, p.hand_left, p.hand_right, p.neck[None])])


def with_disc(size: tuple[int, int], point: np.ndarray, radius: float) -> Image.Image:
    """A white disc on black around a point, by the core's own painter."""
    canvas = torch.zeros(size[1], size[0])
    paint(canvas, point[None], radius, 1.0, capsule)
    return Image.fromarray((canvas.numpy() * 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(("size", "bucket"), SOURCES)
def test_a_disc_at_a_joint_is_found_at_the_moved_joint(size, bucket, number):
    """In exchanged names, too: the joint that was painted as left is found where the pose now says right."""
    colourless = AugmentTable(variants=6, rotation=12.0, colour=0.0)
    chosen = variant(colourless, KEYS[0], number, size, bucket)
    scale = abs(np.linalg.det(chosen.placement.matrix[:, :2])) ** 0.5
    body = full_person(size, seed=number).body
    body[:, :2] = body[:, :2].round()  # a disc on a whole pixel is symmetrical
    found = 0
    for joint in range(17):
        alone = np.zeros((17, 3))
        alone[joint] = body[joint]
        moved = chosen.pose(Pose((Person(alone),), *size))
        seen = np.asarray(chosen.picture(with_disc(size, body[joint], 4 / scale)), dtype=np.float64).mean(axis=2)  # [H,W], 4 px there
        assert seen.shape == (bucket.height, bucket.width)
        if not moved.people:
            continue
        place = BODY_MIRRORED[joint] if chosen.placement.is_mirrored else joint
        x, y, confidence = moved.people[0].body[place]
        assert confidence == body[joint, 2]
        if 6 < x < bucket.width - 7 and 6 < y < bucket.height - 7:  # else the disc is cut off, and its centre is not that of what is left
            rows, columns = np.mgrid[: bucket.height, : bucket.width]
            centre = (columns * seen).sum() / seen.sum(), (rows * seen).sum() / seen.sum()
            assert np.hypot(centre[0] - x, centre[1] - y) <= 0.2
            found += 1
    assert found >= 5


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(("size", "bucket"), SOURCES)
def test_the_canvas_lies_within_the_picture(size, bucket, number):
    """No corner shows what is no picture: a white one stays white."""
    chosen = variant(AugmentTable(rotation=30.0, colour=0.0), KEYS[1], number, size, bucket)
    assert np.asarray(chosen.picture(Image.new("RGB", size, "white"))).min() == 255


def test_the_first_variant_covers_the_bucket_and_is_cropped_in_the_middle():
    wide = Image.new("RGB", (100, 40), "red")
    wide.paste("lime", (30, 0, 70, 40))
    chosen = variant(TABLE, KEYS[0], 0, wide.size, Bucket(80, 80))
    assert (np.asarray(chosen.picture(wide)) == (0, 255, 0)).all(axis=2)[:, 8:-8].all()
    assert chosen.placement.matrix == pytest.approx(np.array([[2, 0, -60], [0, 2, 0]]))
    corner = np.zeros((17, 3))
    corner[[1, 2, 3, 4]] = (30, 0, 1), (69, 39, 1), (29, 5, 1), (70, 5, 1)
    (person,) = chosen.pose(Pose((Person(corner),), 100, 40)).people
    assert person.body[1] == pytest.approx((0.5, 0.5, 1)) and person.body[2] == pytest.approx((78.5, 78.5, 1))
    assert (person.body[[3, 4]] == 0).all()


def test_a_picture_of_the_buckets_size_is_itself_and_mirrored_itself_reversed():
    source, bucket = picture(0, (64, 96)), Bucket(64, 96)
    pixels = np.asarray(source)
    np.testing.assert_array_equal(np.asarray(variant(TABLE, KEYS[0], 0, source.size, bucket).picture(source)), pixels)
    np.testing.assert_array_equal(np.asarray(variant(TABLE, KEYS[0], 1, source.size, bucket).picture(source)), pixels[:, ::-1])


def test_mirroring_twice_is_the_identity_on_picture_and_pose():
    source, bucket = picture(1, (64, 64)), Bucket(64, 64)
    mirror = variant(TABLE, KEYS[0], 1, source.size, bucket)
    np.testing.assert_array_equal(np.asarray(mirror.picture(mirror.picture(source))), np.asarray(source))
    pose = Pose((full_person(source.size),), *source.size)
    once, twice = mirror.pose(pose), mirror.pose(mirror.pose(pose))
    assert np.abs(points(once) - points(pose)).max() > 1
    np.testing.assert_allclose(points(twice), points(pose), atol=1e-12)


def test_left_and_right_change_names_in_the_mirror():
    for place, name in zip(BODY_MIRRORED, COCO):
        other = name.replace("left", "l").replace("right", "left").replace("l_", "right_") if "_" in name else name
        assert COCO[place] == other
    person = full_person((64, 64))
    other = mirrored(person)
    np.testing.assert_array_equal(other.body[5], person.body[6])
    np.testing.assert_array_equal(other.hand_left, person.hand_right)
    np.testing.assert_array_equal(other.hand_right, person.hand_left)
    np.testing.assert_array_equal(other.neck, person.neck)
    assert not np.array_equal(other.face, person.face) and sorted(other.face[:, 0]) == sorted(person.face[:, 0])


def test_a_symmetrical_face_is_its_own_mirror_image():
    """A face drawn after the scheme of 68 landmarks, symmetrical about x = 0: exchanging names and signs must give it again."""
    jaw = [(-8 + i, 4 + abs(i - 8) * -0.5) for i in range(17)]
    brows = [(-6 + i, -5 - (i % 3)) for i in range(5)]
    brows += [(-x, y) for x, y in reversed(brows)]
    nose = [(0, y) for y in range(-3, 1)] + [(x, 1 - abs(x) / 4) for x in range(-2, 3)]
    eye = [(-5, -3), (-4, -4), (-3, -4), (-2, -3), (-3, -2), (-4, -2)]  # outer corner, above, inner corner, below
    other_eye = [(-eye[i][0], eye[i][1]) for i in (3, 2, 1, 0, 5, 4)]  # from the inner corner
    mouth = [(x, 6 - (3 - abs(x)) / 2) for x in range(-3, 4)] + [(x, 7 + (2 - abs(x)) / 2) for x in range(2, -3, -1)]
    mouth += [(x, 6 - 0.2 * (2 - abs(x))) for x in (-2, -1, 0, 1, 2)] + [(x, 6.5) for x in (1, 0, -1)]
    for pupils in ([], [(-3.5, -3), (3.5, -3)]):
        face = np.array([*jaw, *brows, *nose, *eye, *other_eye, *mouth, *pupils], dtype=np.float64)
        order = FACE_MIRRORED[len(face)]
        np.testing.assert_allclose(face[list(order)] * (-1, 1), face)
        assert sorted(order) == list(range(len(face)))
    assert mirrored(Person(np.zeros((17, 3)), np.ones((5, 3)))).face.shape == (5, 3)


def test_points_that_leave_the_canvas_are_missing_and_people_without_points_are_left_out():
    bucket = Bucket(64, 64)
    middle, beside = np.zeros((17, 3)), np.zeros((17, 3))
    middle[[0, 5, 9]] = (100, 20, 0.9), (80, 30, 0.8), (20, 30, 0.7)
    beside[0] = (10, 30, 1)
    hand = np.full((21, 3), (101, 22, 0.5))
    person = Person(middle, hand_left=hand, neck=np.array([5.0, 5.0, 1.0]))
    moved = placement((192, 64), bucket, mirror=False).pose(Pose((person, Person(beside)), 192, 64))
    assert len(moved.people) == 1 and (moved.width, moved.height) == (64, 64)
    found = moved.people[0]
    assert found.body[0] == pytest.approx((36, 20, 0.9)) and found.body[5] == pytest.approx((16, 30, 0.8))
    assert (found.body[9] == 0).all() and (found.neck == 0).all() and (found.body[1] == 0).all()
    assert found.hand_left == pytest.approx(np.full((21, 3), (37, 22, 0.5)))


def test_variants_depend_on_key_and_number_alone_and_differ():
    size, bucket = (200, 160), Bucket(96, 96)
    matrices = {}
    for key in KEYS:
        for number in range(2, 30):
            made, again = (variant(TABLE, key, number, size, bucket) for _ in range(2))
            np.testing.assert_array_equal(made.placement.matrix, again.placement.matrix)
            assert made.colours == again.colours
            matrices[made.placement.matrix.tobytes()] = made
    assert len(matrices) == 28 * len(KEYS)
    share = sum(made.placement.is_mirrored for made in matrices.values()) / len(matrices)
    assert 0.3 < share < 0.7
    for made in matrices.values():
        linear = made.placement.matrix[:, :2]
        scale = abs(np.linalg.det(linear)) ** 0.5
        angle = np.degrees(np.arctan2(linear[0, 1], linear[1, 1]))
        needed = 96 / 160 * (np.cos(np.radians(angle)) + np.sin(np.radians(abs(angle))))  # the turned square's bounding box
        assert 1 - 1e-9 <= scale / needed <= 1.25 + 1e-9 and abs(angle) <= 12
        assert all(0.8 <= factor <= 1.2 for factor in made.colours)


def test_colours_change_a_drawn_variant_and_never_the_first_two():
    source, bucket = picture(2, (64, 64)), Bucket(64, 64)
    assert [variant(TABLE, KEYS[0], number, source.size, bucket).colours for number in (0, 1)] == [(1.0, 1.0, 1.0)] * 2
    plain = variant(AugmentTable(rotation=12.0, colour=0.0), KEYS[0], 2, source.size, bucket)
    coloured = variant(AugmentTable(rotation=12.0, colour=0.2), KEYS[0], 2, source.size, bucket)
    np.testing.assert_array_equal(plain.placement.matrix, coloured.placement.matrix)
    assert not np.array_equal(np.asarray(plain.picture(source)), np.asarray(coloured.picture(source)))


def test_settings_tell_what_decides_a_variant():
    other = AugmentTable(variants=6, zoom=1.1, rotation=12.0, colour=0.2)
    assert [settings(TABLE, number) == settings(other, number) for number in range(4)] == [True, True, False, False]
    assert len({settings(TABLE, number) for number in range(6)}) == 6


def test_downscaling_does_not_alias():
    """A chequerboard of single pixels is grey from afar."""
    board = Image.fromarray((np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    for number in (0, 1, 2, 3):
        pixels = np.asarray(variant(AugmentTable(colour=0.0), KEYS[0], number, board.size, Bucket(64, 64)).picture(board)).astype(int)
        assert np.abs(pixels[2:-2, 2:-2] - 127).max() <= 6


def test_a_picture_that_would_not_cover_its_bucket_is_refused():
    with pytest.raises(PoseError, match=r"scaled to 0\.5 of what covers the bucket"):
        placement((64, 64), Bucket(64, 64), mirror=False, zoom=0.5)
