"""The miniature's pose estimator: maps give back the people they were made of, distortions take joints along, training goes on bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.geometry.transform import warp_affine
from safetensors.torch import load_file, save_file

from kbdm_core.errors import FileFormatError, PoseError
from kbdm_core.keypoints import Person, Pose
from testbed.training import differences, small_run
from train.__main__ import main
from train.inspection import describe
from train.mini import commands
from train.mini.distortion import MIRRORED, distorted, moved_joints, placements
from train.mini.estimator import PoseEstimator, load_estimator, read_estimator, save_estimator
from train.mini.estimator_training import EstimatorObjective, EstimatorTable, EstimatorTraining, own_error
from train.mini.pose_maps import JOINT_STRIDE, SNAP, UNIT, VISIBLE, centres_of, decode, encode, joint_table, peaks
from train.mini.pose_score import JOINTS
from train.mini.scenes import WorldTable, as_batch, drawn, poses
from train.mini.world.dataset import SPLITS
from train.mini.world.scene import scene

ROOT = Path(__file__).resolve().parent.parent
FIRST = SPLITS["estimator"].start
SMALL = (8, 8, 16, 16)  # widths


@pytest.fixture(scope="module")
def truth() -> list[Pose]:
    """Poses of 120 scenes, with one, two and three people, each pose's people from left to right by their centres."""
    found = poses(WorldTable(first=FIRST, scenes=120))
    assert {len(pose.people) for pose in found} == {1, 2, 3}
    order = [centres_of(joint_table([pose]))[0][0, :, 0].argsort().tolist() for pose in found]
    return [Pose(tuple(pose.people[i] for i in numbers), pose.width, pose.height) for pose, numbers in zip(found, order)]


