"""Who a little person is and what they wear, drawn from a stream: everything that a caption may say and a picture must show."""

from __future__ import annotations

from dataclasses import dataclass

from train.mini.world.chance import Chance
from train.mini.world.kinematics import Build
from train.mini.world.solids import Colour

COLOURS: dict[str, Colour] = {
    "red": (0.82, 0.13, 0.15),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.97, 0.83, 0.20),
    "green": (0.16, 0.58, 0.27),
    "blue": (0.14, 0.33, 0.80),
    "purple": (0.48, 0.22, 0.64),
    "pink": (0.97, 0.55, 0.72),
    "black": (0.13, 0.13, 0.16),
    "white": (0.94, 0.94, 0.93),
    "grey": (0.53, 0.55, 0.58),
}
SKINS: tuple[Colour, ...] = ((0.98, 0.82, 0.71), (0.93, 0.72, 0.57), (0.80, 0.58, 0.42), (0.60, 0.40, 0.27), (0.42, 0.27, 0.19))
HAIR_COLOURS: tuple[Colour, ...] = (
    (0.10, 0.08, 0.08),
    (0.30, 0.18, 0.10),
    (0.48, 0.28, 0.13),
    (0.86, 0.66, 0.30),
    (0.66, 0.27, 0.10),
    (0.62, 0.62, 0.64),  # grey: adults only
)
SHOES: tuple[Colour, ...] = ((0.16, 0.14, 0.15), (0.36, 0.22, 0.14), (0.88, 0.88, 0.88), (0.70, 0.16, 0.16), (0.18, 0.26, 0.48))

KINDS = {"woman": 0.32, "man": 0.32, "girl": 0.18, "boy": 0.18}
CHILDREN = ("girl", "boy")
TOPS = {  # kind of person -> top -> weight
    "woman": {"t-shirt": 2, "shirt": 2, "sweater": 2, "jacket": 1.5, "dress": 3},
    "man": {"t-shirt": 2.5, "shirt": 2.5, "sweater": 2, "jacket": 2.5},
    "girl": {"t-shirt": 2.5, "sweater": 2, "jacket": 1, "dress": 3},
    "boy": {"t-shirt": 3, "shirt": 1.5, "sweater": 2, "jacket": 1.5},
}
BOTTOMS = {
    "woman": {"trousers": 2.5, "skirt": 2, "shorts": 1},
    "man": {"trousers": 3.5, "shorts": 1.2},
    "girl": {"trousers": 2, "skirt": 2, "shorts": 1.5},
    "boy": {"trousers": 2, "shorts": 2},
}
HAIRS = {
    "woman": {"long": 3.5, "bun": 2, "bob": 2, "ponytail": 2, "curly": 1, "hat": 1},
    "man": {"short": 4, "bald": 1.3, "curly": 0.8, "hat": 1.6},
    "girl": {"long": 2, "bun": 1, "bob": 2, "ponytail": 2, "pigtails": 2, "hat": 0.8},
    "boy": {"short": 4, "curly": 1, "hat": 1.6},
}


@dataclass(frozen=True)
class Look:
    """One person's looks; colours by name (COLOURS), `bottom` "" for a dress. `hat` is a colour name, "" without one."""

    kind: str
    top: str
    top_colour: str
    bottom: str
    bottom_colour: str
    hair: str
    hair_colour: Colour
    hat: str
    skin: Colour
    shoes: Colour
    beard: bool
    build: Build

    @property
    def is_child(self) -> bool:
        """Whether the person is shorter, with a larger head."""
        return self.kind in CHILDREN


def draw_look(chance: Chance) -> Look:
    """A person: kind, clothes, hair, skin, build."""
    kind = chance.weighted(KINDS)
    top = chance.weighted(TOPS[kind])
    top_colour, bottom_colour, hat = chance.some(tuple(COLOURS), 3)
    bottom = chance.weighted(BOTTOMS[kind])
    hair = chance.weighted(HAIRS[kind])
    dressed = top == "dress"
    return Look(
        kind=kind,
        top=top,
        top_colour=top_colour,
        bottom="" if dressed else bottom,
        bottom_colour="" if dressed else bottom_colour,
        hair=hair,
        hair_colour=chance.pick(HAIR_COLOURS[:-1] if kind in CHILDREN else HAIR_COLOURS),
        hat=hat if hair == "hat" else "",
        skin=chance.pick(SKINS),
        shoes=chance.pick(SHOES),
        beard=chance.happens(0.35) and kind == "man",
        build=_build(kind, chance),
    )


def _build(kind: str, chance: Chance) -> Build:
    width = chance.between(0.94, 1.12)
    if kind in CHILDREN:
        return Build(0.122, 0.106 * width, 0.060 * width, 0.285, 0.136, 0.126, 0.178, 0.170, 1.04 * width, 0.090 * width, 0.097 * width)
    if kind == "woman":
        return Build(0.101, 0.106 * width, 0.066 * width, 0.290, 0.148, 0.138, 0.202, 0.194, 0.94 * width, 0.076 * width, 0.100 * width)
    return Build(0.099, 0.124 * width, 0.062 * width, 0.300, 0.152, 0.140, 0.200, 0.192, 1.06 * width, 0.093 * width, 0.098 * width)
