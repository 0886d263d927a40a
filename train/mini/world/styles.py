"""The six styles: the same relief of people before the same background, drawn six unmistakable ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.mini.world.chance import Chance
from train.mini.world.relief import FINE, NOBODY, SIZE, Relief
from train.mini.world.strokes import grain, panes, strokes, window

Image = NDArray[np.floating]  # [...,3] in 0..1
LIGHT = (-0.46, -0.62, 0.64)  # to the light: up, left and before the picture
GREY = np.array([0.30, 0.59, 0.11], np.float32)
BLOCKS = (slice(FINE, None, 2 * FINE),) * 2  # a sample in the middle of each block of 2 px
COLUMN, ROW = np.arange(SIZE)[None, :], np.arange(SIZE)[:, None]


@dataclass(frozen=True, eq=False)
class Motif:
    """What a style draws. On the fine grid the people's `colour`, `mask`, `light` 0..1 and `contour` lines between and around limbs;
    `block_contour` the same between blocks of 2 px; at the picture's size the `share` of people in each pixel, the bare background `place`,
    the `shadow`s on it 0..1, and both together as `ground`."""

    colour: Image
    mask: NDArray[np.bool_]
    light: Image
    contour: NDArray[np.bool_]
    block_contour: NDArray[np.bool_]
    share: Image
    place: Image
    shadow: Image
    ground: Image


def motif(relief: Relief, background: Image, shadow: Image) -> Motif:
    """Light and contours of a relief [SIDE,SIDE,...] before a background [SIDE,SIDE,3] with shadows [SIDE,SIDE]."""
    n = relief.normal
    light = np.clip(LIGHT[0] * n[0] + LIGHT[1] * n[1] + LIGHT[2] * n[2], 0, 1)
    mask, place, shadow = relief.owner != NOBODY, _down(background), _down(shadow)
    contour = _contour(relief.z, relief.part, relief.owner, FINE)
    blocks = _contour(relief.z[BLOCKS], relief.part[BLOCKS], relief.owner[BLOCKS], 1)
    ground = place * (1 - 0.42 * shadow)[..., None]
    return Motif(relief.colour, mask, light, contour, blocks, _down(mask.astype(np.float32)), place, shadow, ground)


def photo(m: Motif, chance: Chance) -> Image:
    """Round light, a soft background, a little grain."""
    lit = m.colour * (0.50 + 0.62 * m.light)[..., None] + (0.22 * m.light**12)[..., None]
    lit[m.contour & m.mask] *= 0.58
    return _over(lit, m, _blurred(_blurred(m.ground))) + 0.035 * _grain(chance)[..., None]


def oil_painting(m: Motif, chance: Chance) -> Image:
    """Saturated colour in thick strokes, broad behind and fine on people."""
    lit = m.colour * (0.42 + 0.78 * m.light)[..., None]
    lit[m.contour & m.mask] *= 0.45
    ground = _saturated(m.ground, 1.35)
    picture = _saturated(_over(lit, m, ground), 1.15)
    shift = int(chance.between(0, SIZE)), int(chance.between(0, SIZE))
    broad, broad_relief = _painted(ground, *strokes(6.5, 2.0), shift)
    fine, fine_relief = _painted(picture, *strokes(4.0, 1.6), shift)
    on = np.clip(2 * m.share, 0, 1)[..., None]
    painted = on * (0.5 * picture + 0.5 * fine) + (1 - on) * (0.35 * ground + 0.65 * broad)
    relief = on * 0.5 * fine_relief[..., None] + (1 - on) * broad_relief[..., None]
    return painted * (1 + 0.20 * relief) + 0.02 * relief


def pencil_sketch(m: Motif, chance: Chance) -> Image:
    """Grey lines and hatching on rough paper, with a breath of the colours."""
    tooth = _grain(chance)
    paper = np.array([0.93, 0.92, 0.89], np.float32) + 0.07 * tooth[..., None]
    behind = np.clip(0.45 + 0.6 * (m.place @ GREY) - 0.35 * m.shadow, 0, 1)
    tone = _down(np.where(m.mask, (m.colour @ GREY) * (0.60 + 0.5 * m.light), 0)) + (1 - m.share) * behind
    hatch = np.where((COLUMN + ROW) % 4 < 1.5, np.clip(0.80 - tone, 0, 1) * 0.55, 0)
    hatch = hatch + np.where((COLUMN - ROW) % 4 < 1.5, np.clip(0.50 - tone, 0, 1) * 0.6, 0)
    faint = 0.56 * _down(np.where(m.mask[..., None], 1 - m.colour * (0.75 + 0.3 * m.light)[..., None], 0))
    lines = _down(m.contour.astype(np.float32)) * (0.80 + 0.5 * tooth) + 0.40 * np.clip(4.0 * _edges(m.place), 0, 1) * (m.share < 0.5)
    return (paper - faint) * (1 - hatch)[..., None] * (1 - np.clip(lines, 0, 0.88))[..., None]


def ink_drawing(m: Motif, chance: Chance) -> Image:
    """Black brush lines and black shadows on white, a flat wash over people, almost none behind."""
    shadow = m.mask & (m.light < 0.14)
    wash = (1 - 0.20 * (1 - _blurred(m.place))) * np.array([1.0, 0.99, 0.96], np.float32)
    picture = _over(0.20 + 0.80 * m.colour, m, wash)
    black = _down((m.contour | shadow).astype(np.float32))
    black += np.clip(9.0 * _edges(m.place) - 0.25, 0, 1) * (m.share < 0.5)
    black += ((ROW % 4 < 1) & ((m.place @ GREY) < 0.30) & (m.share < 0.3)) * 0.7
    black += ((ROW + COLUMN) % 4 < 2) * (m.shadow > 0.45) * (m.share < 0.3) * 0.8
    return picture * (1 - np.clip(1.15 * black, 0, 1))[..., None] + 0.05 * np.clip(black, 0, 1)[..., None]


def pixel_art(m: Motif, chance: Chance) -> Image:
    """Square blocks, a few tones per colour, a dark outline; the background's blocks are twice as large: an 8x autoencoder leaves those too."""
    step = 0.70 + 0.30 * np.round(2 * m.light[BLOCKS]) / 1.4
    figure = m.colour[BLOCKS] * step[..., None]
    place = _down(_down(m.place)) * (1 - 0.4 * (_down(_down(m.shadow)) > 0.4))[..., None]
    ground = (np.floor(_saturated(place, 1.3) * 6 + 0.5) / 6).repeat(2, axis=0).repeat(2, axis=1)
    picture = np.where(m.mask[BLOCKS][..., None], figure, ground)
    picture[m.block_contour] = (0.08, 0.07, 0.12)
    return picture.repeat(2, axis=0).repeat(2, axis=1)


