"""Mini-Human: a seed is a scene on every machine, the picture shows what pose and caption say, and the splits do not meet."""

from __future__ import annotations

import colorsys
import hashlib
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kbdm_core.errors import KBDMError
from kbdm_core.keypoints import Person, parse_pose_json
from testbed.real_poses import real_coco_text
from train.data.records import DataTable, load_image
from train.data.sources import open_dataset
from train.mini.world import captions
from train.mini.world.chance import Chance
from train.mini.world.dataset import ANNOTATIONS, SPLITS, example, split_seed, write_folder
from train.mini.world.dressing import dress
from train.mini.world.figure import figure
from train.mini.world.kinematics import Angles, Arm, Build, pose_body
from train.mini.world.layout import HEIGHTS, extent
from train.mini.world.places import PLACES
from train.mini.world.relief import SIZE, Layer, rasterise
from train.mini.world.render import mask, render
from train.mini.world.scene import PEOPLE, Scene, scene
from train.mini.world.solids import Box, Capsule, Solid
from train.mini.world.staging import layers
from train.mini.world.styles import STYLES
from train.mini.world.wardrobe import COLOURS, draw_look

PINNED = "4cf45034ff554dc70263071fa5b65bf71f316f9b7c2d69b5380f3efec8b33c71"  # of what seeds 0 to 39 mean
PINNED_PHOTO = 3
TILES = np.array([[158.4, 152.7, 157.4, 152.8], [167.6, 129.7, 146.8, 154.3], [156.2, 111.1, 137.1, 155.5], [169.2, 101.2, 90.1, 168.0]])
JOINTS = np.array([[38.309, 38.603], [60.785, 59.443], [40.257, 86.825], [81.652, 110.243]])  # nose, left shoulder, left wrist, left ankle
LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP = 5, 6, 11, 12


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """2,000 scenes, nothing drawn yet."""
    return [scene(seed) for seed in range(2000)]


def silhouette(solids: list[Solid]) -> np.ndarray:
    """The pixels [128,128] that solids cover, wholly or partly."""
    covered = rasterise([Layer(solids, [0] * len(solids))]).owner >= 0
    return covered.reshape(SIZE, 2, SIZE, 2).any(axis=(1, 3))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z\-]+", text))


def test_the_same_seed_gives_the_same_bytes():
    for seed in (3, 4, 5):
        assert np.array_equal(render(scene(seed)), render(scene(seed)))
    assert not np.array_equal(render(scene(3)), render(replace(scene(3), texture=1)))


def test_facts_and_captions_are_pinned():
    """What a seed means is frozen: everything trained on the world depends on it."""
    text = "\n".join(f"{drawn.caption}|{drawn.facts}" for drawn in map(scene, range(40)))
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED


def test_pixels_and_joints_are_pinned_up_to_rounding():
    """Tiles of 32 px within 2 of 255 and joints within 0.01 px: other processors round sines otherwise."""
    drawn = scene(PINNED_PHOTO)
    tiles = render(drawn).reshape(4, 32, 4, 32, 3).mean(axis=(1, 3, 4))
    assert np.abs(tiles - TILES).max() < 2
    assert np.allclose(drawn.pose.people[0].body[[0, 5, 9, 15], :2], JOINTS, atol=0.01)


def test_visible_joints_lie_inside_their_person(scenes):
    for drawn in scenes[:80]:
        for actor, person in zip(drawn.actors, drawn.pose.people, strict=True):
            shape = silhouette(figure(actor.body, actor.look))
            for x, y, seen in person.body:
                assert not seen or shape[round(y), round(x)]


def test_a_joint_counts_as_seen_where_its_own_person_is_drawn(scenes):
    agree = []
    for drawn in scenes[:80]:
        owner = rasterise(layers(drawn.actors, drawn.screen)).owner
        for number, (actor, person) in enumerate(zip(drawn.actors, drawn.pose.people, strict=True)):
            for (x, y, _), seen in zip(actor.body.joints[5:], person.body[5:, 2]):
                if 0 <= x <= SIZE - 1 and 0 <= y <= SIZE - 1:
                    agree.append((owner[int(2 * y + 1), int(2 * x + 1)] == number) == bool(seen))
                else:
                    assert not seen
    assert np.mean(agree) > 0.99  # samples on an edge may differ


