"""Facts of a picture, and the sentences that tell them: a grammar with paraphrases, always true of the picture."""

from __future__ import annotations

from dataclasses import dataclass

from train.mini.world.chance import Chance


@dataclass(frozen=True)
class PersonFacts:
    """What may be said of a person; `bottom` "" for a dress, `hat` and `seat` "" without; `view`: front, side, back or ""."""

    kind: str
    top: str
    top_colour: str
    bottom: str
    bottom_colour: str
    action: str
    hat: str = ""
    seat: str = ""
    view: str = ""


@dataclass(frozen=True)
class Facts:
    """What may be said of a picture; people from left to right; `time` "" indoors; `screen`: what stands before the people, and `screened`
    the number of the one who stands behind it."""

    style: str
    place: str
    time: str
    people: tuple[PersonFacts, ...]
    screen: str = ""
    screened: int = 0


MOST_WORDS = 50  # within CLIP's 77 tokens
STYLES = {
    "photo": ("photo", "photograph", "realistic photo", "colour photo"),
    "pencil sketch": ("pencil sketch", "pencil drawing", "sketch", "rough pencil sketch"),
    "oil painting": ("oil painting", "oil painting", "oil on canvas", "canvas painted in oil"),
    "pixel art": ("pixel art", "retro pixel art", "pixel art game picture"),
    "stained glass": ("stained glass", "stained glass window", "church window of stained glass"),
    "ink drawing": ("ink drawing", "pen and ink drawing", "black ink drawing", "ink illustration"),
}
MATERIALS = ("oil on canvas", "pixel art", "retro pixel art", "stained glass")  # without article
KINDS = {
    "woman": ("woman", "woman", "lady", "person"),
    "man": ("man", "man", "guy", "person"),
    "girl": ("girl", "girl", "little girl", "child", "kid"),
    "boy": ("boy", "boy", "little boy", "child", "kid"),
}
TOPS = {
    "t-shirt": ("t-shirt", "t-shirt", "tee", "shirt"),
    "shirt": ("shirt", "shirt", "long shirt"),
    "sweater": ("sweater", "sweater", "pullover"),
    "jacket": ("jacket", "jacket", "open jacket"),
    "dress": ("dress", "dress", "short dress"),
}
BOTTOMS = {"trousers": ("trousers", "trousers", "pants"), "shorts": ("shorts", "shorts", "short trousers"), "skirt": ("skirt",)}
SHADES = {
    "red": ("red", "red", "bright red"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "grey", "gray"),
}
ACTIONS = {
    "standing": ("standing", "standing", "standing still", "standing upright"),
    "waving": ("waving", "waving", "waving a hand", "waving hello"),
    "walking": ("walking", "walking", "strolling", "going for a walk"),
    "running": ("running", "running", "jogging"),
    "sitting": ("sitting", "sitting on a {seat}", "sitting on a {seat}", "seated on a {seat}"),
    "sitting on the ground": ("sitting on the ground", "sitting on the ground", "seated on the ground"),
    "jumping": ("jumping", "jumping", "leaping", "jumping up in the air"),
    "raising both arms": ("raising both arms", "with both arms up", "with raised arms", "cheering"),
    "hands on hips": ("with hands on hips", "with hands on hips", "standing with hands on hips"),
    "pointing": ("pointing", "pointing", "pointing with one arm"),
    "kicking": ("kicking", "kicking", "kicking with one leg"),
    "dancing": ("dancing", "dancing", "doing a dance"),
    "kneeling": ("kneeling", "kneeling", "kneeling down"),
    "stretching": ("stretching", "stretching", "bending sideways", "stretching to the side"),
    "reaching up": ("reaching up", "reaching up", "reaching up with one arm"),
    "arms crossed": ("with arms crossed", "with crossed arms", "standing with folded arms"),
    "squatting": ("squatting", "crouching", "squatting down"),
    "balancing": ("balancing on one leg", "balancing on one leg", "standing on one leg"),
    "posing": ("posing", "posing", "striking a pose"),
}
PLACES = {
    "park": ("in a park", "in the park", "in a green park", "on the grass in a park"),
    "beach": ("on a beach", "on the beach", "at the beach", "on the sand by the sea"),
    "street": ("on a street", "in the street", "on a city street", "in the city"),
    "room": ("in a room", "in a room", "inside a room", "indoors in a room"),
    "stage": ("on a stage", "on the stage", "on stage", "on a theatre stage"),
    "snowy mountains": ("in snowy mountains", "in the snow", "in the snowy mountains", "in the mountains with snow"),
}
BARE_PLACES = {"park": "park", "beach": "beach", "street": "street", "room": "room", "stage": "stage", "snowy mountains": "snowy mountains"}
TIMES = {
    "day": ("", "", "", "", "by day", "in daylight"),
    "sunset": ("at sunset", "at sunset", "in the evening", ""),
    "night": ("at night", "at night", ""),
}
VIEWS = {
    "front": ("facing the viewer", "seen from the front"),
    "side": ("seen from the side", "in profile"),
    "back": ("seen from behind", "from the back"),
}
COUNTS = {2: ("two people", "a pair of people"), 3: ("three people", "a group of three people")}


