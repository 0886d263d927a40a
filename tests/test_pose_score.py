"""The pose score: hand-made cases with known answers, the assignment against all permutations, and the true pose of drawn scenes."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person, Pose
from train.mini.pose_score import JOINTS, REACH, TORSO_OF_BOX, assigned, pose_score, torso_size
from train.mini.world.scene import scene

MIRRORED = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
FRONT = np.array(  # a person of torso size 20 px who faces the viewer: the left is on the picture's right
    [(50, 20), (53, 17), (47, 17), (56, 19), (44, 19), (60, 30), (40, 30), (64, 40), (36, 40), (66, 50), (34, 50), (56, 50), (44, 50)]
    + [(57, 68), (43, 68), (58, 86), (42, 86)],
    dtype=float,
)


def person(points=FRONT, seen=range(17), by=(0.0, 0.0)) -> Person:
    body = np.zeros((17, 3))
    for joint in seen:
        body[joint] = (*(points[joint] + by), 1)
    return Person(body)


def pose(*people: Person) -> Pose:
    return Pose(people, 128, 128)


def moved(joint: int, by: tuple[float, float]) -> Person:
    points = FRONT.copy()
    points[joint] += by
    return person(points)


def test_the_true_pose_scores_one_and_a_mirrored_answer_does_not():
    truth = [scene(seed).pose for seed in range(40)]
    perfect = pose_score(truth, truth)
    assert perfect.pck == perfect.pck_one == perfect.pck_several == {0.2: 1.0, 0.1: 1.0}
    assert perfect.people_error == perfect.joint_error == 0
    assert perfect.joints == sum(int((person.body[:, 2] > 0).sum()) for pose in truth for person in pose.people)
    swapped = [Pose(tuple(Person(person.body[MIRRORED]) for person in pose.people), 128, 128) for pose in truth]
    assert pose_score(swapped, truth).pck[0.2] < 0.7
    only = pose_score([pose(person(FRONT[MIRRORED]))], [pose(person())])
    assert only.pck_joints[0.2]["nose"] == 1 and only.pck_joints[0.2]["left shoulder"] == only.pck_joints[0.2]["right wrist"] == 0


def test_a_joint_at_exactly_the_threshold_is_right_and_one_beyond_is_wrong():
    for threshold in (0.1, 0.2, 0.35):
        reach = threshold * 20
        for by in ((reach, 0), (0, -reach), (0.6 * reach, 0.8 * reach)):
            assert pose_score([pose(moved(9, by))], [pose(person())], [threshold]).pck[threshold] == 1
        beyond = pose_score([pose(moved(9, (reach + 1e-6, 0)))], [pose(person())], [threshold])
        assert beyond.pck[threshold] == pytest.approx(16 / 17) and beyond.pck_joints[threshold]["left wrist"] == 0


def test_joints_not_found_are_wrong_and_joints_that_are_not_true_do_not_count():
    found, truth = pose(person(seen=range(5, 17))), pose(person(seen=range(3, 15)))
    score = pose_score([found], [truth])
    assert score.joints == 12 and score.pck[0.2] == pytest.approx(10 / 12) and score.joint_error == 0
    assert np.isnan(score.pck_joints[0.2]["left ankle"]) and score.as_dict()["pck@0.2_joints"]["left ankle"] is None


def test_people_not_found_are_wrong_and_people_too_many_count_in_their_number_alone():
    left, right = person(by=(-20, 0)), person(by=(30, 0))
    missing = pose_score([pose(right)], [pose(left, right)])
    assert missing.pck[0.2] == missing.pck_several[0.2] == 0.5 and np.isnan(missing.pck_one[0.2]) and missing.people_error == 1
    too_many = pose_score([pose(left, right, person(by=(31, 2)))], [pose(right)])
    assert too_many.pck[0.1] == too_many.pck_one[0.1] == 1 and too_many.people_error == 2
    nobody = pose_score([pose()], [pose(left)])
    assert nobody.pck[0.2] == 0 and np.isnan(nobody.joint_error) and nobody.people_error == 1
    empty = pose_score([pose(left), pose(person(seen=()))], [pose(), pose()])
    assert empty.joints == 0 and np.isnan(empty.pck[0.2]) and empty.people_error == 0.5


def test_one_and_several_people_are_counted_apart():
    truth = [pose(person()), pose(person(by=(-20, 0)), person(by=(30, 0)))]
    found = [pose(moved(9, (9, 0))), truth[1]]
    score = pose_score(found, truth)
    assert score.pck_one[0.2] == pytest.approx(16 / 17) and score.pck_several[0.2] == 1 and score.pck[0.2] == pytest.approx(50 / 51)
    assert score.joint_error == pytest.approx(9 / 51)


def test_the_order_of_people_does_not_matter():
    truth = [drawn.pose for drawn in map(scene, range(60)) if len(drawn.actors) > 1]
    turned = [Pose(pose.people[::-1], 128, 128) for pose in truth]
    assert len(truth) > 10 and pose_score(turned, truth).pck[0.1] == 1


def test_the_assignment_is_the_best_of_all_permutations():
    random = np.random.default_rng(0)
    for _ in range(60):
        true = [person(seen=random.choice(17, random.integers(6, 18), replace=False), by=random.normal(0, 12, 2)) for _ in range(3)]
        found = [
            person(FRONT + random.normal(0, 6, FRONT.shape), random.choice(17, 13, replace=False), random.normal(0, 12, 2))
            for _ in range(random.integers(1, 5))
        ]

        def cost(i, j, true=true, found=found):
            costs = []
            for a, b in zip(true[i].body, found[j].body):
                if a[2]:
                    away = np.hypot(*(a - b)[:2]) / torso_size(true[i]) if b[2] else np.inf
                    costs.append(min(away, REACH))
            return np.mean(costs)

        pairs = assigned(found, true)
        assert len(pairs) == len(set(pairs.values())) == min(3, len(found))
        if len(found) >= 3:
            best = min(sum(cost(i, j) for i, j in enumerate(chosen)) for chosen in permutations(range(len(found)), 3))
        else:
            best = min(sum(cost(i, j) for j, i in enumerate(chosen)) for chosen in permutations(range(3), len(found)))
        assert sum(cost(i, j) for i, j in pairs.items()) == pytest.approx(best)


def test_one_joint_far_off_does_not_decide_who_is_meant():
    points = FRONT.copy()
    points[9] += (60, 60)  # a lost wrist
    pairs = assigned([person(by=(25, 0)), person(points)], [person()])
    assert pairs == {0: 1}


def test_the_torso_is_that_of_the_visible_shoulders_and_hips():
    assert torso_size(person()) == pytest.approx(20)
    side = FRONT.copy()
    side[:, 0] = 50
    assert torso_size(person(side)) == pytest.approx(20), "seen from the side"
    assert torso_size(person(seen=[5, 12])) == pytest.approx(np.hypot(16, 20)), "one shoulder, the other hip"
    assert torso_size(person(seen=[5, 6, 11])) == pytest.approx(np.hypot(6, 20))
    assert torso_size(person(seen=[0, 5, 15, 16])) == pytest.approx(TORSO_OF_BOX * 66), "no hip: by the box"
    assert torso_size(person(seen=[0])) == torso_size(person(seen=())) == 0


def test_the_torso_of_drawn_people_is_a_steady_share_of_their_stature():
    """And what stands for it where it is hidden does so within a factor of two."""
    sizes, by_box = [], []
    for drawn in map(scene, range(150)):
        for actor, one in zip(drawn.actors, drawn.pose.people):
            sizes.append(torso_size(one) / actor.body.stature)
            by_box.append(torso_size(Person(np.where(np.isin(np.arange(17), [11, 12])[:, None], 0, one.body))) / actor.body.stature)
    assert np.mean((np.array(sizes) > 0.21) & (np.array(sizes) < 0.26)) > 0.95
    assert np.mean((np.array(by_box) > 0.12) & (np.array(by_box) < 0.5)) > 0.98


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(PoseError, match="1 poses were found for 2 true ones"):
        pose_score([pose()], [pose(), pose()])
    with pytest.raises(PoseError, match="picture 1: the pose found has a canvas of 64 x 64 px, the true one of 128 x 128"):
        pose_score([pose(), pose().scaled(64, 64)], [pose(), pose()])


def test_the_dictionary_is_json_and_names_everything():
    score = pose_score([pose(person())], [pose(person())]).as_dict()
    names = {"pck@0.2", "pck@0.2_one_person", "pck@0.2_several_people", "pck@0.2_joints", "pck@0.1", "people_error", "joint_error_px", "joints"}
    assert names <= score.keys() and json.loads(json.dumps(score, allow_nan=False)) == score
    assert tuple(score["pck@0.1_joints"]) == JOINTS and len(JOINTS) == 17
    assert pose_score([], []).as_dict()["pck@0.2"] is None