def test_left_is_right_for_who_faces_the_viewer_and_left_from_behind(scenes):
    turned = {"front": 1, "back": -1}
    checked = Counter()
    for drawn in scenes[:600]:
        for actor, facts in zip(drawn.actors, drawn.facts.people):
            if facts.view in turned and facts.action not in ("posing", "stretching"):
                across = actor.body.joints[LEFT_SHOULDER, 0] - actor.body.joints[RIGHT_SHOULDER, 0]
                assert np.sign(across) == turned[facts.view], (drawn.seed, facts)
                checked[facts.view] += 1
    assert min(checked.values()) > 20


def test_people_come_from_left_to_right(scenes):
    for drawn in scenes:
        assert np.all(np.diff([actor.body.pelvis[0] for actor in drawn.actors]) >= 0)


def test_nose_and_eyes_are_unseen_from_behind_and_seen_in_front(scenes):
    for drawn in scenes[:600]:
        for person, facts in zip(drawn.pose.people, drawn.facts.people):
            if facts.view == "back" and facts.action == "standing":
                assert not person.body[:3, 2].any()
            if facts.view == "front" and facts.action == "standing" and len(drawn.actors) == 1:
                assert person.body[:3, 2].all()


def test_masks_hold_every_visible_joint(scenes):
    for drawn in scenes[:40]:
        masks = mask(drawn)
        assert masks.shape == (len(drawn.actors), SIZE, SIZE)
        for one, person in zip(masks, drawn.pose.people, strict=True):
            assert all(one[round(y), round(x)] == 1 for x, y, seen in person.body if seen)


def test_everybody_shows_enough_joints_and_the_size_that_was_promised(scenes):
    for drawn in scenes[:300]:
        high = HEIGHTS[len(drawn.actors)][1]
        for actor, person in zip(drawn.actors, drawn.pose.people, strict=True):
            _, top, _, bottom = extent(actor.body)
            assert (bottom - top) / SIZE < high + 0.01
            assert (person.body[:, 2] > 0).sum() >= 5, drawn.seed
    tall = [(extent(a.body)[3] - extent(a.body)[1]) / SIZE >= HEIGHTS[len(d.actors)][0] - 0.01 for d in scenes for a in d.actors]
    assert np.mean(tall) > 0.93  # the rest stretch so wide that the picture's width limits them


def test_captions_say_nothing_but_facts(scenes):
    styles = {style: {word for phrase in phrases for word in words(phrase)} for style, phrases in captions.STYLES.items()}
    for drawn in scenes:
        facts, said = drawn.facts, words(drawn.caption)
        assert any(phrase in drawn.caption for phrase in captions.STYLES[facts.style]), drawn.caption
        worn = {colour for p in facts.people for colour in (p.top_colour, p.bottom_colour, p.hat) if colour}
        shades = {word for colour in worn for shade in captions.SHADES[colour] for word in words(shade)}
        named = said & {word for colour in captions.SHADES for shade in captions.SHADES[colour] for word in words(shade)}
        allowed = shades | (styles[facts.style] & {"black"}) | ({"green"} if facts.place == "park" else set())
        assert named <= allowed, (drawn.caption, worn)
        for kind, items in (("top", captions.TOPS), ("bottom", captions.BOTTOMS)):
            for item in items:
                if item in said - {"shirt", "shorts", "trousers"}:
                    assert any(getattr(p, kind) == item for p in facts.people), drawn.caption
        for place, phrases in captions.PLACES.items():
            if any(re.search(rf"\b{phrase}\b", drawn.caption) for phrase in phrases):
                assert place == facts.place, drawn.caption
        assert ("night" in said) <= (facts.time == "night") and ("sunset" in said) <= (facts.time == "sunset")


def test_each_person_is_told_by_one_of_the_actions_names(scenes):
    for drawn in scenes:
        for facts in drawn.facts.people:
            names = [name.format(seat=facts.seat) for name in captions.ACTIONS[facts.action]]
            assert any(name in drawn.caption for name in names), drawn.caption