def off(found: list[Pose], truth: list[Pose]) -> np.ndarray:
    """How far each visible joint is from the true one, px; the people and their visible joints must be the same."""
    away = []
    for one, other in zip(found, truth, strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        for person, true in zip(one.people, other.people, strict=True):
            assert np.array_equal(person.body[:, 2] > 0, true.body[:, 2] > 0)
            away += np.linalg.norm(person.body - true.body, axis=1)[true.body[:, 2] > 0].tolist()
    return np.array(away)


def test_the_poses_of_a_table_are_those_of_its_scenes():
    found = poses(WorldTable(first=FIRST, scenes=3))
    assert all(np.array_equal(a.body, b.body) for i in range(3) for a, b in zip(found[i].people, scene(FIRST + i).pose.people, strict=True))


def test_true_maps_give_back_the_people_they_were_made_of(truth):
    maps, _ = encode(joint_table(truth), 128, 128)
    assert off(decode(maps), truth).max() < 0.5


def test_joints_snap_to_near_peaks_of_their_own_and_to_no_others(truth):
    maps, _ = encode(joint_table(truth), 128, 128)
    by = torch.tensor([2.4, -1.8])[None, None, :, None, None] / UNIT  # 3 px
    shifted = maps._replace(offsets=maps.offsets + by)
    assert np.quantile(off(decode(shifted), truth), 0.99) < 0.5
    unpeaked = maps._replace(offsets=maps.offsets + by, joints=torch.zeros_like(maps.joints))
    clipped = off(decode(unpeaked), truth)  # a joint at the edge stays on the picture
    assert np.quantile(clipped, 0.95) == pytest.approx(3, abs=0.01) and clipped.max() == pytest.approx(3, abs=0.01)
    alone = Pose((truth[0].people[0],), 128, 128)
    maps, _ = encode(joint_table([alone]), 128, 128)
    far = maps._replace(offsets=maps.offsets + torch.tensor([0.8, 0.6])[None, None, :, None, None] * (SNAP + 0.1) / UNIT)
    assert np.median(off(decode(far), [alone])) == pytest.approx(SNAP + 0.1, abs=0.01)


def test_a_centre_between_cells_is_one_person():
    body = np.zeros((17, 3))
    body[[5, 6, 11, 12]] = [(71.5, 40, 1), (55.5, 40, 1), (71.5, 71, 1), (55.5, 71, 1)]  # centre 63.5, 55.5: the corner of four cells
    maps, _ = encode(joint_table([Pose((Person(body),), 128, 128)]), 128, 128)
    assert (maps.centres == maps.centres.max()).sum() == 4
    (found,) = decode(maps)
    assert len(found.people) == 1 and np.allclose(found.people[0].body, body, atol=1e-3)


def test_improbable_joints_are_not_told_and_nobody_is_nobody(truth):
    maps, _ = encode(joint_table(truth[:1]), 128, 128)
    doubtful = maps._replace(visible=torch.where(torch.arange(17)[:, None, None] == 0, VISIBLE - 0.01, VISIBLE + 0.01).expand(1, 17, 32, 32))
    for person in decode(doubtful)[0].people:
        assert not person.body[0].any() and person.body[1:, 2] == pytest.approx(VISIBLE + 0.01)
    assert decode(maps._replace(centres=maps.centres * 0.4))[0].people == ()
    empty, near = encode(joint_table([Pose((), 128, 128), truth[0]]), 128, 128)
    assert not empty.centres[0].any() and not empty.joints[0].any() and not near[0].any() and near[1].any()
    assert decode(empty)[0].people == ()


def test_peaks_are_those_of_the_definition():
    xy, seen = torch.rand(2, 3, 4, 2) * 32, torch.rand(2, 3, 4) < 0.7
    maps = peaks(xy, seen, 32, 48, JOINT_STRIDE)
    assert maps.shape == (2, 4, 16, 24)
    for b, j, y, x in ((0, 0, 3, 5), (1, 2, 15, 20), (1, 3, 7, 0)):
        at = torch.tensor([2 * x + 0.5, 2 * y + 0.5])
        each = [float(torch.exp(-((xy[b, p, j] - at) / 2).square().sum() / 2)) if seen[b, p, j] else 0.0 for p in range(3)]
        assert maps[b, j, y, x].item() == pytest.approx(max(each), abs=1e-6)


def test_joints_move_as_the_picture_does():
    """A bright spot stands where its joint goes."""
    random = torch.Generator().manual_seed(3)
    xy = 24 + 80 * torch.rand(12, 1, 17, 2, generator=random)
    joints = torch.cat([xy, torch.ones(12, 1, 17, 1)], -1)
    matrices, mirrored = placements(12, 128, 128, random)
    assert mirrored.any() and not mirrored.all()
    moved = moved_joints(joints, matrices, mirrored, 128, 128)
    grid = torch.arange(128.0)
    for joint in (0, 5, 10):  # nose, left shoulder, right wrist
        at = xy[:, 0, joint]
        spots = torch.exp(-((grid - at[:, :1, None]) ** 2 + (grid[:, None] - at[:, 1:, None]) ** 2) / 8)[:, None]
        warped = warp_affine(spots, matrices[:, :2], (128, 128))[:, 0]
        centre = torch.stack([(warped.sum(1) * grid).sum(1), (warped.sum(2) * grid).sum(1)], 1) / warped.sum((1, 2))[:, None]
        own = torch.where(mirrored, MIRRORED[joint], joint)
        assert torch.allclose(moved[torch.arange(12), 0, own, :2], centre, atol=0.05)


def test_mirroring_exchanges_left_and_right_of_coco():
    names = [JOINTS[joint] for joint in MIRRORED]
    assert [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in names] == list(JOINTS)


def test_joints_that_leave_the_picture_and_unseen_ones_are_unseen():
    joints = torch.zeros(1, 1, 17, 3)
    joints[0, 0, 3], joints[0, 0, 4] = torch.tensor([2.0, 60, 1]), torch.tensor([60.0, 60, 1])
    left = torch.tensor([[[1.0, 0, -3], [0, 1, 0], [0, 0, 1]]])
    moved = moved_joints(joints, left, torch.tensor([False]), 128, 128)
    assert moved[0, 0, 4].tolist() == [57, 60, 1] and moved.count_nonzero() == 3


def test_distortion_depends_on_its_key_alone_and_stays_in_range(truth):
    pictures, joints = as_batch(drawn(FIRST, 3), torch.arange(3)), joint_table(truth[:3])
    x, moved = distorted(pictures, joints, torch.Generator().manual_seed(5))
    torch.rand(7)
    again, _ = distorted(pictures, joints, torch.Generator().manual_seed(5))
    other, _ = distorted(pictures, joints, torch.Generator().manual_seed(6))
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert x.shape == pictures.shape and x.min() >= -1 and x.max() <= 1 and moved.shape == joints.shape
    assert 0.02 < (x - other).abs().mean() < 0.8


@pytest.fixture(scope="module")
def lesson() -> tuple[np.ndarray, list[Pose]]:
    """Pictures and poses of eight scenes."""
    return drawn(FIRST, 8), poses(WorldTable(first=FIRST, scenes=8))


def test_two_steps_train_every_weight_and_a_resumed_run_is_an_uninterrupted_one(lesson, tmp_path):
    table = EstimatorTable(steps=2, batch=4, warmup=0)
    with small_run(tmp_path / "whole") as run:
        whole = EstimatorTraining(run, table, *lesson)
        first = {key: value.clone() for key, value in whole.optimisation.plain.state_dict().items()}
        run.train(whole)
    with small_run(tmp_path / "half") as run:
        half = EstimatorTraining(run, table, *lesson)
        figures = half.step(0)
        resumed = EstimatorTraining(run, table, *lesson)
        resumed.load(half.state())
        resumed.step(1)
        assert np.isfinite(float(figures["loss"])) and 0 < float(figures["offset_px"]) < 128
    assert differences(whole.state(), resumed.state()) == []
    assert all(not torch.equal(value, first[key]) for key, value in whole.optimisation.plain.state_dict().items())


def test_other_pictures_or_poses_are_other_inputs(lesson, tmp_path):
    pictures, truth = lesson
    with small_run(tmp_path) as run:
        inputs = [
            EstimatorTraining(run, EstimatorTable(), *given).inputs
            for given in (lesson, lesson, (pictures, truth[::-1]), (255 - pictures, truth))
        ]
    assert inputs[0] == inputs[1] and len(set(inputs)) == 3


def test_thirty_steps_on_four_pictures_lower_the_loss(lesson, tmp_path):
    pictures, truth = lesson[0][:4], lesson[1][:4]
    x, (maps, near) = as_batch(pictures, torch.arange(4)), encode(joint_table(truth), 128, 128)
    with small_run(tmp_path) as run:
        stage = EstimatorTraining(run, EstimatorTable(steps=30, batch=4, warmup=5), pictures, truth)
        with torch.no_grad():
            before = [float(value) for value in stage.optimisation.plain(x, maps, near)]
            for index in range(30):
                with torch.enable_grad():
                    stage.step(index)
            after = [float(value) for value in stage.optimisation.plain(x, maps, near)]
    assert after[0] < 0.9 * before[0] and after[1] < before[1]


def test_the_true_maps_are_the_best_answer(truth):
    """Against maps that are wrong in each part: no answer has less loss than the truth, and none of its offsets an error."""
    joints = joint_table(truth[:4])
    maps, near = encode(joints, 64, 64)

    class Fixed(torch.nn.Module):
        def forward(self, pictures):
            return pictures

    def loss(found):
        objective = EstimatorObjective(10.0)
        objective.estimator = Fixed()
        return [float(value) for value in objective(found, maps, near)]

    def logits(probabilities):
        return torch.logit(probabilities, eps=1e-6)

    best = maps._replace(centres=logits(maps.centres), visible=logits(maps.visible), joints=logits(maps.joints))
    lowest, error = loss(best)
    assert error == 0
    wrong = {"centres": best.centres + 0.3, "offsets": best.offsets + 0.3, "visible": -best.visible, "joints": best.joints - 0.3}
    assert all(loss(best._replace(**{part: value}))[0] > lowest for part, value in wrong.items())
    _, error = loss(best._replace(offsets=best.offsets + 2 / UNIT))
    assert error == pytest.approx(2, rel=1e-4)


def test_the_estimator_is_small_and_takes_any_picture_of_whole_cells():
    torch.manual_seed(0)
    estimator = PoseEstimator().eval()
    assert sum(value.numel() for value in estimator.parameters()) < 1.3e6
    found = estimator.estimate(torch.rand(3, 3, 48, 64) * 2 - 1, batch=2)
    assert len(found) == 3 and {(pose.width, pose.height) for pose in found} == {(64, 48)}
    with pytest.raises(PoseError, match=r"a picture has 60 x 48 px; .* multiples of 16 px"):
        estimator.estimate(torch.zeros(1, 3, 48, 60))


def test_a_file_gives_the_same_maps_and_tells_its_own_error(tmp_path):
    torch.manual_seed(0)
    estimator, path = PoseEstimator(SMALL).eval(), tmp_path / "estimator.safetensors"
    save_estimator(path, estimator, {"seed": 3}, {"unseen": {"pck@0.2": 0.5}})
    assert all(tensor.dtype == torch.float16 for tensor in load_file(path).values())
    loaded, x = load_estimator(path), torch.rand(1, 3, 32, 32) * 2 - 1
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    for a, b in zip(loaded(x), estimator(x)):
        assert torch.allclose(a, b, atol=2e-2)
    assert read_estimator(path)[1] == {"training": {"seed": 3}, "judged": {"unseen": {"pck@0.2": 0.5}}}
    told = describe(path)
    assert told["format"] == "kbdm.mini_estimator" and told["weights"] == sum(value.numel() for value in estimator.parameters())
    assert told["judged"] == {"unseen": {"pck@0.2": 0.5}} and told["training"] == {"seed": 3}


def test_files_that_are_no_estimators_are_refused(tmp_path):
    path, tensors = tmp_path / "estimator.safetensors", PoseEstimator(SMALL).state_dict()
    known = {"format": "kbdm.mini_estimator", "format_version": "1"}
    wrong = [
        ({**known, "format": "kbdm.mini_unet"}, tensors, "metadata 'format'"),
        ({**known, "format_version": "2"}, tensors, "metadata 'format_version'"),
        (known, {key: value for key, value in tensors.items() if key != "joints.bias"}, "tensor 'joints.bias'"),
        (known, {**tensors, "joints.bias": torch.zeros(18)}, r"shape \[17\], found shape \[18\]"),
        (known, {**tensors, "stem.0.0.weight": torch.zeros(7, 3, 3, 3)}, "multiples of 8"),
    ]
    for metadata, given, words in wrong:
        save_file(given, path, metadata)
        with pytest.raises(FileFormatError, match=words):
            load_estimator(path)


def test_inspect_needs_none_of_the_trainers_frameworks():
    heavy = ["accelerate", "diffusers", "kornia", "open_clip", "scipy"]
    program = f"import sys, train.inspection; sys.exit(str([name for name in {heavy!r} if name in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_the_command_trains_and_judges_on_scenes_that_it_has_not_seen(tmp_path, capsys, monkeypatch):
    asked = []

    def draw(table, check):
        asked.append(range(table.first, table.first + table.scenes))
        return drawn(table.first, table.scenes)

    monkeypatch.setattr(commands, "rendered", draw)
    monkeypatch.setattr(commands, "JUDGED", 3)
    path = tmp_path / "estimator.safetensors"
    arguments = ["--steps=1", "--batch=2", "--world.scenes=4", f"--output={path}", "--run.no-tensorboard", "--run.device=cpu"]
    assert main(["mini", "estimator", *arguments]) == 0
    own, held_out = SPLITS["estimator"], SPLITS["held-out"]
    assert asked == [range(own.start, own.start + 4), range(own.stop - 3, own.stop), range(held_out.start, held_out.start + 3)]
    told = json.loads(capsys.readouterr().out)
    loaded, config = read_estimator(path)
    assert config["judged"] == {"unseen": told["unseen"], "held_out": told["held_out"]} and config["training"]["world"]["first"] == own.start
    unseen = WorldTable(first=own.stop - 3, scenes=3)
    assert own_error(loaded, drawn(unseen.first, 3), poses(unseen)) == told["unseen"] and told["unseen"]["pictures"] == 3


@pytest.mark.parametrize("world", [["--world.first=0"], ["--world.first=10000000"], ["--world.first=29999000", "--world.scenes=600"]])
def test_scenes_of_other_splits_and_those_kept_for_judging_are_refused(world, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["mini", "estimator", *world]) == 2
    assert "the estimator learns from 20000000 to 29999487 alone" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "DRY_SCENES", 2)
    monkeypatch.chdir(tmp_path)
    assert main(["mini", "estimator", "--dry-run"]) == 0
    assert "estimator: one step took" in capsys.readouterr().err and not list(tmp_path.iterdir())
