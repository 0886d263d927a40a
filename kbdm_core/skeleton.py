"""Skeleton pictures: the OpenPose style that ControlNet models expect, and the HumanSD style of pose-guided benchmarks.

Pixel (i, j) stands at x = j, y = i, as in OpenCV; nothing is anti-aliased, as in the published scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from colorsys import hls_to_rgb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import PoseError
from .keypoints import MAX_SIDE, Points, Pose

Colour = tuple[float, float, float]
Grid = NDArray[np.float32]
Shape = Callable[[Grid, Grid], NDArray[np.bool_]]  # x [1,w], y [h,1] -> inside [h,w]; in NumPy, which on so few pixels is faster than PyTorch

OUTLINE = 0.5  # px: OpenCV, which drew the pictures that the models were trained on, fills a shape with its outline
THINNEST = 1.5  # px, more than a pixel's diagonal: in a tiny picture a joint still paints all four pixels around it

OPENPOSE_LIMBS = (
    ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10))  # shoulders, arms, right leg
    + ((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))  # left leg, neck, eyes, ears
)
OPENPOSE_COLOURS: tuple[Colour, ...] = tuple(  # red to violet, one per joint; a limb has the colour of its number, darkened
    (r / 255, g / 255, b / 255)
    for r, g, b in (
        ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85), (0, 255, 170))
        + ((0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))
    )
)
OPENPOSE_LIMB_BRIGHTNESS = 0.6
OPENPOSE_STICK, OPENPOSE_DOT = 4 / 512, 3 / 512  # of the shorter side: half width of a limb and radius of a joint; face and hand points

HUMANSD_LIMBS = (
    ((0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8))  # face, ears to shoulders, upper arms
    + ((7, 9), (8, 10), (5, 11), (6, 12), (11, 13), (12, 14), (13, 15), (14, 16))  # lower arms, trunk, legs
)
HUMANSD_COLOURS: tuple[Colour, ...] = tuple(hls_to_rgb((i / 16 + 0.01) % 1, 0.6, 0.65) for i in range(16))
HUMANSD_RADIUS = 5.0  # pixels, whatever the size of the picture: as published
HUMANSD_PEOPLE = 10
HUMANSD_SCORE = 0.02


def render_openpose(pose: Pose, width: int, height: int) -> Tensor:
    """OpenPose skeleton of all people -> [H,W,3] float in 0..1.

    As ControlNet's annotator draws it (lllyasviel/ControlNet, annotator/openpose): limbs as ellipses, 4 px half width at 512 px, later
    over earlier, joints as discs upon them. Face and hand points are small white dots. Raises PoseError for an impossible size.
    """
    canvas, pose = _canvas(width, height), pose.scaled(width, height)
    stick, dot = (max(THINNEST, fraction * min(width, height) + OUTLINE) for fraction in (OPENPOSE_STICK, OPENPOSE_DOT))
    for person in pose.people:
        joints = person.openpose_joints()
        for (a, b), (red, green, blue) in zip(OPENPOSE_LIMBS, OPENPOSE_COLOURS):
            if joints[a, 2] > 0 and joints[b, 2] > 0:
                colour = tuple(OPENPOSE_LIMB_BRIGHTNESS * c for c in (red, green, blue))
                paint(canvas, joints[[a, b]], stick, colour, ellipse)
        for joint, colour in zip(joints, OPENPOSE_COLOURS):
            if joint[2] > 0:
                paint(canvas, joint[None], stick, colour, capsule)
        for point in person.extra:
            paint(canvas, point[None], dot, (1.0, 1.0, 1.0), capsule)
    return canvas


def render_humansd(pose: Pose, width: int, height: int) -> Tensor:
    """HumanSD skeleton of the first 10 people -> [H,W,3] float in 0..1.

    As published with HumanSD (Ju et al. 2023) and used by Stable-Pose: 16 limbs in 16 evenly spaced hues, lines 10 px wide with joints
    of radius 5 at their ends in the limb's colour; a limb is drawn when both scores exceed 0.02. Raises PoseError for an impossible size.
    """
    canvas, pose = _canvas(width, height), pose.scaled(width, height)
    for person in pose.people[:HUMANSD_PEOPLE]:
        for (a, b), colour in zip(HUMANSD_LIMBS, HUMANSD_COLOURS):
            if person.body[a, 2] > HUMANSD_SCORE and person.body[b, 2] > HUMANSD_SCORE:
                paint(canvas, person.body[[a, b]], HUMANSD_RADIUS + OUTLINE, colour, capsule)
    return canvas


def paint(canvas: Tensor, ends: Points, radius: float, colour: Colour | float, shape: Callable[[Points, float], Shape]) -> None:
    """Paint a shape around one or two points [1-2,2+] on a CPU canvas [H,W,...], in place; only the shape's bounding box is computed."""
    height, width = canvas.shape[:2]
    left, top = (max(0, int(v)) for v in ends[:, :2].min(axis=0) - radius)
    right, bottom = (int(v) + 1 for v in ends[:, :2].max(axis=0) + radius)
    right, bottom = min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32)[None, :]
    y = np.arange(top, bottom, dtype=np.float32)[:, None]
    canvas.numpy()[top:bottom, left:right][shape(ends, radius)(x, y)] = colour  # the array is the canvas's own memory


def capsule(ends: Points, radius: float) -> Shape:
    """All pixels within `radius` of the segment between the ends; of a single point, a disc."""
    (x0, y0), (x1, y1) = ends[0, :2].tolist(), ends[-1, :2].tolist()
    dx, dy = x1 - x0, y1 - y0
    length2 = max(dx * dx + dy * dy, 1e-12)

    def inside(x: Grid, y: Grid) -> NDArray[np.bool_]:
        along = (((x - x0) * dx + (y - y0) * dy) / length2).clip(0, 1)  # [h, w], 0 and 1 at the ends
        return (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2 <= radius * radius

    return inside


def ellipse(ends: Points, radius: float) -> Shape:
    """The ellipse whose long axis joins the ends and whose short half axis is `radius`."""
    (x0, y0), (x1, y1) = ends[0, :2].tolist(), ends[-1, :2].tolist()
    cx, cy, half = (x0 + x1) / 2, (y0 + y1) / 2, max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / 2, 1e-6)
    ux, uy = (x1 - x0) / (2 * half), (y1 - y0) / (2 * half)

    def inside(x: Grid, y: Grid) -> NDArray[np.bool_]:
        along, across = (x - cx) * ux + (y - cy) * uy, (y - cy) * ux - (x - cx) * uy  # [h, w]
        return (along / half) ** 2 + (across / radius) ** 2 <= 1

    return inside


def _canvas(width: int, height: int) -> Tensor:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise PoseError(f"a picture of {width} x {height} px was asked for; each side must be 1 to {MAX_SIDE} px.")
    return torch.zeros(height, width, 3)
