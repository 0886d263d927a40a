"""Poses as values: people with COCO-17 bodies on a canvas, read from POSE_KEYPOINT, OpenPose JSON and COCO JSON.

POSE_KEYPOINT is the type of the common ControlNet preprocessor packs (comfyui_controlnet_aux): a list, one dict per image,
`{people: [{pose_keypoints_2d, face_keypoints_2d, hand_left_keypoints_2d, hand_right_keypoints_2d}], canvas_width, canvas_height}`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from .errors import PoseError

Points = NDArray[np.float64]  # [N, 3]: x, y in pixels, confidence in 0..1; a missing point is 0, 0, 0

MAX_SIDE = 16384  # ComfyUI's own MAX_RESOLUTION
ABSURD_CANVASES = 10  # a joint this many canvases away is a detector's accident, not a joint
LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6

# Body layouts by number of joints: where each COCO-17 joint stands in the source, and the neck (None: the layout has none).
BODY_LAYOUTS: dict[int, tuple[tuple[int, ...], int | None]] = {
    17: (tuple(range(17)), None),  # COCO
    18: ((0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10), 1),  # OpenPose COCO
    25: ((0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11), 1),  # OpenPose BODY_25
}
OPENPOSE_FROM_COCO = (0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # OpenPose's 18 in order, without the neck (1)
POINT_LISTS = ("pose_keypoints_2d", "face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d")


def no_points() -> Points:
    """An empty list of points [0,3]."""
    return np.zeros((0, 3))


@dataclass(frozen=True, eq=False)
class Person:
    """One person. body [17,3] in COCO-17 order; face [F,3], hands [21,3] or empty; neck [3] if the source detected one.

    Columns are x, y in pixels of the canvas and confidence in 0..1; a missing point is 0, 0, 0. Raises PoseError for other shapes.
    """

    body: Points
    face: Points = field(default_factory=no_points)
    hand_left: Points = field(default_factory=no_points)
    hand_right: Points = field(default_factory=no_points)
    neck: Points | None = None

    def __post_init__(self) -> None:
        if self.body.shape != (17, 3):
            raise PoseError(f"a person's body has shape {self.body.shape}; COCO-17 is (17, 3): x, y, confidence of 17 joints.")

    @property
    def extra(self) -> Points:
        """The visible points of face and hands [E,3]."""
        points = np.concatenate([self.face, self.hand_left, self.hand_right])
        return points[points[:, 2] > 0]

    @property
    def is_visible(self) -> bool:
        """Whether any point of the person was seen."""
        return bool((self.body[:, 2] > 0).any()) or len(self.extra) > 0

    def openpose_joints(self) -> Points:
        """The 18 joints of OpenPose COCO [18,3]. The neck is the detected one, else the mean of the shoulders if both are visible."""
        shoulders = self.body[[LEFT_SHOULDER, RIGHT_SHOULDER]]
        neck = self.neck
        if neck is None or neck[2] <= 0:
            neck = shoulders.mean(axis=0) if (shoulders[:, 2] > 0).all() else np.zeros(3)
        return np.insert(self.body[list(OPENPOSE_FROM_COCO)], 1, neck, axis=0)

    def scaled(self, x: float, y: float) -> Person:
        """The person with coordinates multiplied by x and y."""
        by = np.array([x, y, 1.0])
        neck = None if self.neck is None else self.neck * by
        return Person(self.body * by, self.face * by, self.hand_left * by, self.hand_right * by, neck)


@dataclass(frozen=True, eq=False)
class Pose:
    """The people of one picture and its size in pixels."""

    people: tuple[Person, ...]
    width: int
    height: int

    def scaled(self, width: int, height: int) -> Pose:
        """The pose on a canvas of another size, stretched to fill it."""
        if (width, height) == (self.width, self.height):
            return self
        return Pose(tuple(p.scaled(width / self.width, height / self.height) for p in self.people), width, height)

    def only(self, person: int) -> Pose:
        """The pose with that person alone, or with nobody if there are fewer people."""
        return replace(self, people=self.people[person : person + 1])


def parse_pose_keypoint(value: object, width: int = 0, height: int = 0) -> list[Pose]:
    """POSE_KEYPOINT -> one Pose per frame.

    A single frame's dict is taken as a list of one; frames, people and point lists may be None. Bodies of 17 (COCO), 18 (OpenPose
    COCO) or 25 (BODY_25) joints, in pixels or normalised to 0..1. Joints that are not finite, at (0, 0) or absurdly far away count as
    missing, people without any visible point are left out. width, height: the size wanted in pixels, 0 = as the source; coordinates
    are scaled to it, and a source without a canvas size is read in it. Raises PoseError for anything else.
    """
    _check_size(width, height)
    frames = [value] if isinstance(value, dict) else value
    if not isinstance(frames, Sequence) or isinstance(frames, str | bytes):
        raise PoseError(f"POSE_KEYPOINT is a list with one dict per image, got {_name(value)}. Connect an OpenPose or DWPose preprocessor.")
    poses = [None if frame is None else _openpose_frame(frame, f"frame {i}", width, height) for i, frame in enumerate(frames)]
    known = next((pose for pose in poses if pose is not None), Pose((), width, height) if width and height else None)
    if not poses or known is None:
        raise PoseError(f"the pose holds {'no frame' if not poses else 'only empty frames'}; at least one with a canvas size is needed.")
    return [Pose((), known.width, known.height) if pose is None else pose for pose in poses]


def parse_pose_json(text: str, width: int = 0, height: int = 0) -> list[Pose]:
    """JSON text -> one Pose per frame. Three kinds are read, width and height as in `parse_pose_keypoint`:

    OpenPose JSON (a dict with `people`) or a list of them (POSE_KEYPOINT saved to a file); COCO keypoints (`images` and `annotations`,
    joined on image_id, one frame per image; joints with v=0 are missing); a bare list of COCO annotations, which tells no canvas size.
    Raises PoseError.
    """
    _check_size(width, height)
    if not isinstance(text, str) or not text.strip():
        raise PoseError("the pose JSON is empty: paste the text of an OpenPose or COCO keypoints file.")
    try:
        value = json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise PoseError(f"the pose JSON cannot be read ({error}): paste the whole text of an OpenPose or COCO keypoints file.") from error
    if isinstance(value, dict) and "annotations" in value:
        return _coco_poses(value["annotations"], value.get("images"), width, height)
    entries = [value] if isinstance(value, dict) else value
    if isinstance(entries, list) and any(isinstance(entry, dict) and "keypoints" in entry for entry in entries):
        return _coco_poses(entries, None, width, height)
    return parse_pose_keypoint(value, width, height)


def to_pose_keypoint(poses: Sequence[Pose]) -> list[dict]:
    """Poses -> POSE_KEYPOINT: plain lists of numbers in pixels, bodies of 18 OpenPose joints (neck: see `Person.openpose_joints`)."""

    def person_dict(person: Person) -> dict:
        lists = (person.openpose_joints(), person.face, person.hand_left, person.hand_right)
        return {name: points.flatten().tolist() for name, points in zip(POINT_LISTS, lists)}

    return [{"people": [person_dict(p) for p in pose.people], "canvas_height": pose.height, "canvas_width": pose.width} for pose in poses]


def _openpose_frame(frame: object, where: str, width: int, height: int) -> Pose:
    if not isinstance(frame, dict) or "people" not in frame:
        kind = "an animal pose (AP10K)" if isinstance(frame, dict) and "animals" in frame else _name(frame)
        raise PoseError(f"{where} is {kind}; expected OpenPose's dict with `people` (or COCO's with `annotations`).")
    entries = [] if frame["people"] is None else _list(frame["people"], f"{where}: `people`")
    source = _canvas(frame.get("canvas_width"), frame.get("canvas_height"), width, height, where)
    people = []
    for i, entry in enumerate(entries):
        if entry is not None:
            entry = _dict(entry, f"{where}, person {i}")
            people.append([_triples(entry.get(name), f"{where}, person {i}: {name}") for name in POINT_LISTS])
    for kind in zip(*people):  # one kind of list at a time: some packs write bodies normalised and faces in pixels
        for points in kind:
            points[(points[:, :2] == 0).all(axis=1)] = 0  # OpenPose's "not found", whatever its confidence says
            _drop_missing(points, *source)
        if _is_normalised(np.concatenate(kind), *source):
            for points in kind:
                points[:, :2] *= source
    return _pose([_person(*lists, where) for lists in people], source, width, height)


def _coco_poses(annotations: object, images: object, width: int, height: int) -> list[Pose]:
    people: dict[object, list[Person]] = {}
    canvases: dict[object, tuple[int, int]] = {}
    if images is not None:
        for image in _list(images, "`images`"):
            image = _dict(image, "an entry of `images`")
            key = _image_id(image.get("id"))
            canvases[key] = _canvas(image.get("width"), image.get("height"), width, height, f"image {key}")
            people[key] = []
    for i, annotation in enumerate(_list(annotations, "`annotations`")):
        where = f"annotation {i}"
        annotation = _dict(annotation, where)
        key = _image_id(annotation.get("image_id"))
        if images is None and key not in people:
            canvases[key] = _canvas(None, None, width, height, "a bare list of COCO annotations")
            people[key] = []
        if key not in people:
            raise PoseError(f"{where} belongs to image {key}, which `images` does not list.")
        points = _triples(annotation.get("keypoints"), f"{where}: keypoints")
        if len(points) != 17:
            raise PoseError(f"{where} has {len(points)} keypoints; expected COCO-17 (an instances or wholebody file does not fit).")
        _drop_missing(points, *canvases[key])
        people[key].append(Person(points))
    if not people:
        raise PoseError("the COCO JSON holds no image and no annotation; at least one is needed.")
    return [_pose(people[key], canvases[key], width, height) for key in people]


def _pose(people: Sequence[Person], source: tuple[int, int], width: int, height: int) -> Pose:
    pose = Pose(tuple(person for person in people if person.is_visible), *source)
    return pose.scaled(width or pose.width, height or pose.height)


def _person(body: Points, face: Points, hand_left: Points, hand_right: Points, where: str) -> Person:
    if len(body) == 0:
        return Person(np.zeros((17, 3)), face, hand_left, hand_right)
    if len(body) not in BODY_LAYOUTS:
        raise PoseError(f"{where}: a body has {len(body)} joints; expected 17 (COCO), 18 (OpenPose COCO) or 25 (BODY_25).")
    order, neck = BODY_LAYOUTS[len(body)]
    return Person(body[list(order)], face, hand_left, hand_right, None if neck is None else body[neck])


def _triples(value: object, where: str) -> Points:
    """x, y, confidence in a flat list [3N], or in triples [N,3] -> [N,3]. None is an empty list, a None inside it a NaN."""
    try:
        points = np.array([] if value is None else value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PoseError(f"{where} is not a list of numbers ({error}); expected x, y, confidence of each joint.") from error
    if points.size % 3 or not (points.ndim == 1 or (points.ndim == 2 and points.shape[1] == 3)):
        raise PoseError(f"{where} has shape {points.shape}; expected x, y, confidence of each joint, so 3 numbers a joint.")
    return points.reshape(-1, 3)


def _drop_missing(points: Points, width: int, height: int) -> None:
    """Set every point that nobody can mean to 0, 0, 0 and confidences above 1 (COCO's v=2) to 1, in place."""
    with np.errstate(invalid="ignore"):
        near = (np.abs(points[:, :2]) <= ABSURD_CANVASES * np.array([width, height])).all(axis=1)  # False for NaN
        seen = near & np.isfinite(points[:, 2]) & (points[:, 2] > 0)
    points[~seen] = 0
    np.minimum(points[:, 2], 1, out=points[:, 2])


def _is_normalised(points: Points, width: int, height: int) -> bool:
    """Coordinates in 0..1 instead of pixels: no visible one reaches beyond 2 (0..1 with joints somewhat outside the canvas)."""
    seen = points[points[:, 2] > 0, :2]
    return min(width, height) > 4 and len(seen) > 0 and bool((np.abs(seen) <= 2).all())


def _canvas(width: object, height: object, wanted_width: int, wanted_height: int, where: str) -> tuple[int, int]:
    """The canvas of the source; a side that it does not tell is taken from the size wanted."""
    sides = [
        round(side) if isinstance(side, Real) and 1 <= side <= MAX_SIDE else wanted
        for side, wanted in ((width, wanted_width), (height, wanted_height))
    ]
    if 0 in sides:
        raise PoseError(
            f"{where} has no valid canvas size (got {_short(width)} x {_short(height)}; 1 to {MAX_SIDE} px are possible): "
            "set width and height."
        )
    return sides[0], sides[1]


def _check_size(width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        if not isinstance(side, int) or not 0 <= side <= MAX_SIDE:
            raise PoseError(f"{name} is {_short(side)}; expected 0 (as the source) to {MAX_SIDE} px.")


def _image_id(value: object) -> int | str | None:
    if value is not None and not isinstance(value, int | str):
        raise PoseError(f"a COCO image id is {_name(value)}; expected a whole number or a text.")
    return value


def _list(value: object, where: str) -> Sequence:
    if not isinstance(value, list | tuple):
        raise PoseError(f"{where} is {_name(value)}; expected a list.")
    return value


def _dict(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise PoseError(f"{where} is {_name(value)}; expected a dict.")
    return value


def _name(value: object) -> str:
    """What was given, in a few words."""
    return f"a dict with {_short(list(value))}" if isinstance(value, dict) else f"{type(value).__name__} {_short(value)}"


def _short(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "something too large to print"
