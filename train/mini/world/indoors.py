"""The two places under a roof: room and stage. They have no time of day."""

from __future__ import annotations

import numpy as np

from train.mini.world.backdrop import lit_by, put_things
from train.mini.world.chance import Chance
from train.mini.world.painting import Painting, X, dark, mix
from train.mini.world.relief import SIZE


def room(p: Painting, c: Chance, time: str) -> None:
    lit, horizon = lit_by(time), c.between(80, 92)
    wall = lit(c.pick(((0.86, 0.80, 0.70), (0.72, 0.80, 0.78), (0.82, 0.74, 0.74), (0.76, 0.78, 0.86), (0.84, 0.84, 0.76))))
    p.gradient(-1, horizon, wall, dark(wall, 0.94))
    p.rectangle(-1, horizon - 4, SIZE, horizon, lit((0.93, 0.92, 0.89)))
    floor = lit(c.pick(((0.66, 0.48, 0.32), (0.56, 0.40, 0.28), (0.74, 0.60, 0.44))))
    p.gradient(horizon, SIZE, dark(floor, 0.9), floor)
    middle = c.between(40, 88)
    for i in range(-8, 9):
        far, near = middle + i * 13, middle + i * 26
        p.polygon([(far - 0.2, horizon), (far + 0.4, horizon), (near + 0.6, SIZE), (near - 0.6, SIZE)], dark(floor, 0.82))
    if c.happens(0.6):
        p.ellipse(
            c.between(40, 88),
            (horizon + SIZE) / 2 + 2,
            c.between(36, 56),
            13,
            lit(c.pick(((0.62, 0.38, 0.38), (0.40, 0.50, 0.60), (0.72, 0.66, 0.54)))),
        )

    def window(x: float, y: float) -> None:
        p.rectangle(x - 17, 8, x + 17, 50, lit((0.95, 0.95, 0.93)))
        night = c.happens(0.3)
        for a, b in ((-14, -1), (1, 14)):
            for top, bottom in ((11, 28), (30, 47)):
                p.rectangle(x + a, top, x + b, bottom, (0.20, 0.24, 0.40) if night else (0.68, 0.82, 0.92))
        cloth = lit(c.pick(((0.70, 0.42, 0.38), (0.50, 0.60, 0.54), (0.82, 0.72, 0.50))))
        for side in (-1, 1):
            p.polygon([(x + side * 20, 5), (x + side * 11, 5), (x + side * 15, 56), (x + side * 21, 56)], cloth)

    def picture(x: float, y: float) -> None:
        p.rectangle(x - 11, 16, x + 11, 38, lit((0.46, 0.33, 0.22)))
        p.rectangle(x - 9, 18, x + 9, 36, lit((0.80, 0.86, 0.86)))
        p.polygon([(x - 9, 36), (x - 1, 24), (x + 9, 36)], lit((0.46, 0.58, 0.48)))

    def sofa(x: float, y: float) -> None:
        cloth = lit(c.pick(((0.54, 0.42, 0.44), (0.42, 0.52, 0.54), (0.60, 0.54, 0.44))))
        p.rectangle(x - 28, y - 27, x + 28, y - 6, dark(cloth, 0.88))
        p.rectangle(x - 28, y - 14, x + 28, y - 2, cloth)
        for dx in (-30, 30):
            p.ellipse(x + dx, y - 10, 5.5, 9, cloth)

    def plant(x: float, y: float) -> None:
        p.polygon([(x - 6, y - 12), (x + 6, y - 12), (x + 4, y), (x - 4, y)], lit((0.70, 0.44, 0.32)))
        for dx, dy, rx, ry in ((-7, -22, 3.4, 9), (0, -26, 3.6, 12), (7, -21, 3.4, 9), (-12, -17, 6, 3), (12, -17, 6, 3)):
            p.ellipse(x + dx, y + dy, rx, ry, lit((0.34, 0.52, 0.34)))

    def lamp(x: float, y: float) -> None:
        p.rectangle(x - 0.9, y - 50, x + 0.9, y, lit((0.38, 0.34, 0.30)))
        p.polygon([(x - 5, y - 62), (x + 5, y - 62), (x + 9, y - 48), (x - 9, y - 48)], lit((0.97, 0.90, 0.66)))

    def shelf(x: float, y: float) -> None:
        p.rectangle(x - 15, y - 62, x + 15, y, lit((0.50, 0.36, 0.25)))
        for row in (-59, -40, -21):
            p.rectangle(x - 13, y + row, x + 13, y + row + 16, lit((0.34, 0.24, 0.17)))
            for i in range(7):
                tall = c.between(9, 15)
                book = c.pick(((0.66, 0.34, 0.30), (0.36, 0.46, 0.58), (0.78, 0.70, 0.50), (0.44, 0.54, 0.42)))
                p.rectangle(x - 12 + 3.5 * i, y + row + 16 - tall, x - 9 + 3.5 * i, y + row + 16, lit(book))

    put_things(c, {window: 3, picture: 2, sofa: 2, plant: 1.5, lamp: 1.2, shelf: 1.5}, horizon + 2, least=2)