def test_captions_are_short_and_of_few_words(scenes):
    assert max(len(drawn.caption.split()) for drawn in scenes) <= captions.MOST_WORDS
    assert len(set.union(*(words(drawn.caption) for drawn in scenes))) <= 200
    assert len({drawn.caption for drawn in scenes}) > 1900


def test_styles_places_and_numbers_of_people_have_their_frequencies(scenes):
    for counted, expected in (
        (Counter(drawn.style for drawn in scenes), dict.fromkeys(STYLES, 1 / 6)),
        (Counter(drawn.place for drawn in scenes), dict.fromkeys(PLACES, 1 / 6)),
        (Counter(len(drawn.actors) for drawn in scenes), PEOPLE),
        (Counter(bool(drawn.screen) for drawn in scenes), {True: 0.2, False: 0.8}),
    ):
        for key, share in expected.items():
            assert abs(counted[key] / len(scenes) - share) < 0.035, (key, counted)
    wild = np.mean([facts.action == "posing" for drawn in scenes for facts in drawn.facts.people])
    assert 0.12 < wild < 0.18


@pytest.mark.parametrize("style", STYLES)
def test_a_shirts_colour_stays_recognisable_in_every_style(scenes, style):
    calm = ("standing", "raising both arms", "hands on hips")
    right = []
    for drawn in scenes:
        if len(drawn.actors) > 1 or drawn.facts.people[0].action not in calm or drawn.facts.people[0].view == "side" or drawn.screen:
            continue
        name, top = drawn.facts.people[0].top_colour, drawn.facts.people[0].top
        if name not in ("red", "yellow", "green", "blue", "purple") or top == "jacket" or len(right) > 16:
            continue
        joints = drawn.actors[0].body.joints
        x, y = np.rint(0.7 * joints[[LEFT_SHOULDER, RIGHT_SHOULDER], :2].mean(0) + 0.3 * joints[[LEFT_HIP, RIGHT_HIP], :2].mean(0)).astype(int)
        patch = render(replace(drawn, style=style))[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(axis=0) / 255
        off = abs(colorsys.rgb_to_hsv(*patch)[0] - colorsys.rgb_to_hsv(*COLOURS[name])[0])
        right.append(min(off, 1 - off) < 0.09)
    assert len(right) > 8 and np.mean(right) > 0.85


@pytest.mark.parametrize("flat", [False, True])
def test_a_capsule_is_the_union_of_its_balls(flat):
    """Oracle: the nearest of 4,000 ellipsoids along the axis, each solved on its own."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        frame, stretch = (np.linalg.qr(rng.normal(size=(3, 3)))[0], np.array([1, 1, 0.6])) if flat else (np.eye(3), np.ones(3))
        a, b = rng.uniform(-20, 20, (2, 3))
        capsule = Capsule(a, b, 8.0, 8.0, (0, 0, 0), frame=frame if flat else None, stretch=tuple(stretch))
        x, y = rng.uniform(-30, 30, (2, 300))
        form = frame @ np.diag(1 / (8.0 * stretch) ** 2) @ frame.T  # (p - c)' form (p - c) = 1
        nearest = np.full(300, -np.inf)
        for t in np.linspace(0, 1, 4000):
            centre = a + t * (b - a)
            flatly = np.stack([x - centre[0], y - centre[1]])
            p, q = form[2, 2], flatly[0] * form[0, 2] + flatly[1] * form[1, 2]
            r = (flatly * (form[:2, :2] @ flatly)).sum(axis=0) - 1
            root = q * q - p * r
            nearest = np.where(root > 0, np.maximum(nearest, centre[2] + (-q + np.sqrt(np.maximum(root, 0))) / p), nearest)
        seen = capsule.surface(x, y)
        assert (seen.inside == np.isfinite(nearest)).mean() > 0.99
        both = seen.inside & np.isfinite(nearest)
        assert both.sum() > 20 and np.quantile(np.abs(seen.z - nearest)[both], 0.95) < 0.05


def test_a_box_is_where_all_six_faces_say_so():
    """Oracle: march along the viewer's ray in steps of 0.05 px."""
    rng = np.random.default_rng(1)
    frame, half = np.linalg.qr(rng.normal(size=(3, 3)))[0], (6.0, 4.0, 9.0)
    x, y = rng.uniform(-14, 14, (2, 200))
    depth = np.arange(15, -15, -0.05)
    local = np.einsum("ij,inz->jnz", frame, np.stack(np.broadcast_arrays(x[:, None], y[:, None], depth[None])))
    hit = (np.abs(local) < np.array(half)[:, None, None]).all(axis=0)
    seen = Box(np.zeros(3), half, frame, (0, 0, 0)).surface(x, y)
    assert (seen.inside == hit.any(axis=1)).mean() > 0.98
    both = seen.inside & hit.any(axis=1)
    assert np.abs(seen.z - depth[hit.argmax(axis=1)])[both].max() < 0.11


def test_angles_mean_what_they_say():
    up = pose_body(Build(), Angles(arms=(Arm(180, 0, 180, 0), Arm(90, 90, 90, 90))), yaw=90)
    assert up.joints[9, 1] < up.joints[7, 1] < up.joints[5, 1]  # the left arm is up
    assert up.joints[10, 0] - up.joints[6, 0] > 0.25  # the right arm points ahead: to the picture's right
    away = pose_body(Build(), Angles(), yaw=180)
    assert away.joints[5, 0] < away.joints[6, 0] and away.skull[2, 2] < -0.9


def test_real_poses_become_figures_around_their_joints():
    inside, count, look = [], 0, draw_look(Chance(0))
    for pose in parse_pose_json(real_coco_text())[:150]:
        shrink = 120 / max(pose.width, pose.height)
        pose = pose.scaled(max(1, round(pose.width * shrink)), max(1, round(pose.height * shrink)))
        for person in pose.people:
            if (person.body[[5, 6, 11, 12], 2] > 0).all():
                shape = silhouette(figure(dress(person), look))
                inside += [shape[int(y), int(x)] for x, y, seen in person.body[5:] if seen and x < SIZE - 1 and y < SIZE - 1 and min(x, y) >= 0]
                count += 1
    assert count > 50 and np.mean(inside) > 0.98


def test_dressing_turns_a_figure_as_its_joints_do(scenes):
    right = []
    for drawn in scenes[:600]:
        for actor, facts in zip(drawn.actors, drawn.facts.people):
            if facts.view in ("front", "back") and facts.action == "standing":
                body = np.column_stack([actor.body.joints[:, :2], np.ones(17)])
                right.append((dress(Person(body)).trunk[2, 2] > 0) == (facts.view == "front"))
    assert len(right) > 10 and all(right)


def test_a_person_without_shoulders_cannot_be_dressed():
    with pytest.raises(KBDMError, match="shoulder"):
        dress(Person(np.zeros((17, 3))))


def test_splits_do_not_meet_and_unknown_ones_are_refused():
    ranges = list(SPLITS.values())
    assert all(max(a.start, b.start) >= min(a.stop, b.stop) for i, a in enumerate(ranges) for b in ranges[i + 1 :])
    assert split_seed("held-out", 3) == SPLITS["held-out"][3]
    with pytest.raises(KBDMError, match="training"):
        split_seed("test", 0)
    with pytest.raises(KBDMError, match="holds"):
        split_seed("held-out", 1_000_000)


def test_a_written_folder_is_read_by_the_trainer(tmp_path):
    write_folder(tmp_path, "held-out", range(4))
    folder = open_dataset(DataTable(root=tmp_path))
    coco = open_dataset(DataTable(root=tmp_path, format="coco", annotations=(tmp_path / ANNOTATIONS,)))
    assert not folder.problems and not coco.problems and len(folder.records) == len(coco.records) == 4
    for number, (plain, posed) in enumerate(zip(folder.records, coco.records, strict=True)):
        one, pose = example("held-out", number), posed.pose()
        assert plain.caption == posed.caption == one.caption
        assert np.array_equal(np.array(load_image(plain)), one.image)
        assert pose is not None and len(pose.people) == len(one.pose.people)
        for read, drawn in zip(pose.people, one.pose.people, strict=True):
            assert np.allclose(read.body, drawn.body, atol=0.006)
