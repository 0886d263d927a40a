"""The four places under the sky: park, beach, street, snowy mountains."""

from __future__ import annotations

import numpy as np

from train.mini.world.backdrop import lit_by, put_things, ridge, sky
from train.mini.world.chance import Chance
from train.mini.world.painting import Painting, dark
from train.mini.world.relief import SIZE


def park(p: Painting, c: Chance, time: str) -> None:
    lit, horizon = lit_by(time), c.between(58, 76)
    sky(p, c, horizon, time)
    p.below(ridge(c, horizon, 16, (3.1, 6.3, 11.0)), horizon + 2, lit((0.36, 0.52, 0.36)))
    p.gradient(horizon, SIZE, lit((0.52, 0.68, 0.38)), lit((0.42, 0.60, 0.30)))
    if c.happens(0.5):  # a path
        x, lean = c.between(30, 98), c.between(-30, 30)
        p.polygon([(x - 3, horizon), (x + 3, horizon), (x + lean + 26, SIZE), (x + lean - 26, SIZE)], lit((0.80, 0.74, 0.60)))

    def tree(x: float, y: float) -> None:
        h, leaf = c.between(34, 50), lit(c.pick(((0.30, 0.50, 0.25), (0.38, 0.56, 0.28), (0.56, 0.52, 0.24))))
        p.rectangle(x - 2.5, y - h * 0.6, x + 2.5, y, lit((0.44, 0.32, 0.22)))
        for dx, dy, r in ((-10, -0.72, 11), (10, -0.74, 11), (0, -0.98, 13), (0, -0.72, 13)):
            p.ellipse(x + dx, y + dy * h, r, r * 0.95, leaf)
        p.ellipse(x - 5, y - 1.02 * h, 6, 5, dark(leaf, 1.12))

    def bush(x: float, y: float) -> None:
        for dx, r in ((-8, 6), (0, 8), (8, 6)):
            p.ellipse(x + dx, y - r * 0.7, r, r, lit((0.30, 0.47, 0.27)))

    def lamp(x: float, y: float) -> None:
        p.rectangle(x - 0.9, y - 44, x + 0.9, y, lit((0.26, 0.28, 0.30)))
        p.ellipse(x, y - 46, 3.6, 4.2, (0.98, 0.94, 0.70) if time == "night" else lit((0.90, 0.90, 0.85)))

    def bench(x: float, y: float) -> None:
        for dy in (-13, -9, -5):
            p.rectangle(x - 14, y + dy, x + 14, y + dy + 2.4, lit((0.52, 0.36, 0.22)))
        for dx in (-11, 10):
            p.rectangle(x + dx, y - 5, x + dx + 1.6, y + 1, lit((0.25, 0.25, 0.25)))

    for _ in range(26):
        p.ellipse(
            c.between(0, SIZE), c.between(horizon + 4, SIZE), 0.9, 0.7, lit(c.pick(((0.95, 0.93, 0.80), (0.36, 0.54, 0.25), (0.93, 0.80, 0.55))))
        )
    put_things(c, {tree: 3, bush: 1, lamp: 1, bench: 1}, horizon)


