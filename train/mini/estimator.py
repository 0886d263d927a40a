"""The miniature's pose estimator: pictures of little people to COCO-17, every person at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kbdm_core.errors import PoseError
from kbdm_core.keypoints import Pose
from kbdm_core.safetensors_file import TensorFile, read, write
from train.mini.pose_maps import PoseMaps, decode

FORMAT = "kbdm.mini_estimator"
WIDTHS = (32, 48, 96, 128)  # channels at strides 2, 4, 8 and 16
DEEPEST = 16  # px of the coarsest cell: sides of pictures are multiples of it
PERSON_MAPS = (1, 2 * 17, 17)  # centre, offsets, visibility
RARE = 0.003  # how probable a peak is taken to be before anything is learnt: about its share of the cells


def _convolution(a: int, b: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution, normalised in 8 groups: the same for every batch, and no running averages that a checkpoint must hold."""
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(8, b))


class Residual(nn.Module):
    """x + two convolutions of it, rectified."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), nn.ReLU(), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


class PoseEstimator(nn.Module):
    """An encoder from stride 2 to 16 and a decoder back, each level of which sees the encoder's: 1.2 M weights, 0.3 GMAC at 128 px."""

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS):
        super().__init__()
        half, quarter, eighth, deepest = widths
        self.stem = nn.Sequential(_convolution(3, half, 2), nn.ReLU())
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(a, b, 2), nn.ReLU(), *(Residual(b) for _ in range(count)))
            for a, b, count in ((half, quarter, 1), (quarter, eighth, 1), (eighth, deepest, 2))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ((deepest, eighth), (eighth, quarter), (quarter, half)))
        self.up = nn.ModuleList([Residual(eighth), Residual(quarter), nn.Sequential(_convolution(half, half), nn.ReLU())])
        self.people = nn.Sequential(_convolution(quarter, 64), nn.ReLU(), nn.Conv2d(64, sum(PERSON_MAPS), 1))
        self.joints = nn.Conv2d(half, 17, 1)
        rare = math.log(RARE / (1 - RARE))
        nn.init.constant_(self.people[-1].bias[:1], rare)
        nn.init.constant_(self.joints.bias, rare)

    def forward(self, pictures: Tensor) -> PoseMaps:
        """pictures [B,3,H,W] in -1..1 -> maps of logits, float32. Raises PoseError if a side is no multiple of 16 px."""
        height, width = pictures.shape[-2:]
        if height % DEEPEST or width % DEEPEST or not height or not width:
            raise PoseError(f"a picture has {width} x {height} px; the pose estimator takes sides that are multiples of {DEEPEST} px.")
        levels = [self.stem(pictures.contiguous(memory_format=torch.channels_last))]
        for down in self.down:
            levels.append(down(levels[-1]))
        x, found = levels.pop(), []
        for lateral, up in zip(self.lateral, self.up):
            x = up(nn.functional.interpolate(lateral(x), scale_factor=2) + levels.pop())
            found.append(x)
        people = self.people(found[1]).float()  # [B, 52, h, w]
        centres, offsets, visible = people.split(PERSON_MAPS, 1)
        return PoseMaps(centres[:, 0], offsets.unflatten(1, (17, 2)), visible, self.joints(found[2]).float())

    @torch.inference_mode()
    def estimate(self, pictures: Tensor, batch: int = 32) -> list[Pose]:
        """The people in pictures [B,3,H,W] in -1..1 -> a Pose of W x H px of each, people from left to right; see `decode`."""
        device = self.joints.weight.device
        return [pose for part in pictures.split(batch) for pose in decode(self(part.to(device)).probabilities())]


def load_estimator(path: Path) -> PoseEstimator:
    """Read an estimator that `save_estimator` wrote, in float32, frozen. Raises FileFormatError for another file."""
    estimator, _ = read_estimator(path)
    return estimator


def read_estimator(path: Path) -> tuple[PoseEstimator, dict[str, Any]]:
    """The estimator and its file's config: `training`, and `judged`, its own error. Raises FileFormatError for another file."""
    file = read(path, FORMAT)
    estimator = PoseEstimator(_widths(file))
    tensors = {key: file.tensor(key, tuple(value.shape)).float() for key, value in estimator.state_dict().items()}
    estimator.load_state_dict(tensors)
    return estimator.eval().requires_grad_(False), file.config


def save_estimator(path: Path, estimator: PoseEstimator, training: dict[str, Any], judged: dict[str, Any]) -> None:
    """Write the estimator in float16, with its recipe and its own error."""
    tensors = {key: value.half() for key, value in estimator.state_dict().items()}
    write(path, tensors, {"format": FORMAT, "format_version": "1"}, {"training": training, "judged": judged})


def _widths(file: TensorFile) -> tuple[int, int, int, int]:
    """The widths of the levels, from the shapes of the convolutions that lead to them."""
    names = ("stem.0.0.weight", "down.0.0.0.weight", "down.1.0.0.weight", "down.2.0.0.weight")
    half, quarter, eighth, deepest = (file.tensor(name, (None, None, 3, 3)).shape[0] for name in names)
    if any(width % 8 or not 0 < width <= 1024 for width in (half, quarter, eighth, deepest)):
        raise file.fail("widths", "multiples of 8 up to 1024", (half, quarter, eighth, deepest))
    return half, quarter, eighth, deepest