def caption(facts: Facts, chance: Chance) -> str:
    """One true sentence of at most MOST_WORDS words: a longer one is told again in other words."""
    told = _sentence(facts, chance)
    while len(told.split()) > MOST_WORDS:
        told = _sentence(facts, chance)
    return told


def _sentence(facts: Facts, chance: Chance) -> str:
    style = chance.pick(STYLES[facts.style])
    people = _people(facts, chance)
    where = chance.pick(PLACES[facts.place])
    time = chance.pick(TIMES[facts.time]) if facts.time else ""
    scene = f"{people} {where}" if chance.happens(0.8) else f"{people}, {BARE_PLACES[facts.place]}"
    scene += f" {time}" if time else ""
    of = f"{style if style in MATERIALS else _article(style)} of {scene}"
    return chance.weighted({f"{style}, {scene}": 3, of: 3, f"{scene}, {style}": 3, f"{people}, {style}": 0.5, f"{where}, {people}, {style}": 1})


def _people(facts: Facts, chance: Chance) -> str:
    count = len(facts.people)
    detail = 1.0 if count == 1 else 0.55 if count == 2 else 0.2
    told = []
    for number, person in enumerate(facts.people):
        behind = f" behind {_article(facts.screen)}" if facts.screen and number == facts.screened and chance.happens(0.6) else ""
        told.append(_person(person, chance, detail).removesuffix(" seen from behind" if behind else "") + behind)
    if count == 1:
        return told[0]
    listed = " and ".join((", ".join(told[:-1]), told[-1]))
    return f"{chance.pick(COUNTS[count])}: {listed}" if chance.happens(0.6) else listed


def _person(person: PersonFacts, chance: Chance, detail: float) -> str:
    who = _article(chance.pick(KINDS[person.kind]))
    top = f"{chance.pick(SHADES[person.top_colour])} {chance.pick(TOPS[person.top])}"
    bottom = f"{chance.pick(SHADES[person.bottom_colour])} {chance.pick(BOTTOMS[person.bottom])}" if person.bottom else ""
    if person.bottom == "skirt":
        bottom = _article(bottom)
    worn = chance.weighted({"all": 6 * detail, "top": 3, "colour": 0.8, "none": 0.7})
    clothes = ""
    if worn in ("all", "top"):
        joint = chance.pick(("in", "in", "with", "wearing"))
        clothes = f" {joint} {_article(top)}" + (f" and {bottom}" if worn == "all" and bottom else "")
    elif worn == "colour":
        clothes = f" in {person.top_colour}"
    if person.hat and clothes and chance.happens(0.6):
        clothes += f", {_article(person.hat)} hat," if worn == "all" else f" and {_article(person.hat)} hat"
    action = chance.pick(ACTIONS[person.action]).format(seat=person.seat)
    verb = " is" if not action.startswith("with ") and chance.happens(0.25) else ""
    view = f" {chance.pick(VIEWS[person.view])}" if person.view and chance.happens(0.35 * detail) else ""
    return f"{who}{clothes}{verb} {action}{view}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"
