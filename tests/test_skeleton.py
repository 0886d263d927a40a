"""Skeleton pictures have the published limbs, colours and widths, and survive joints anywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person, Pose
from kbdm_core.skeleton import HUMANSD_COLOURS, OPENPOSE_COLOURS, OPENPOSE_LIMBS, capsule, ellipse, paint, render_humansd, render_openpose


def pose_of(joints: dict[int, tuple[float, float]], size: int = 512, score: float = 1.0, people: int = 1) -> Pose:
    body = np.zeros((17, 3))
    for index, (x, y) in joints.items():
        body[index] = (x, y, score)
    return Pose((Person(body),) * people, size, size)


def distance(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Distance of a point to a segment, by dense sampling of the segment."""
    return min(math.hypot(px - (ax + t / 500 * (bx - ax)), py - (ay + t / 500 * (by - ay))) for t in range(501))


def colours(picture: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(round(float(v), 4) for v in pixel) for pixel in picture.reshape(-1, 3).unique(dim=0)}


@pytest.mark.parametrize(
    "ends", [[(5.5, 7.2), (20.1, 15.9)], [(9.0, 3.0), (9.0, 3.0)], [(-30.0, 10.0), (60.0, 12.0)], [(3.0, 22.0), (3.0, 2.0)]]
)
def test_a_capsule_is_every_pixel_within_the_radius_of_the_segment(ends):
    canvas, radius = torch.zeros(24, 28), 3.3
    paint(canvas, np.array(ends), radius, 1.0, capsule)
    for y in range(24):
        for x in range(28):
            true = distance(x, y, *ends[0], *ends[1])
            assert abs(true - radius) < 0.02 or bool(canvas[y, x]) == (true <= radius)


def test_an_ellipse_is_every_pixel_whose_distances_to_the_foci_sum_to_its_long_axis():
    (ax, ay), (bx, by), radius = (6.0, 8.0), (38.0, 26.0), 4.0
    half = math.dist((ax, ay), (bx, by)) / 2
    focal = math.sqrt(half**2 - radius**2) / half
    foci = [((ax + bx) / 2 + s * focal * (bx - ax) / 2, (ay + by) / 2 + s * focal * (by - ay) / 2) for s in (-1, 1)]
    canvas = torch.zeros(40, 48)
    paint(canvas, np.array([(ax, ay), (bx, by)]), radius, 1.0, ellipse)
    for y in range(40):
        for x in range(48):
            total = sum(math.dist((x, y), focus) for focus in foci)
            assert abs(total - 2 * half) < 1e-3 or bool(canvas[y, x]) == (total <= 2 * half)


def test_openpose_draws_the_right_arm_in_its_standard_colours():
    picture = render_openpose(pose_of({6: (100, 100), 8: (200, 100), 10: (300, 100)}), 512, 512) * 255
    assert [picture[100, x].tolist() for x in (100, 200, 300)] == [[255, 170, 0], [255, 255, 0], [170, 255, 0]]  # shoulder, elbow, wrist
    torch.testing.assert_close(picture[100, 150], torch.tensor([153.0, 102.0, 0.0]))  # upper arm: limb 3, at 0.6
    torch.testing.assert_close(picture[100, 250], torch.tensor([153.0, 153.0, 0.0]))
    assert picture[:, 150].any(dim=-1).sum() == 9  # 4 px to either side at 512 px


def test_openpose_limbs_grow_with_the_picture():
    pose = pose_of({6: (100, 100), 8: (200, 100)})
    assert render_openpose(pose, 1024, 1024)[:, 300].any(dim=-1).sum() == 17


def test_openpose_joins_the_neck_with_hips_and_nose():
    picture = render_openpose(pose_of({0: (250, 50), 5: (300, 100), 6: (200, 100), 11: (300, 400), 12: (200, 400)}), 512, 512)
    for x, y in ((250, 75), (275, 250), (225, 250), (225, 100), (275, 100)):
        assert picture[y, x].any(), (x, y)
    assert len(OPENPOSE_COLOURS) == 18 == len(set(OPENPOSE_COLOURS))


