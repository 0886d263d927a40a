"""A seed gives a scene: who does what where, in which style, and everything a training set asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kbdm_core.keypoints import Pose
from train.mini.world.actions import ACTIONS, draw_angles, draw_yaw
from train.mini.world.captions import STYLES, Facts, PersonFacts, caption
from train.mini.world.chance import Chance
from train.mini.world.kinematics import pose_body
from train.mini.world.layout import place_bodies
from train.mini.world.places import PLACES, TIMES, is_outdoors
from train.mini.world.staging import Actor, Screen, depth_order, layers, visible_pose
from train.mini.world.things import SCREENS, SEATS, WOODS
from train.mini.world.wardrobe import Look, draw_look

PEOPLE = {1: 0.65, 2: 0.25, 3: 0.10}
SCREENED = 0.28  # if the nearest person stands upright: a fifth of all scenes
UPRIGHT = frozenset(ACTIONS) - {"sitting", "sitting on the ground", "jumping", "kneeling", "squatting", "running"}  # who may stand behind it


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture to be drawn. `texture` seeds what no caption tells: props, brush strokes, grain."""

    seed: int
    style: str
    place: str
    time: str
    texture: int
    actors: tuple[Actor, ...]  # from left to right
    screen: Screen | None
    facts: Facts
    caption: str

    @cached_property
    def pose(self) -> Pose:
        """COCO-17 of the people from left to right on a 128 x 128 canvas, see `visible_pose`."""
        return visible_pose(self.actors, layers(self.actors, self.screen))


def scene(seed: int) -> Scene:
    """The scene of a seed (0 or more), the same on every machine."""
    chance = Chance(seed)
    style, place = chance.pick(tuple(STYLES)), chance.pick(tuple(PLACES))
    time = chance.weighted(TIMES) if is_outdoors(place) else ""
    texture = chance.seed()
    actors = _actors(chance, chance.weighted(PEOPLE))
    nearest = depth_order(actors)[-1]
    before = None
    if chance.happens(SCREENED) and actors[nearest].action in UPRIGHT:
        before = _screen(chance, place, actors[nearest])
    people = tuple(_facts(actor) for actor in actors)
    facts = Facts(style, place, time, people, before.kind if before else "", nearest if before else 0)
    return Scene(seed, style, place, time, texture, actors, before, facts, caption(facts, chance))


def _actors(chance: Chance, count: int) -> tuple[Actor, ...]:
    looks: list[Look] = []
    bodies, drawn = [], []
    for _ in range(count):
        look, action = draw_look(chance), chance.weighted({name: action.weight for name, action in ACTIONS.items()})
        angles, yaw = draw_angles(action, chance), draw_yaw(action, chance)
        looks.append(look)
        drawn.append((action, yaw, chance.pick(SEATS) if ACTIONS[action].seat == "seat" else "", chance.pick(WOODS)))
        bodies.append(pose_body(look.build, angles, yaw, ACTIONS[action].air))
    placed = place_bodies(bodies, [look.is_child for look in looks], chance)
    actors = [Actor(look, action, yaw, body, seat, wood) for look, body, (action, yaw, seat, wood) in zip(looks, placed, drawn)]
    return tuple(sorted(actors, key=lambda actor: actor.body.pelvis[0]))


def _screen(chance: Chance, place: str, actor: Actor) -> Screen:
    body = actor.body
    height = body.stature * chance.between(0.22, 0.34)
    x = body.pelvis[0] + chance.around(0, 0.14) * body.stature
    return Screen(chance.pick(SCREENS[place]), place, float(x), min(127.0, body.ground + chance.between(5, 11)), height, chance.pick(WOODS))


def _facts(actor: Actor) -> PersonFacts:
    look, turned = actor.look, abs(actor.yaw)
    view = "front" if turned < 20 else "side" if 72 < turned < 108 else "back" if turned > 145 else ""
    return PersonFacts(look.kind, look.top, look.top_colour, look.bottom, look.bottom_colour, actor.action, look.hat, actor.seat, view)
