"""Pose masks hold every visible joint of real poses, and dilation is the brute-force dilation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person, Pose, parse_pose_json, parse_pose_keypoint, to_pose_keypoint
from kbdm_core.pose_mask import COARSE, FINE, dilate, dilation_of, mask_from_picture, mask_from_poses, resize_mask
from kbdm_core.skeleton import render_openpose
from testbed.real_poses import real_coco, real_coco_text


def brute_force_dilation(mask: np.ndarray, size: int) -> np.ndarray:
    grown, r = np.zeros_like(mask), size // 2
    for b, y, x in np.argwhere(mask):
        grown[b, max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1] = 1
    return grown


def joints_outside(pose: Pose, joints: np.ndarray, mask: torch.Tensor) -> list[tuple[float, float]]:
    """The labelled joints [17,3] that stand on the canvas and not in the mask [H,W]."""
    on_canvas = joints[(joints[:, 2] > 0) & (joints[:, :2] >= 0).all(axis=1) & (joints[:, :2] < (pose.width, pose.height)).all(axis=1)]
    return [(x, y) for x, y, _ in on_canvas if mask[int(y), int(x)] != 1]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Thousands of small pictures: threads would cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def real_poses() -> list[tuple[Pose, Pose, np.ndarray]]:
    """Per real person, at most 256 px wide and high: the pose by COCO JSON, by POSE_KEYPOINT, and the annotation's own joints [17,3]."""
    coco, poses = real_coco(), parse_pose_json(real_coco_text())
    truth = {a["image_id"]: np.array(a["keypoints"], dtype=float).reshape(17, 3) for a in coco["annotations"]}
    rows = []
    for image, pose in zip(coco["images"], poses, strict=True):
        shrink = min(1, 256 / max(pose.width, pose.height))
        small = pose.scaled(max(1, round(pose.width * shrink)), max(1, round(pose.height * shrink)))
        (again,) = parse_pose_keypoint(to_pose_keypoint([small]))
        rows.append((small, again, truth[image["id"]] * (small.width / pose.width, small.height / pose.height, 1)))
    assert len(rows) == 987
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("source", ["COCO JSON", "POSE_KEYPOINT"])
def test_every_visible_joint_of_987_real_poses_lies_in_the_mask(real_poses, source):
    """By keypoints -> mask, and by keypoints -> OpenPose picture -> mask; undilated, so that no dilation hides a miss."""
    for coco, keypoint, truth in real_poses:
        pose = coco if source == "COCO JSON" else keypoint
        (by_joints,) = mask_from_poses(pose, pose.width, pose.height, dilation=1)
        (by_picture,) = mask_from_picture(render_openpose(pose, pose.width, pose.height)[None], 0.1, dilation=1)
        assert joints_outside(pose, truth, by_joints) == [] == joints_outside(pose, truth, by_picture)


def test_the_default_mask_of_real_poses_holds_their_joints_and_is_not_the_whole_picture(real_poses):
    covered = []
    for pose, _, truth in real_poses[:100]:
        (mask,) = mask_from_poses(pose, pose.width, pose.height)
        assert joints_outside(pose, truth, mask) == []
        covered.append(mask.mean().item())
    assert max(covered) < 0.8 and np.mean(covered) < 0.5


@pytest.mark.parametrize("size", [1, 3, 4, 7, 23, 41])
def test_dilation_is_the_brute_force_dilation(size):
    mask = (torch.rand(3, 37, 52, generator=torch.Generator().manual_seed(size)) > 0.995).float()
    np.testing.assert_array_equal(dilate(mask, size).numpy(), brute_force_dilation(mask.numpy(), size | 1))


def test_dilations_are_odd_fractions_of_the_shorter_side():
    assert (dilation_of(COARSE, 512, 512), dilation_of(FINE, 512, 768)) == (23, 13)
    assert (dilation_of(COARSE, 1024, 2048), dilation_of(FINE, 64, 64)) == (47, 3)
    for side in range(1, 2100, 7):
        assert dilation_of(COARSE, side, 3000) % 2 == 1 and dilation_of(COARSE, side, 3000) >= 3


def test_the_default_dilation_is_23_px_at_512():
    mask = torch.zeros(1, 512, 640)
    mask[0, 200, 300] = 1
    assert dilate(mask, 0).sum() == 23 * 23


def test_each_person_has_a_mask_of_their_own():
    def person(x: float) -> Person:
        body = np.zeros((17, 3))
        body[[5, 7]] = [(x, 20, 1), (x, 44, 0.3)]
        return Person(body, hand_left=np.array([[x, 60.0, 1]]))

    masks = mask_from_poses(Pose((person(16), person(48)), 64, 64), 64, 64, dilation=3)
    assert masks.shape == (2, 64, 64) and set(masks.unique().tolist()) == {0.0, 1.0}
    for mask, x in zip(masks, (16, 48)):
        assert mask[32, x] == 1 and mask[60, x] == 1 and mask[32, 64 - x] == 0  # limb, hand, the other person's limb


def test_a_mask_of_another_size_is_the_scaled_pose():
    body = np.zeros((17, 3))
    body[[11, 13]] = [(10, 10, 1), (50, 30, 1)]
    pose = Pose((Person(body),), 64, 64)
    assert torch.equal(mask_from_poses(pose, 128, 96), mask_from_poses(pose.scaled(128, 96), 128, 96))


def test_nobody_gives_no_mask():
    assert mask_from_poses(Pose((), 48, 32), 48, 32).shape == (0, 32, 48)


def test_a_picture_is_foreground_where_any_colour_exceeds_the_threshold():
    image = torch.zeros(2, 8, 8, 4)
    image[..., 3] = 1  # alpha does not count
    image[0, 2, 3, 2] = 0.6
    image[1, 5, 5, 0] = 0.3
    mask = mask_from_picture(image, 0.5, dilation=1)
    assert mask.nonzero().tolist() == [[0, 2, 3]]


def test_rounding_noise_and_nan_are_background():
    image = torch.full((1, 8, 8, 3), 1e-7)
    image[0, 0, 0] = float("nan")
    assert not mask_from_picture(image, 0.0).any()


def test_a_thin_line_survives_shrinking():
    mask = torch.zeros(1, 512, 512)
    mask[0, :, 255] = 1
    assert resize_mask(mask, 64, 64)[0].any(dim=1).all() and torch.equal(resize_mask(mask, 512, 512), mask)


@pytest.mark.parametrize("shape", [(8, 8, 3), (0, 8, 8, 3), (1, 0, 8, 3)])
def test_what_is_not_a_picture_is_an_error(shape):
    with pytest.raises(PoseError, match="expected a ComfyUI IMAGE"):
        mask_from_picture(torch.zeros(shape), 0.1)


def test_impossible_numbers_are_errors():
    with pytest.raises(PoseError, match="threshold"):
        mask_from_picture(torch.zeros(1, 8, 8, 3), float("nan"))
    with pytest.raises(PoseError, match="dilation"):
        dilate(torch.zeros(1, 8, 8), -1)
    with pytest.raises(PoseError, match="each side"):
        mask_from_poses(Pose((), 8, 8), 8, 0)


def test_json_text_and_pose_keypoint_give_the_same_mask(real_poses):
    pose = real_poses[0][0]
    (again,) = parse_pose_json(json.dumps(to_pose_keypoint([pose])))
    assert torch.equal(mask_from_poses(pose, 128, 128), mask_from_poses(again, 128, 128))