def stained_glass(m: Motif, chance: Chance) -> Image:
    """Glowing panes in black lead; people's panes are their limbs and clothes."""
    x, y = int(chance.between(0, SIZE)), int(chance.between(0, SIZE))
    pane, border = (window(field, x, y) for field in panes(16.0))
    ground = _saturated(m.ground, 1.8)
    count = np.maximum(np.bincount(pane.ravel(), minlength=int(pane.max()) + 1), 1)
    mean = np.stack([np.bincount(pane.ravel(), ground[..., c].ravel(), minlength=len(count)) / count for c in range(3)], axis=-1)
    glass = (0.40 * mean[pane] + 0.60 * ground) * (0.84 + 0.26 * np.clip(border / 6, 0, 1))[..., None]
    figure = _saturated(m.colour, 1.25) * (0.86 + 0.28 * m.light * m.light)[..., None]
    lead = np.clip(1.5 - border, 0, 1) * (1 - m.share)
    lead += 0.75 * np.clip(6.0 * _edges(m.place) - 0.4, 0, 1) * (m.share < 0.5)
    lead += 1.1 * _down(_grown(m.contour).astype(np.float32))
    return _over(figure, m, glass) * (1 - np.clip(lead, 0, 0.94))[..., None]


STYLES: dict[str, Callable[[Motif, Chance], Image]] = {
    "photo": photo,
    "pencil sketch": pencil_sketch,
    "oil painting": oil_painting,
    "pixel art": pixel_art,
    "stained glass": stained_glass,
    "ink drawing": ink_drawing,
}


def _contour(z: Image, part: NDArray[np.int16], owner: NDArray[np.int16], reach: int) -> NDArray[np.bool_]:
    """Where a nearer part or person borders on this sample: within `reach` samples."""
    line = np.zeros(z.shape, bool)
    for axis in (0, 1):
        for way in (-1, 1):
            here, there = [slice(None)] * 2, [slice(None)] * 2
            here[axis] = slice(reach, None) if way > 0 else slice(None, -reach)
            there[axis] = slice(None, -reach) if way > 0 else slice(reach, None)
            a, b = tuple(here), tuple(there)
            line[a] |= (z[b] - z[a] > 4.0) & ((part[b] != part[a]) | (owner[b] != owner[a]))
    return line


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One sample wider to every side."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    return wide


def _down(fine: Image) -> Image:
    """Means of blocks of 2 x 2 [2H,2W,...] -> [H,W,...]."""
    rows = fine[0::2] + fine[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _over(figure: Image, m: Motif, ground: Image) -> Image:
    """The figure [SIDE,...] where the mask is, with smooth edges, over a ground [SIZE,...]."""
    return _down(np.minimum(figure, 1) * m.mask[..., None]) + (1 - m.share)[..., None] * ground


def _blurred(picture: Image) -> Image:
    """A 3 x 3 binomial blur."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.25 * (padded[:-2] + padded[2:]) + 0.5 * padded[1:-1]
    return 0.25 * (rows[:, :-2] + rows[:, 2:]) + 0.5 * rows[:, 1:-1]


def _edges(place: Image) -> Image:
    """Brightness steps of the background [SIZE,SIZE]."""
    tone = place @ GREY
    step = np.zeros_like(tone)
    step[:, 1:] += np.abs(np.diff(tone, axis=1))
    step[1:] += np.abs(np.diff(tone, axis=0))
    return step


def _saturated(picture: Image, factor: float) -> Image:
    grey = (picture @ GREY)[..., None]
    return np.clip(grey + factor * (picture - grey), 0, 1)


def _painted(picture: Image, winner: NDArray[np.intp], relief: Image, shift: tuple[int, int]) -> tuple[Image, Image]:
    """Every stroke in the colour of its middle; the strokes moved by `shift`, wrapping round."""
    moved = np.roll(picture, (-shift[0], -shift[1]), axis=(0, 1)).reshape(-1, 3)[winner]
    return np.roll(moved, shift, axis=(0, 1)), np.roll(relief, shift, axis=(0, 1))


def _grain(chance: Chance) -> Image:
    return np.roll(grain(SIZE), (int(chance.between(0, SIZE)), int(chance.between(0, SIZE))), axis=(0, 1))
