"""Poses as maps that a convolutional network can give: people's centres, joints from there, and each joint by itself.

Points are pixels whose centres stand at whole numbers. A cell of a map of stride s covers s pixels: cell i stands at s i + (s - 1) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kbdm_core.keypoints import Person, Pose

PEOPLE_STRIDE, JOINT_STRIDE = 4, 2
WIDTH = 1.0  # standard deviation of a peak, in cells
UNIT = 16.0  # px in which offsets are told, so that they are of size 1
TORSO = [5, 6, 11, 12]  # shoulders and hips
NEAR = 1.5  # cells around a centre, along both axes, in which offsets are told, and within which a peak is not another person
CENTRE = 0.4  # a peak of centres this strong is a person
VISIBLE = 0.3  # a joint this probably visible is told: one left out is surely missed, one told may be met
PEAK, SNAP = 0.2, 10.0  # a joint moves to a peak of its own map this strong, if it is this near in px


class PoseMaps(NamedTuple):
    """Maps of a batch: h, w at PEOPLE_STRIDE, h', w' at JOINT_STRIDE. Of the network all but the offsets are logits, else probabilities."""

    centres: Tensor
    """[B,h,w]: peaks at people's centres."""
    offsets: Tensor
    """[B,17,2,h,w]: from the cell to the joints of the person whose centre is there; x, y in UNIT."""
    visible: Tensor
    """[B,17,h,w]: whether these joints are visible."""
    joints: Tensor
    """[B,17,h',w']: peaks at all people's visible joints."""

    def probabilities(self) -> PoseMaps:
        """Of logits."""
        return PoseMaps(self.centres.sigmoid(), self.offsets, self.visible.sigmoid(), self.joints.sigmoid())


def joint_table(poses: Sequence[Pose]) -> Tensor:
    """Bodies of poses -> [poses,P,17,3] float32, P people at most; 0 where there are fewer."""
    most = max((len(pose.people) for pose in poses), default=0)
    table = torch.zeros(len(poses), most, 17, 3)
    for number, pose in enumerate(poses):
        for i, person in enumerate(pose.people):
            table[number, i] = torch.from_numpy(person.body)
    return table


def centres_of(joints: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of a person's visible shoulders and hips, of all visible joints without them. joints [B,P,17,3] -> xy [B,P,2], is anybody [B,P]."""
    seen = joints[..., 2:] > 0  # [B, P, 17, 1]
    torso = seen.clone()
    torso[:, :, [i for i in range(17) if i not in TORSO]] = False
    used = torch.where(torso.any(-2, keepdim=True), torso, seen).to(joints.dtype)
    return (joints[..., :2] * used).sum(-2) / used.sum(-2).clamp(min=1), seen.any(-2).squeeze(-1)


def encode(joints: Tensor, height: int, width: int) -> tuple[PoseMaps, Tensor]:
    """The true maps of people in pictures of that size. joints [B,P,17,3] -> maps, and the cells [B,h,w] in which offsets are told.

    A peak is exp(-d^2 / 2 WIDTH^2), d the distance in cells; where peaks meet, the higher counts. A cell near two centres is the nearer's.
    """
    xy, seen = joints[..., :2], joints[..., 2] > 0
    centre, there = centres_of(joints)
    x, y = cells(width, PEOPLE_STRIDE), cells(height, PEOPLE_STRIDE)
    across = torch.maximum((centre[..., 0, None] - x)[..., None, :].abs(), (centre[..., 1, None] - y)[..., None].abs())  # [B, P, h, w]
    across = torch.where(there[..., None, None], across, torch.inf)
    nearest, owner = across.min(1)  # [B, h, w]
    pick = torch.arange(len(joints))[:, None, None]
    at = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)  # [h, w, 2]
    near, visible = nearest <= NEAR * PEOPLE_STRIDE, seen[pick, owner]  # [B, h, w], [B, h, w, 17]
    offsets = (xy[pick, owner] - at[:, :, None]) / UNIT * (near[..., None] & visible)[..., None]  # [B, h, w, 17, 2]
    maps = PoseMaps(
        peaks(centre[:, :, None], there[:, :, None], height, width, PEOPLE_STRIDE)[:, 0],
        offsets.permute(0, 3, 4, 1, 2),
        (visible & near[..., None]).permute(0, 3, 1, 2).to(xy.dtype),
        peaks(xy, seen, height, width, JOINT_STRIDE),
    )
    return maps, near