def stage(p: Painting, c: Chance, time: str) -> None:
    horizon = c.between(84, 96)
    cloth = c.pick(((0.46, 0.14, 0.17), (0.28, 0.16, 0.36), (0.14, 0.22, 0.38)))
    p.gradient(-1, horizon, mix(cloth, (0.12, 0.10, 0.14), 0.72), mix(cloth, (0.20, 0.17, 0.20), 0.55))
    for _ in range(int(c.between(1, 4))):  # light from above
        x, lean = c.between(16, 112), c.between(-28, 28)
        light = c.pick(((0.98, 0.92, 0.70), (0.74, 0.84, 0.98), (0.98, 0.78, 0.84)))
        p.polygon([(x - 2, -1), (x + 2, -1), (x + lean + 20, horizon), (x + lean - 20, horizon)], light, 0.30)
    width, folds = c.between(16, 26), X[0] * 0.9 + c.between(0, 6)
    fold = (0.82 + 0.24 * np.sin(folds))[None, :, None] * np.array(cloth)
    count = int((horizon + 0.5) * 2)
    for columns in (slice(0, int(width * 2)), slice(p.colour.shape[1] - int(width * 2), None)):
        p.colour[:count, columns] = np.clip(fold[:, columns] * 1.25, 0, 1)
    drop = 8 + 3 * np.abs(np.sin(X[0] * np.pi / 21))
    above = np.arange(28)[:, None] / 2 < drop[None, :]
    p.colour[:28] = np.where(above[..., None], np.clip(fold * 1.45, 0, 1), p.colour[:28])
    wood = c.pick(((0.56, 0.38, 0.25), (0.48, 0.34, 0.25)))
    p.gradient(horizon, SIZE, dark(wood, 0.72), wood)
    for row in (0.14, 0.34, 0.6):
        y = horizon + row * (SIZE - horizon)
        p.rectangle(-1, y, SIZE, y + 0.8, dark(wood, 0.62))
    p.ellipse(c.between(50, 78), (horizon + SIZE) / 2 + 2, 46, 12, (0.92, 0.80, 0.58), 0.6)

    def microphone(x: float, y: float) -> None:
        p.rectangle(x - 0.8, y - 38, x + 0.8, y, (0.62, 0.62, 0.64))
        p.ellipse(x, y, 7, 1.6, (0.34, 0.34, 0.36))
        p.ellipse(x, y - 40, 2.6, 3.4, (0.75, 0.75, 0.77))

    def speaker(x: float, y: float) -> None:
        p.rectangle(x - 10, y - 34, x + 10, y, (0.17, 0.17, 0.19))
        p.ellipse(x, y - 11, 7, 7, (0.34, 0.34, 0.37))
        p.ellipse(x, y - 11, 3, 3, (0.18, 0.18, 0.20))
        p.ellipse(x, y - 26, 4.4, 4.4, (0.34, 0.34, 0.37))

    def drum(x: float, y: float) -> None:
        p.ellipse(x, y - 10, 12, 12, (0.76, 0.72, 0.66))
        p.ellipse(x, y - 10, 9.6, 9.6, (0.88, 0.86, 0.80))
        for side in (-1, 1):
            p.rectangle(x + side * 17 - 0.5, y - 26, x + side * 17 + 0.5, y, (0.62, 0.62, 0.64))
            p.ellipse(x + side * 17, y - 27, 7, 1.7, (0.84, 0.70, 0.34))

    put_things(c, {microphone: 1.5, speaker: 2, drum: 1}, horizon + 3)
