"""A captioned world of known structure: discs on the left and on the right, sky and ground, each in one of six colours: 1,296 scenes."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 70, 200),
    "yellow": (220, 200, 50),
    "black": (25, 25, 25),
    "white": (240, 240, 240),
}
SIDE = 64


def write_scenes(root: Path, count: int, seed: int = 0) -> Path:
    """`count` pictures of 64 px with captions, the same for the same seed: most of the scenes appear once or never."""
    draw = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        left, right, sky, ground = (draw.choice(list(COLOURS)) for _ in range(4))
        image = Image.new("RGB", (SIDE, SIDE), COLOURS[sky])
        ImageDraw.Draw(image).rectangle((0, SIDE // 2, SIDE, SIDE), fill=COLOURS[ground])
        for colour, centre in ((left, 16), (right, 48)):
            x, y, radius = centre + draw.randint(-3, 3), 32 + draw.randint(-3, 3), draw.randint(12, 15)
            ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
        image.save(root / f"{number:05d}.png")
        (root / f"{number:05d}.txt").write_text(f"a {left} disc on the left, a {right} disc on the right, {sky} sky, {ground} ground")
    return root
