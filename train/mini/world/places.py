"""The six places: a horizon, a ground and one to three things at random spots, muted so that people stand out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from train.mini.world.chance import Chance
from train.mini.world.indoors import room, stage
from train.mini.world.outdoors import beach, park, snowy_mountains, street
from train.mini.world.painting import Painting

TIMES = {"day": 0.72, "sunset": 0.16, "night": 0.12}  # outdoors
PLACES: dict[str, Callable[[Painting, Chance, str], None]] = {
    "park": park,
    "beach": beach,
    "street": street,
    "room": room,
    "stage": stage,
    "snowy mountains": snowy_mountains,
}


def paint_place(place: str, time: str, seed: int) -> NDArray[np.float32]:
    """The background of a place at a time of day ("" indoors) -> colours [SIDE,SIDE,3] in 0..1."""
    painting = Painting()
    PLACES[place](painting, Chance(seed), time)
    return painting.colour


def is_outdoors(place: str) -> bool:
    """Whether the place has a time of day."""
    return place not in ("room", "stage")