def peaks(xy: Tensor, seen: Tensor, height: int, width: int, stride: int) -> Tensor:
    """One map a kind of point, with a peak for each person's. xy [B,P,J,2], seen [B,P,J] -> [B,J,h,w]."""
    total = xy.new_zeros(xy.shape[0], xy.shape[2], height // stride, width // stride)
    for person in range(xy.shape[1]):
        dx, dy = ((xy[:, person, :, i, None] - cells(side, stride)) / (stride * WIDTH) for i, side in ((0, width), (1, height)))
        rows = (-0.5 * dy.square()).exp() * seen[:, person, :, None]
        total = torch.maximum(total, rows[..., None] * (-0.5 * dx.square()).exp()[:, :, None])
    return total


def cells(side: int, stride: int) -> Tensor:
    """Where the cells of a side of that many pixels stand [side / stride]."""
    return stride * torch.arange(side // stride, dtype=torch.float32) + (stride - 1) / 2


def decode(maps: PoseMaps) -> list[Pose]:
    """The people of maps of probabilities, in each picture from left to right by their centres.

    A centre is a local maximum of at least CENTRE, with no stronger one within NEAR; its joints stand at its offsets, and each moves to the
    best peak of its own map within SNAP. Joints of less than VISIBLE are 0, 0, 0, people without any are left out.
    """
    height, width = (JOINT_STRIDE * side for side in maps.joints.shape[-2:])
    tops = _maxima(maps.centres) & (maps.centres >= CENTRE)
    strong = _maxima(maps.joints) & (maps.joints >= PEAK)
    arrays = [value.cpu().numpy() for value in (*maps, tops, strong)]
    return [Pose(_people(*picture, width, height), width, height) for picture in zip(*arrays)]


def _people(
    centres: NDArray, offsets: NDArray, visible: NDArray, joints: NDArray, tops: NDArray, strong: NDArray, width: int, height: int
) -> tuple[Person, ...]:
    """The people of one picture; the arguments are those of PoseMaps, and where centres and joints have maxima."""
    number, *where = np.nonzero(strong)
    places, strengths = _refined(joints, number, *where), joints[number, where[0], where[1]]
    people = []
    for y, x in _kept(centres, np.argwhere(tops)):
        at = PEOPLE_STRIDE * np.array([x, y]) + (PEOPLE_STRIDE - 1) / 2
        points = _snapped(at + UNIT * offsets[:, :, y, x].astype(np.float64), number, places, strengths)
        sure = visible[:, y, x].astype(np.float64)
        body = np.column_stack([np.clip(points, 0, (width - 1, height - 1)), sure.clip(max=1)])
        if (sure >= VISIBLE).any():
            people.append((at[0], Person(np.where(sure[:, None] >= VISIBLE, body, 0.0))))
    return tuple(person for _, person in sorted(people, key=lambda found: found[0]))


def _maxima(maps: Tensor) -> Tensor:
    """Where a map [...,h,w] is the highest of the 3 x 3 cells around."""
    return maps == torch.nn.functional.max_pool2d(maps, 3, stride=1, padding=1)


def _kept(centres: NDArray, found: NDArray) -> list[tuple[int, int]]:
    """Of the maxima found [n,2], rows and columns: each that has no stronger one near. Equal neighbours, of a centre between cells, are one."""
    kept: list[tuple[int, int]] = []
    for y, x in sorted(map(tuple, found.tolist()), key=lambda cell: -centres[cell]):
        if all(max(abs(y - other[0]), abs(x - other[1])) > NEAR for other in kept):
            kept.append((y, x))
    return kept


def _refined(joints: NDArray, number: NDArray, y: NDArray, x: NDArray) -> NDArray[np.float64]:
    """Maxima of maps [17,h',w'] to a part of a cell, by a parabola through the logarithms of neighbours -> x, y in px [n,2]."""
    logarithm = np.log(np.maximum(np.pad(joints, ((0, 0), (1, 1), (1, 1)), mode="reflect"), 1e-6)).astype(np.float64)
    middle = logarithm[number, y + 1, x + 1]
    found = []
    for cell, (dy, dx) in ((x, (0, 1)), (y, (1, 0))):
        before, after = logarithm[number, y + 1 - dy, x + 1 - dx], logarithm[number, y + 1 + dy, x + 1 + dx]
        bend = np.maximum(2 * middle - before - after, 1e-6)
        found.append(JOINT_STRIDE * (cell + np.clip((after - before) / (2 * bend), -0.5, 0.5)) + (JOINT_STRIDE - 1) / 2)
    return np.column_stack(found)


def _snapped(points: NDArray, number: NDArray, places: NDArray, strengths: NDArray) -> NDArray[np.float64]:
    """Joints [17,2] at the best peak of their own number within SNAP: strong, and the nearer the better; where they were without any."""
    away = np.linalg.norm(places - points[number], axis=1)
    worth = strengths * np.exp(-0.5 * (away / (SNAP / 2)) ** 2)
    points = points.copy()
    for best in np.argsort(worth):  # the last to write is the best
        if away[best] <= SNAP:
            points[number[best]] = places[best]
    return points