def test_an_openpose_picture_is_the_last_shape_upon_each_pixel():
    """Two people who overlap, pixel by pixel: ellipses of the limbs in their order, discs of the joints upon them, one person upon the other."""
    random = np.random.default_rng(4)
    people = tuple(Person(np.column_stack([random.uniform(-4, 44, (17, 2)), random.random(17) > 0.2])) for _ in range(2))
    picture, radius = render_openpose(Pose(people, 40, 36), 40, 36).double().numpy(), 1.5  # the thinnest
    compared = 0
    for x in range(40):
        for y in range(36):
            expected, distances = np.zeros(3), []
            for joints in (person.openpose_joints() for person in people):
                limbs = [(joints[a], joints[b], 0.6 * np.array(colour)) for (a, b), colour in zip(OPENPOSE_LIMBS, OPENPOSE_COLOURS)]
                discs = [(joint, joint, np.array(colour)) for joint, colour in zip(joints, OPENPOSE_COLOURS)]
                for (ax, ay, seen), (bx, by, also_seen), colour in limbs + discs:
                    if seen and also_seen:
                        half = math.dist((ax, ay), (bx, by)) / 2 or radius
                        angle, dx, dy = math.atan2(by - ay, bx - ax), x - (ax + bx) / 2, y - (ay + by) / 2
                        along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
                        distances.append((along / half) ** 2 + (across / radius) ** 2)
                        expected = colour if distances[-1] <= 1 else expected
            if min(abs(distance - 1) for distance in distances) > 1e-4:
                assert np.allclose(picture[y, x], expected, atol=1e-6)
                compared += 1
    assert compared > 1400


def test_face_and_hand_points_are_white_dots():
    person = Person(np.zeros((17, 3)), face=np.array([[40.0, 50, 1], [0, 0, 0]]), hand_left=np.array([[90.0, 20, 1]]))
    picture = render_openpose(Pose((person,), 512, 512), 512, 512)
    assert colours(picture) == {(0, 0, 0), (1, 1, 1)}
    assert picture[50, 40].all() and picture[20, 90].all() and not picture[0, 0].any()


def test_humansd_draws_16_hues_with_lines_of_width_10():
    picture = render_humansd(pose_of({11: (100, 100), 13: (300, 100)}), 512, 512)
    assert colours(picture) == {(0, 0, 0), tuple(round(v, 4) for v in HUMANSD_COLOURS[12])}
    assert picture[:, 200].any(dim=-1).sum() == 11  # 5 px to either side
    assert picture[100, 95].any() and not picture[100, 94].any()  # the joint's disc
    assert len(set(HUMANSD_COLOURS)) == 16


def test_humansd_hues_are_those_of_seaborn_hls():
    published = {0: (0.86, 0.3712, 0.34), 8: (0.34, 0.8288, 0.86)}  # seaborn.color_palette("hls", 16)[0], [8]
    for index, colour in published.items():
        assert HUMANSD_COLOURS[index] == pytest.approx(colour, abs=1e-9)


def test_humansd_leaves_out_low_scores_and_the_eleventh_person():
    limb = {5: (100, 100), 7: (200, 100)}
    assert not render_humansd(pose_of(limb, score=0.02), 512, 512).any()
    assert render_humansd(pose_of(limb, score=0.021), 512, 512).any()
    ten, eleventh = pose_of(limb, people=10), pose_of({5: (100, 300), 7: (200, 300)})
    crowd = Pose(ten.people + eleventh.people, 512, 512)
    assert torch.equal(render_humansd(crowd, 512, 512), render_humansd(ten, 512, 512))


@pytest.mark.parametrize("render", [render_openpose, render_humansd])
def test_joints_outside_the_canvas_are_clipped(render):
    pose = pose_of({5: (-200, 256), 7: (700, 256), 9: (5000, -5000), 6: (-900, -900), 8: (-950, -900)})
    picture = render(pose, 512, 512)
    assert picture.shape == (512, 512, 3) and picture[256, 256].any() and not picture[:200].any(dim=-1)[:, :500].any()


@pytest.mark.parametrize("render", [render_openpose, render_humansd])
def test_a_picture_of_one_pixel_works_and_of_none_is_an_error(render):
    pose = pose_of({5: (1, 1), 7: (500, 500)})
    assert render(pose, 1, 1).shape == (1, 1, 3)
    with pytest.raises(PoseError, match="each side"):
        render(pose, 0, 64)
