"""Where a picture comes to lie on its bucket's canvas: one affine map that moves the pixels and the keypoints alike.

Coordinates of the map have their origin at the picture's upper left corner: pixel j covers j to j+1. Poses are in the pixels of the
skeleton pictures, where pixel j stands at x = j (see kbdm_core/skeleton.py), half a pixel less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Person, Points, Pose
from train.examples.buckets import Bucket

PIXEL_CENTRE = 0.5
NEGLIGIBLE = 1e-6  # px: what the samples of a picture may differ by from a whole pixel

BODY_MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)  # COCO-17: the joint that stands there in the mirror image
JAW, BROWS, NOSE = tuple(range(16, -1, -1)), tuple(range(26, 16, -1)), (27, 28, 29, 30, 35, 34, 33, 32, 31)
EYES = (45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40)
MOUTH = (54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65)
FACE_68 = (*JAW, *BROWS, *NOSE, *EYES, *MOUTH)
FACE_MIRRORED = {68: FACE_68, 70: (*FACE_68, 69, 68)}  # OpenPose's 70 are the 68 landmarks and the pupils; others keep their order


@dataclass(frozen=True, eq=False)
class Placement:
    """matrix [2,3]: (x, y, 1) on the picture -> (x, y) on the bucket's canvas, which lies within the picture. Negative determinant: mirrored."""

    matrix: NDArray[np.float64]
    bucket: Bucket

    @property
    def is_mirrored(self) -> bool:
        """Whether left has become right."""
        return bool(np.linalg.det(self.matrix[:, :2]) < 0)

    def picture(self, picture: Image.Image) -> Image.Image:
        """The picture on the canvas, RGB: scaled without aliasing (Lanczos), then turned (bicubic) if the map does turn."""
        width, height = self.bucket.width, self.bucket.height
        corners = _moved(_inverse(self.matrix), np.array([(0, 0), (width, 0), (0, height), (width, height)], dtype=np.float64))
        box = np.clip([corners.min(axis=0), corners.max(axis=0)], 0, picture.size)  # of the canvas on the picture; [[left, top], [right, bottom]]
        scale = abs(np.linalg.det(self.matrix[:, :2])) ** 0.5
        size = np.maximum(1, ((box[1] - box[0]) * scale).round()).astype(int)
        scaled = picture.resize(tuple(size.tolist()), Image.Resampling.LANCZOS, tuple(box.flatten().tolist()))
        unscale = np.column_stack([np.diag((box[1] - box[0]) / size), box[0]])
        rest = _after(self.matrix, unscale)  # from the scaled picture to the canvas
        if np.abs(rest - _IDENTITY).max() < NEGLIGIBLE:
            return scaled
        if np.abs(rest - [[-1, 0, width], [0, 1, 0]]).max() < NEGLIGIBLE:
            return ImageOps.mirror(scaled)
        return scaled.transform((width, height), Image.Transform.AFFINE, tuple(_inverse(rest).flatten().tolist()), Image.Resampling.BICUBIC)

    def pose(self, pose: Pose) -> Pose:
        """The pose on the canvas. Points that leave it become 0, 0, 0, and people without any point are left out."""
        people = (self._person(mirrored(person) if self.is_mirrored else person) for person in pose.people)
        return Pose(tuple(person for person in people if person.is_visible), self.bucket.width, self.bucket.height)

    def _person(self, person: Person) -> Person:
        lists = (self._points(points) for points in (person.body, person.face, person.hand_left, person.hand_right))
        return Person(*lists, None if person.neck is None else self._points(person.neck[None])[0])

    def _points(self, points: Points) -> Points:
        where = _moved(self.matrix, points[:, :2] + PIXEL_CENTRE)
        inside = ((where >= 0) & (where < (self.bucket.width, self.bucket.height))).all(axis=1)
        seen = (points[:, 2] > 0) & inside
        return np.where(seen[:, None], np.column_stack([where - PIXEL_CENTRE, points[:, 2]]), 0.0)


def placement(
    size: tuple[int, int], bucket: Bucket, mirror: bool, zoom: float = 1.0, angle: float = 0.0, at: tuple[float, float] = (0.5, 0.5)
) -> Placement:
    """How a picture of `size` (width, height) covers the bucket: scaled by `zoom` times as much as is needed, turned by `angle` degrees
    counter-clockwise, `at` which share (0..1 in x and y) of the room that is left, then mirrored or not.

    What is needed grows with the angle: the canvas never reaches beyond the picture. Raises PoseError if zoom < 1.
    """
    if zoom < 1:
        raise PoseError(f"a picture was to be scaled to {zoom} of what covers the bucket; expected at least 1.")
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cos, sin], [-sin, cos]])  # y points down
    canvas, source = np.array([bucket.width, bucket.height], dtype=np.float64), np.array(size, dtype=np.float64)
    around = np.abs(turn) @ canvas  # sides of the turned canvas's bounding box
    scale = zoom * (around / source).max()
    centre = around / scale / 2 + np.array(at) * (source - around / scale)
    linear = scale * turn
    matrix = np.column_stack([linear, canvas / 2 - linear @ centre])
    return Placement(_after(np.array([[-1, 0, bucket.width], [0, 1, 0]]), matrix) if mirror else matrix, bucket)


def mirrored(person: Person) -> Person:
    """The person with left and right exchanged in name, not in place: joints, hands, and the landmarks of a face of 68 or 70 points."""
    order = FACE_MIRRORED.get(len(person.face))
    face = person.face if order is None else person.face[list(order)]
    return Person(person.body[list(BODY_MIRRORED)], face, person.hand_right, person.hand_left, person.neck)


_IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def _after(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map that applies `first`, then `second`, all [2,3]."""
    return second @ np.vstack([first, (0, 0, 1)])


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def _moved(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [N,2] -> [N,2]."""
    return points @ matrix[:, :2].T + matrix[:, 2]
