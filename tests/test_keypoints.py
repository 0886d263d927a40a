"""Poses are read from every format that people have, missing joints stay missing, and nonsense is a PoseError."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person, Pose, parse_pose_json, parse_pose_keypoint, to_pose_keypoint
from testbed.real_poses import real_coco, real_coco_text

SIDES = [f"{side} {part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in ("left", "right")]
COCO = ["nose", *SIDES]
ARMS_LEGS = [f"{side} {part}" for side in ("right", "left") for part in ("shoulder", "elbow", "wrist")]
LEG = ("hip", "knee", "ankle")
HEAD = ["right eye", "left eye", "right ear", "left ear"]
OPENPOSE_18 = ["nose", "neck", *ARMS_LEGS, *(f"right {part}" for part in LEG), *(f"left {part}" for part in LEG), *HEAD]
FEET = ["big toe L", "small toe L", "heel L", "big toe R", "small toe R", "heel R"]
BODY_25 = ["nose", "neck", *ARMS_LEGS, "mid hip", *(f"right {part}" for part in LEG), *(f"left {part}" for part in LEG), *HEAD, *FEET]
PLACE = {name: (20.0 + 7 * i, 300.0 - 9 * i, 0.9) for i, name in enumerate([*COCO, "neck", "mid hip", *FEET])}


def frame(body=None, width=400, height=320, **lists):
    return {"people": [{"pose_keypoints_2d": body, **lists}], "canvas_width": width, "canvas_height": height}


def flat(names, **moved):
    return [value for name in names for value in moved.get(name, PLACE[name])]


def only_person(value, *size) -> Person:
    (pose,) = parse_pose_keypoint(value, *size)
    (person,) = pose.people
    return person


@pytest.mark.parametrize("layout", [COCO, OPENPOSE_18, BODY_25], ids=["COCO-17", "OpenPose-18", "BODY_25"])
def test_every_body_layout_gives_the_same_coco_joints(layout):
    person = only_person([frame(flat(layout))])
    np.testing.assert_array_equal(person.body, [PLACE[name] for name in COCO])


@pytest.mark.parametrize("layout", [OPENPOSE_18, BODY_25], ids=["OpenPose-18", "BODY_25"])
def test_the_18_joints_of_openpose_come_back_with_the_detected_neck(layout):
    np.testing.assert_array_equal(only_person([frame(flat(layout))]).openpose_joints(), [PLACE[name] for name in OPENPOSE_18])


def test_without_a_detected_neck_it_is_the_mean_of_the_shoulders():
    shoulders = np.array([PLACE["left shoulder"], PLACE["right shoulder"]])
    np.testing.assert_allclose(only_person([frame(flat(COCO))]).openpose_joints()[1], shoulders.mean(axis=0))
    one_shoulder = flat(COCO, **{"left shoulder": (0, 0, 0)})
    assert not only_person([frame(one_shoulder)]).openpose_joints()[1].any()


def test_normalised_coordinates_become_pixels():
    relative = [v / by for v, by in zip(flat(COCO), [400, 320, 1] * 17)]
    np.testing.assert_allclose(only_person([frame(relative)]).body, [PLACE[name] for name in COCO])


def test_a_normalised_body_may_come_with_a_face_in_pixels():
    relative = [v / by for v, by in zip(flat(COCO), [400, 320, 1] * 17)]
    person = only_person([frame(relative, face_keypoints_2d=[60, 70, 1, 64, 70, 1])])
    np.testing.assert_allclose(person.body[0], PLACE["nose"])
    np.testing.assert_array_equal(person.extra, [[60, 70, 1], [64, 70, 1]])


def test_triples_may_be_nested():
    np.testing.assert_array_equal(only_person([frame([PLACE[name] for name in COCO])]).body, [PLACE[name] for name in COCO])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "joint", [(0, 0, 1), (50, 50, 0), (50, 50, -1), (NAN, 50, 1), (50, INF, 1), (50, 50, NAN), (4001, 50, 1), (None, 50, 1)]
)
def test_a_joint_that_nobody_can_mean_is_missing(joint):
    body = only_person([frame(flat(COCO, nose=joint))]).body
    assert not body[0].any() and (body[1:, 2] > 0).all()


def test_a_joint_outside_the_canvas_is_kept():
    assert tuple(only_person([frame(flat(COCO, nose=(-30, 900, 1)))]).body[0]) == (-30, 900, 1)


def test_people_without_any_visible_point_are_left_out():
    people = [None, {}, {"pose_keypoints_2d": None}, {"pose_keypoints_2d": [0] * 54}, {"hand_left_keypoints_2d": [9, 9, 1]}]
    (pose,) = parse_pose_keypoint({"people": people, "canvas_width": 64, "canvas_height": 64})
    assert [len(person.extra) for person in pose.people] == [1]


def test_an_empty_frame_takes_the_canvas_of_the_others():
    first, second = parse_pose_keypoint([None, frame(flat(COCO))])
    assert (first.people, first.width, first.height) == ((), second.width, second.height)


def test_a_wanted_size_scales_the_coordinates():
    person = only_person([frame(flat(COCO))], 800, 160)
    np.testing.assert_allclose(person.body, np.array([PLACE[name] for name in COCO]) * (2, 0.5, 1))


@pytest.mark.parametrize("side", [None, 0, -5, "512", float("nan"), 10**400])
def test_without_a_canvas_size_the_wanted_size_is_the_canvas(side):
    value = [frame(flat(COCO), width=side)]
    with pytest.raises(PoseError, match="set width and height"):
        parse_pose_keypoint(value)
    np.testing.assert_array_equal(only_person(value, 400, 320).body, [PLACE[name] for name in COCO])


def test_what_is_written_reads_back_the_same():
    hand = [[30 + i, 40 + i, 0.5] for i in range(21)]
    body = flat(BODY_25, **{"left wrist": (0, 0, 0)})
    before = parse_pose_keypoint([frame(body, hand_right_keypoints_2d=hand, face_keypoints_2d=[0, 0, 0, 5, 6, 1])])
    after = parse_pose_json(json.dumps(to_pose_keypoint(before)))
    for name in ("body", "face", "hand_left", "hand_right"):
        np.testing.assert_array_equal(getattr(before[0].people[0], name), getattr(after[0].people[0], name))
    np.testing.assert_array_equal(before[0].people[0].openpose_joints(), after[0].people[0].openpose_joints())


def test_coco_annotations_are_joined_on_the_image_id():
    def annotation(image_id, x):
        return {"image_id": image_id, "keypoints": [x, 5, 2] + [-7, -9, 0] * 16}

    images = [{"id": 8, "width": 100, "height": 50}, {"id": 3, "width": 60, "height": 70}, {"id": 5, "width": 10, "height": 10}]
    text = json.dumps({"images": images, "annotations": [annotation(3, 1), annotation(8, 2), annotation(3, 4)]})
    poses = parse_pose_json("\ufeff" + text)
    assert [(pose.width, pose.height) for pose in poses] == [(100, 50), (60, 70), (10, 10)]
    assert [[person.body[0, 0] for person in pose.people] for pose in poses] == [[2], [1, 4], []]
    bare = parse_pose_json(json.dumps([annotation(3, 1), annotation(8, 2), annotation(3, 4)]), 100, 100)
    assert [[person.body[0, 0] for person in pose.people] for pose in bare] == [[1, 4], [2]]


def test_987_real_coco_poses_keep_exactly_the_labelled_joints():
    poses, coco = parse_pose_json(real_coco_text()), real_coco()
    annotation_of = {annotation["image_id"]: annotation for annotation in coco["annotations"]}
    assert len(poses) == 987
    for image, pose in zip(coco["images"], poses):
        truth = np.array(annotation_of[image["id"]]["keypoints"], dtype=float).reshape(17, 3)
        truth[truth[:, 2] == 0] = 0
        assert (pose.width, pose.height) == (image["width"], image["height"])
        np.testing.assert_array_equal(pose.people[0].body, np.minimum(truth, [np.inf, np.inf, 1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("{'people': []}", "cannot be read"),
        ('{"people": [', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "no frame"),
        ("[null]", "only empty frames"),
        ("3", "list with one dict per image"),
        ('{"nodes": []}', "expected OpenPose"),
        ('{"animals": [], "canvas_width": 9, "canvas_height": 9}', "animal pose"),
        ('{"people": []}', "no valid canvas size"),
        ('{"people": 7, "canvas_width": 9, "canvas_height": 9}', "expected a list"),
        ('{"people": [7], "canvas_width": 9, "canvas_height": 9}', "expected a dict"),
        ('{"people": [{"pose_keypoints_2d": [1, 2]}], "canvas_width": 9, "canvas_height": 9}', "3 numbers a joint"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}], "canvas_width": 9, "canvas_height": 9}', "1 joints; expected 17"),
        ('{"people": [{"pose_keypoints_2d": ["x", 2, 3]}], "canvas_width": 9, "canvas_height": 9}', "not a list of numbers"),
        ('[{"image_id": 1, "keypoints": [1, 2, 2]}]', "no valid canvas size"),
        ('{"images": [], "annotations": []}', "no image and no annotation"),
        ('{"images": [], "annotations": [{"image_id": 4, "bbox": []}]}', "does not list"),
        ('{"images": [{"id": 4, "width": 9, "height": 9}], "annotations": [{"image_id": 4}]}', "0 keypoints"),
        ('{"images": [{"id": [], "width": 9, "height": 9}], "annotations": []}', "image id"),
    ],
)
def test_what_is_not_a_pose_is_an_error_that_says_why(text, message):
    with pytest.raises(PoseError, match=message):
        parse_pose_json(text)


@pytest.mark.parametrize("size", [(-1, 0), (0, 10**9), (8.5, 8)])
def test_an_impossible_wanted_size_is_an_error(size):
    with pytest.raises(PoseError, match="expected 0"):
        parse_pose_keypoint([frame(flat(COCO))], *size)


def test_a_person_has_17_joints():
    with pytest.raises(PoseError, match="COCO-17"):
        Person(np.zeros((18, 3)))


def test_scaling_back_gives_the_pose_again():
    pose = Pose((Person(np.array([PLACE[name] for name in COCO])),), 400, 320)
    np.testing.assert_allclose(pose.scaled(123, 77).scaled(400, 320).people[0].body, pose.people[0].body)
