"""demo/out/grid.png: prompts x columns, and below each line of pictures the same with the pose laid over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from kbdm_core.keypoints import Pose
from kbdm_core.skeleton import OPENPOSE_COLOURS, OPENPOSE_LIMBS

CELL, GAP, MARGIN = 160, 4, 8  # px; with five columns 832 wide, about what a README shows
HEADING, CAPTION, FOOTER = 26, 22, 22
FINER = 4  # the skeleton is drawn so many times larger, then reduced: smooth thin lines
LINE, CASING, OPACITY = 1.6, 3.2, 0.85  # px of the grid; a dark casing keeps the colours apart from the picture
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
POSE_HEADING, OVERLAID = "pose", "the pose laid\nover the\npictures:"


@dataclass(frozen=True, eq=False)
class GridRow:
    """A line of the grid: the prompt above it, the pose and its picture, and the picture of each column."""

    prompt: str
    pose: Pose
    pose_picture: Image.Image
    pictures: Sequence[Image.Image]


def draw_grid(rows: Sequence[GridRow], headings: Sequence[str], footer: str) -> Image.Image:
    """The grid. headings: of the columns after the pose's."""
    columns = (POSE_HEADING, *headings)
    width = 2 * MARGIN + len(columns) * CELL + (len(columns) - 1) * GAP
    grid = Image.new("RGB", (width, HEADING + len(rows) * row_height() + FOOTER), PAPER)
    draw = ImageDraw.Draw(grid)
    for number, heading in enumerate(columns):
        draw.text((left(number) + CELL / 2, HEADING / 2 + 2), heading, INK, font(14, bold=True), anchor="mm")
    for number, row in enumerate(rows):
        top = HEADING + number * row_height()
        draw.text((MARGIN, top + CAPTION / 2), fitting(row.prompt, 12, width - 2 * MARGIN), INK, font(12), anchor="lm")
        first, second = top + CAPTION, top + CAPTION + CELL + GAP
        grid.paste(enlarged(row.pose_picture), (left(0), first))
        draw.multiline_text((left(0) + CELL / 2, second + CELL / 2), OVERLAID, FAINT, font(13), anchor="mm", align="center")
        for column, picture in enumerate(row.pictures, start=1):
            grid.paste(enlarged(picture), (left(column), first))
            grid.paste(overlaid(enlarged(picture), row.pose), (left(column), second))
    draw.text((MARGIN, grid.height - FOOTER / 2 - 1), fitting(footer, 11, width - 2 * MARGIN), FAINT, font(11), anchor="lm")
    return grid


def left(column: int) -> int:
    """x of a column."""
    return MARGIN + column * (CELL + GAP)


def row_height() -> int:
    """Height of a row: its prompt, its pictures, the pictures with the pose, a gap after each line."""
    return CAPTION + 2 * (CELL + GAP) + GAP


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture in the size of a cell."""
    return picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)


def overlaid(picture: Image.Image, pose: Pose) -> Image.Image:
    """The picture with a thin skeleton of the pose, in the colours of the pose picture. The pose is scaled to it."""
    size = (FINER * picture.width, FINER * picture.height)
    pose = pose.scaled(*size)
    lines = Image.new("RGBA", size)
    draw = ImageDraw.Draw(lines)
    for person in pose.people:
        joints = person.openpose_joints()
        limbs = [(joints[a], joints[b], colour) for (a, b), colour in zip(OPENPOSE_LIMBS, OPENPOSE_COLOURS) if joints[a, 2] > 0 and joints[b, 2] > 0]
        for width, cased in ((CASING, True), (LINE, False)):
            for a, b, colour in limbs:
                shade = (0, 0, 0) if cased else tuple(round(255 * part) for part in colour)
                draw.line([*a[:2], *b[:2]], (*shade, 255), round(FINER * width))
    lines = lines.convert("RGBa").resize(picture.size, Image.Resampling.LANCZOS).convert("RGBA")  # premultiplied: no dark fringes
    lines.putalpha(lines.getchannel("A").point(lambda alpha: round(OPACITY * alpha)))
    return Image.alpha_composite(picture.convert("RGBA"), lines).convert("RGB")


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(font_manager.findfont(f"DejaVu Sans{':bold' if bold else ''}"), size)


def fitting(text: str, size: int, width: float) -> str:
    """The text, cut off with an ellipsis where it is longer than `width` px."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
