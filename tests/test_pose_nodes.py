"""The three pose nodes, as ComfyUI calls them."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter

import pytest
import torch

from testbed.pack import load_node_module
from testbed.real_poses import real_coco, real_coco_text

pose_nodes = load_node_module("pose")
PoseError = pose_nodes.PoseError
CLASSES = [pose_nodes.KBDMLoadPose, pose_nodes.KBDMPoseToMask, pose_nodes.KBDMRenderPose]


def run(cls, **inputs):
    """Call the node with its defaults, and these inputs."""
    defaults = {name: spec[1].get("default") for name, spec in cls.INPUT_TYPES()["required"].items() if "default" in spec[1]}
    return getattr(cls(), cls.FUNCTION)(**{**defaults, **inputs})


def load(**inputs):
    return run(pose_nodes.KBDMLoadPose, **inputs)[0]


def to_mask(**inputs):
    return run(pose_nodes.KBDMPoseToMask, **inputs)


def render(**inputs):
    return run(pose_nodes.KBDMRenderPose, **inputs)[0]


def frame(*xs: float, size: int = 64) -> dict:
    """A frame with one arm per x."""
    people = [{"pose_keypoints_2d": [0, 0, 0] * 2 + [x, 10, 1, x, 30, 1, x, 50, 1] + [0, 0, 0] * 13} for x in xs]
    return {"people": people, "canvas_width": size, "canvas_height": size}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_input_and_output_explains_itself(cls):
    inputs = cls.INPUT_TYPES()
    for name, spec in {**inputs["required"], **inputs.get("optional", {})}.items():
        assert len(spec[1]["tooltip"]) > 10, name
    assert len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES) == len(cls.OUTPUT_TOOLTIPS)
    assert cls.CATEGORY == "KB-DM" and cls.DESCRIPTION and isinstance(cls.SEARCH_ALIASES, list)


def test_a_new_load_pose_node_already_gives_a_person_to_see():
    picture = render(pose_keypoint=load())
    assert picture.shape == (1, 512, 512, 3) and picture.dtype == torch.float32
    assert len(picture.reshape(-1, 3).unique(dim=0)) == 18 + 17 + 1  # joints, limbs, black


def test_load_pose_picks_one_person_of_each_frame():
    text = json.dumps([frame(10, 30), frame(20), frame(40, 50, 60)])
    people = [[person["pose_keypoints_2d"][6] for person in entry["people"]] for entry in load(json=text, person=1)]
    assert people == [[30], [], [50]]
    with pytest.raises(PoseError, match="person 3 was asked for, but the pose holds 3"):
        load(json=text, person=3)


def test_load_pose_scales_to_the_size_asked_for():
    (entry,) = load(json=json.dumps(frame(16)), width=128)
    assert (entry["canvas_width"], entry["canvas_height"], entry["people"][0]["pose_keypoints_2d"][6:8]) == (128, 64, [32, 10])


def test_pose_to_mask_gives_one_mask_per_frame_and_one_per_person():
    mask, people = to_mask(pose_keypoint=[frame(10, 40), frame(), frame(20)])
    assert mask.shape == (3, 64, 64) and people.shape == (3, 64, 64)
    assert torch.equal(mask[0], torch.maximum(people[0], people[1])) and torch.equal(mask[2], people[2])
    assert not mask[1].any()


def test_pose_to_mask_without_people_is_one_empty_mask():
    mask, people = to_mask(pose_keypoint=[frame()])
    assert mask.shape == people.shape == (1, 64, 64) and not mask.any() and not people.any()


def test_pose_to_mask_of_a_picture_cannot_tell_people_apart():
    image = torch.zeros(2, 48, 64, 3)
    image[0, 10, 20] = 1
    mask, people = to_mask(image=image, dilation=5)
    assert mask.sum(dim=(1, 2)).tolist() == [25, 0] and torch.equal(mask, people)


def test_pose_to_mask_joins_picture_and_keypoints_at_the_pictures_size():
    image = torch.zeros(1, 128, 96, 3)
    image[0, 100, 80] = 1
    mask, people = to_mask(image=image, pose_keypoint=[frame(10, 40), frame(20)], dilation=1)
    assert mask.shape == (2, 128, 96) and people.shape == (3, 128, 96)
    assert mask[:, 100, 80].tolist() == [1, 1]  # the one picture joins every frame
    assert mask[0, 60, 15] == 1 and mask[0, 60, 60] == 1 and mask[1, 60, 30] == 1  # arms at 1.5 and 2 times their place
    assert not people[:, 100, 80].any()


def test_pose_to_mask_gives_the_size_asked_for():
    image = torch.zeros(1, 512, 512, 3)
    image[0, :, 100] = 1
    mask, people = to_mask(image=image, pose_keypoint=[frame(40)], width=64, height=32, dilation=1)
    assert mask.shape == people.shape == (1, 32, 64)
    assert mask[0, :, 12].all() and mask[0, 15, 40] == 1


def test_pose_to_mask_with_nothing_connected_says_what_to_connect():
    with pytest.raises(PoseError, match=r"Render Pose.*Load Pose"):
        to_mask()


def test_render_pose_draws_all_frames_at_the_first_frames_size():
    pictures = render(pose_keypoint=[frame(10), frame(30, size=128)])
    assert pictures.shape == (2, 64, 64, 3)
    assert pictures[0, 20, 10].any() and pictures[1, 10, 15].any()


@pytest.mark.parametrize("style", ["openpose", "humansd"])
def test_render_pose_then_pose_to_mask_finds_the_arm(style):
    image = render(pose_keypoint=frame(32), style=style, width=128, height=96)
    assert image.shape == (1, 96, 128, 3) and image.min() >= 0 and image.max() <= 1
    assert to_mask(image=image)[0][0, 45, 64] == 1


def test_real_coco_json_passes_through_all_three_nodes():
    coco = real_coco()
    few = {**coco, "images": coco["images"][:6]}
    few["annotations"] = [a for a in coco["annotations"] if a["image_id"] in {image["id"] for image in few["images"]}]
    pose = load(json=json.dumps(few))
    mask, people = to_mask(image=render(pose_keypoint=pose, width=128, height=128), pose_keypoint=pose)
    assert mask.shape == people.shape == (6, 128, 128) and mask.mean(dim=(1, 2)).min() > 0


JUNK = [
    None,
    True,
    -1,
    0,
    0.5,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "x",
    "1.5",
    b"x",
    [],
    {},
    [[]],
    [None],
    {"people": None},
]
JUNK += [[[[[1]]]], [1, [2, 3]], {"a": {"b": []}}, (), set(), 1j, object(), range(3), torch.zeros(2, 2), [1e30] * 54, [float("nan")] * 54]


def broken(rng: random.Random, source: dict) -> object:
    """One valid frame list, COCO dict or annotation list after 1 to 6 random accidents at random depths."""
    value = copy.deepcopy(rng.choice(list(source.values())))
    for _ in range(rng.randint(1, 6)):
        parent, key, node = None, None, value
        for _ in range(rng.randint(0, 6)):
            if not isinstance(node, dict | list) or not node:
                break
            parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = parent[key]
        if parent is None:
            value = copy.deepcopy(rng.choice(JUNK)) if rng.random() < 0.1 else value
            continue
        accident = rng.randint(0, 5)
        if accident == 0:
            del parent[key]
        elif accident == 1 and isinstance(node, list) and node:
            parent[key] = node[: rng.randrange(len(node))]  # truncated
        elif accident == 2 and isinstance(node, int | float) and abs(node) < 1e9:
            parent[key] = node * rng.choice([-1, 1e-3, 30, 1e6, 1e300])  # out of the canvas
        elif accident == 3:
            parent[key] = [copy.copy(node)] * rng.randint(0, 3)
        else:
            parent[key] = copy.deepcopy(rng.choice(JUNK))
    return value


def test_a_thousand_broken_poses_give_an_error_that_explains_or_a_sound_mask():
    hands = {"people": [{"hand_left_keypoints_2d": [30, 30, 1] * 21, "face_keypoints_2d": None}], "canvas_width": 64, "canvas_height": 48}
    coco = json.loads(real_coco_text())
    few = {"images": [{**image, "width": 48, "height": 64} for image in coco["images"][:2]], "annotations": []}
    few["annotations"] = [a for a in coco["annotations"] if a["image_id"] in {image["id"] for image in few["images"]}]
    source = {
        "frames": [frame(10, 900), frame(20)],
        "frame": frame(-5, 30),
        "hands": [hands, None],
        "coco": few,
        "bare": few["annotations"],
    }
    rng, outcomes = random.Random(20), Counter()
    for _ in range(1000):
        value, (width, height) = broken(rng, source), rng.choice([(0, 0), (0, 0), (40, 56)])
        text = json.dumps(value, default=str)
        text = text[: rng.randrange(len(text))] if rng.random() < 0.1 else text
        for make_pose in (lambda v=value: v, lambda t=text, w=width, h=height: load(json=t, width=w, height=h)):
            try:
                pose = make_pose()
                sized = {"width": width or 64, "height": height or 64}  # an accident may ask for a canvas of 16,384 px
                mask, people = to_mask(pose_keypoint=pose, **sized)
                picture = render(pose_keypoint=pose, style=rng.choice(["openpose", "humansd"]), **sized)
            except PoseError as error:
                assert len(str(error)) > 20
                outcomes["error"] += 1
                continue
            outcomes["mask"] += 1
            assert set(mask.unique().tolist()) | set(people.unique().tolist()) <= {0.0, 1.0}
            assert mask.shape[1:] == people.shape[1:] == picture.shape[1:3] == (sized["height"], sized["width"])
            assert len(mask) == len(picture) >= 1 and len(people) >= 1
            assert picture.isfinite().all() and picture.min() >= 0 and picture.max() <= 1
    assert min(outcomes["error"], outcomes["mask"]) > 300  # the accidents are neither all fatal nor all harmless