def beach(p: Painting, c: Chance, time: str) -> None:
    lit, horizon = lit_by(time), c.between(44, 60)
    shore = horizon + c.between(14, 24)
    sky(p, c, horizon, time)
    p.gradient(horizon, shore, lit((0.20, 0.48, 0.66)), lit((0.38, 0.70, 0.76)))
    p.rectangle(-1, shore, SIZE, shore + 8, lit((0.38, 0.70, 0.76)))
    for _ in range(9):
        x, y = c.between(0, SIZE), c.between(horizon + 2, shore - 1)
        p.rectangle(x, y, x + c.between(6, 16), y + 0.9, lit((0.72, 0.86, 0.90)))
    if c.happens(0.45):  # a sailing boat
        x = c.between(10, 118)
        p.polygon([(x, horizon - 13), (x, horizon - 1), (x + 8, horizon - 1)], lit((0.95, 0.95, 0.92)))
        p.polygon([(x - 6, horizon), (x + 9, horizon), (x + 6, horizon + 3), (x - 4, horizon + 3)], lit((0.52, 0.34, 0.26)))
    p.below(ridge(c, shore + 2, 4, (1.1, 2.3)), SIZE, lit((0.92, 0.92, 0.88)))
    sand = ridge(c, shore + 5, 4, (1.1, 2.3))
    p.below(sand, SIZE, lit((0.90, 0.80, 0.60)))
    for _ in range(22):
        p.ellipse(c.between(0, SIZE), c.between(shore + 8, SIZE), c.between(1, 4), 0.7, lit((0.82, 0.71, 0.51)))

    def umbrella(x: float, y: float) -> None:
        stripe = lit(c.pick(((0.86, 0.40, 0.36), (0.30, 0.55, 0.72), (0.93, 0.72, 0.32))))
        p.polygon([(x, y - 36), (x + 1.6, y - 36), (x + 4.5, y), (x + 3, y)], lit((0.80, 0.80, 0.78)))
        for i in range(6):
            a, b = -1 + i / 3, -1 + (i + 1) / 3
            p.polygon(
                [(x, y - 40), (x + 19 * a, y - 27 - 3 * (1 - a * a)), (x + 19 * b, y - 27 - 3 * (1 - b * b))],
                stripe if i % 2 else lit((0.95, 0.94, 0.90)),
            )

    def palm(x: float, y: float) -> None:
        bow = c.between(-10, 10)
        for i in range(10):
            t = i / 9
            p.ellipse(x + bow * t * t, y - 52 * t, 2.3 - 0.7 * t, 3.6, lit((0.56, 0.42, 0.28)))
        for angle in (-160, -125, -55, -20, 15, 165):
            a = np.radians(angle)
            tx, ty = x + bow + 20 * np.cos(a), y - 52 + 15 * np.sin(a) + 5
            p.polygon([(x + bow, y - 55), (x + bow, y - 50), ((x + bow + tx) / 2, (y - 52 + ty) / 2 + 0.5), (tx, ty)], lit((0.30, 0.52, 0.30)))

    def ball(x: float, y: float) -> None:
        p.ellipse(x, y - 5, 5, 5, lit((0.93, 0.92, 0.88)))
        p.ellipse(x - 1.5, y - 5, 2, 5, lit((0.80, 0.35, 0.32)))

    put_things(c, {umbrella: 2, palm: 2, ball: 1}, shore + 8)


def street(p: Painting, c: Chance, time: str) -> None:
    lit, horizon = lit_by(time), c.between(70, 84)
    sky(p, c, horizon, time)
    x = -c.between(0, 20)
    glow = (0.96, 0.85, 0.52)
    while x < SIZE:
        w, top = c.between(24, 40), c.between(4, 34)
        wall = lit(c.pick(((0.74, 0.60, 0.52), (0.68, 0.70, 0.70), (0.80, 0.74, 0.62), (0.58, 0.62, 0.68), (0.70, 0.54, 0.48))))
        p.rectangle(x, top, x + w, horizon, wall)
        p.rectangle(x, top, x + w, top + 2, dark(wall))
        pane = lit((0.46, 0.56, 0.66))
        for row in np.arange(top + 6, horizon - 15, 13):
            for column in np.arange(x + 4, x + w - 7, 10):
                p.rectangle(column, row, column + 6, row + 8, glow if time == "night" and c.happens(0.5) else pane)
        p.rectangle(x + w / 2 - 4, horizon - 12, x + w / 2 + 4, horizon, dark(wall, 0.55))
        x += w
    curb = horizon + c.between(10, 16)
    p.rectangle(-1, horizon, SIZE, curb, lit((0.74, 0.73, 0.71)))
    p.rectangle(-1, curb, SIZE, curb + 2, lit((0.60, 0.60, 0.59)))
    p.gradient(curb + 2, SIZE, lit((0.46, 0.47, 0.49)), lit((0.52, 0.53, 0.54)))
    start = c.between(-30, 0)
    for i in range(4):
        a = start + 46 * i
        p.polygon([(a + 4, curb + 17), (a + 28, curb + 17), (a + 24, curb + 21), (a - 2, curb + 21)], lit((0.88, 0.87, 0.82)))

    def lamp(x: float, y: float) -> None:
        p.rectangle(x - 1, y - 62, x + 1, y, lit((0.24, 0.26, 0.28)))
        p.rectangle(x - 1, y - 63, x + 9, y - 61, lit((0.24, 0.26, 0.28)))
        p.ellipse(x + 9, y - 60, 4, 2.6, glow if time == "night" else lit((0.92, 0.92, 0.86)))

    def car(x: float, y: float) -> None:
        body = lit(c.pick(((0.72, 0.30, 0.28), (0.34, 0.48, 0.62), (0.84, 0.82, 0.78), (0.42, 0.54, 0.44))))
        p.polygon([(x - 13, y - 10), (x - 8, y - 18), (x + 9, y - 18), (x + 14, y - 10)], lit((0.56, 0.66, 0.72)))
        p.rectangle(x - 22, y - 11, x + 22, y - 3, body)
        p.ellipse(x - 21, y - 6, 4, 5, body)
        p.ellipse(x + 21, y - 6, 4, 5, body)
        for dx in (-12, 12):
            p.ellipse(x + dx, y - 2, 4.6, 4.6, lit((0.15, 0.15, 0.16)))
            p.ellipse(x + dx, y - 2, 1.8, 1.8, lit((0.70, 0.70, 0.70)))

    def tree(x: float, y: float) -> None:
        p.rectangle(x - 1.6, y - 24, x + 1.6, y, lit((0.42, 0.32, 0.24)))
        p.ellipse(x, y - 34, 11, 14, lit((0.40, 0.54, 0.34)))

    def sign(x: float, y: float) -> None:
        p.rectangle(x - 0.8, y - 40, x + 0.8, y, lit((0.55, 0.56, 0.57)))
        p.ellipse(x, y - 42, 6, 6, lit((0.72, 0.28, 0.26)))
        p.rectangle(x - 4, y - 43, x + 4, y - 41, lit((0.95, 0.95, 0.95)))

    put_things(c, {car: 3, lamp: 2, tree: 1.5, sign: 1}, curb - 2)


def snowy_mountains(p: Painting, c: Chance, time: str) -> None:
    lit, horizon = lit_by(time), c.between(70, 84)
    sky(p, c, horizon, time)
    rock = lit((0.46, 0.52, 0.62))
    for x, h, w in (
        (c.between(0, 40), c.between(40, 58), 42),
        (c.between(80, 128), c.between(38, 60), 44),
        (c.between(40, 88), c.between(34, 50), 38),
    ):
        top = horizon - h
        p.polygon([(x, top), (x + w, horizon + 2), (x - w, horizon + 2)], rock)
        p.polygon([(x, top), (x + w, horizon + 2), (x + 0.1 * w, horizon + 2)], dark(rock, 0.86))
        for a, b, depth in ((-1, -0.33, 0.42), (-0.33, 0.33, 0.52), (0.33, 1, 0.40)):
            cap = [(x, top), (x + a * w * 0.32, top + 0.32 * h), (x + (a + b) / 2 * w * depth, top + depth * h), (x + b * w * 0.32, top + 0.32 * h)]
            p.polygon(cap, lit((0.96, 0.97, 0.99)))
    p.gradient(horizon, SIZE, lit((0.84, 0.89, 0.95)), lit((0.95, 0.97, 0.99)))
    p.below(ridge(c, horizon + 16, 8, (0.8, 1.9)), SIZE, lit((0.91, 0.94, 0.98)))

    def pine(x: float, y: float) -> None:
        h = c.between(30, 46)
        p.rectangle(x - 1.6, y - 6, x + 1.6, y, lit((0.38, 0.28, 0.22)))
        for base, tip, w in ((0.12, 0.62, 12), (0.38, 0.82, 9.5), (0.62, 1.0, 7)):
            p.polygon([(x - w, y - base * h), (x + w, y - base * h), (x, y - tip * h)], lit((0.22, 0.40, 0.34)))
            p.polygon([(x - w * 0.42, y - (tip - 0.21) * h), (x + w * 0.3, y - (tip - 0.17) * h), (x, y - tip * h)], lit((0.95, 0.97, 0.99)))

    def snowman(x: float, y: float) -> None:
        for dy, r in ((-7, 8), (-19, 6)):
            p.ellipse(x, y + dy, r + 0.7, r + 0.7, lit((0.62, 0.68, 0.76)))
            p.ellipse(x, y + dy, r, r, lit((0.98, 0.98, 0.99)))
        p.rectangle(x - 5, y - 26, x + 5, y - 24, lit((0.2, 0.2, 0.22)))
        p.rectangle(x - 3.4, y - 31, x + 3.4, y - 26, lit((0.2, 0.2, 0.22)))
        p.ellipse(x + 1, y - 19, 2.4, 1, lit((0.92, 0.52, 0.20)))

    def cabin(x: float, y: float) -> None:
        p.rectangle(x - 15, y - 17, x + 15, y, lit((0.50, 0.36, 0.26)))
        p.polygon([(x - 19, y - 16), (x + 19, y - 16), (x + 9, y - 29), (x - 9, y - 29)], lit((0.94, 0.96, 0.98)))
        p.rectangle(x - 11, y - 13, x - 3, y - 6, (0.98, 0.86, 0.52))
        p.rectangle(x + 4, y - 13, x + 11, y, lit((0.32, 0.22, 0.16)))

    put_things(c, {pine: 3, snowman: 1, cabin: 1}, horizon + 4)
    if c.happens(0.4):
        for _ in range(40):
            p.ellipse(c.between(0, SIZE), c.between(0, SIZE), 1.0, 1.0, (0.97, 0.98, 1.0))
