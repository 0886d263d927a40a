"""What the adapter does for poses, on the miniature: held-out scenes drawn again with some of its sections on, column by column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Interval
from diffusers import AutoencoderKL
from torch import Tensor

from kbdm_core.adapter import SECTIONS, KBDMAdapter
from kbdm_core.guidance import Guidance, adapter_guidance
from kbdm_core.keypoints import Person, Pose
from train.adapter.conditions import KBAnswers
from train.adapter.sampling import Drawing, decode, draw_latents
from train.base.diffusion import LATENT_SCALE
from train.base.text import TextEncoder
from train.examples.buckets import LATENT_STRIDE
from train.examples.masks import mask_key, pose_picture
from train.host import GuidedUNet
from train.mini.estimator import PoseEstimator
from train.mini.scenes import SIDE, as_batch
from train.mini.world.dataset import SPLITS

COLUMNS: dict[str, tuple[str, ...]] = {  # name: sections of the adapter that are on, at strength 1
    "base": (),
    "kb": ("kb",),
    "dm": ("dm",),
    "pose": ("pose",),
    "kb+dm": ("kb", "dm"),
    "full": SECTIONS,
}
LATENT = (4, SIDE // LATENT_STRIDE, SIDE // LATENT_STRIDE)
SEEDS_APART = len(SPLITS["held-out"])  # between the noise seeds of one scene: no two pictures share their noise
DRAWING = 1  # part of the keys: another number when pictures come to be drawn otherwise
DECIMALS = 3  # of joints found, px
ENCODED = 32  # pictures at a time


@dataclass(frozen=True)
class EvaluationTable:
    """[evaluation]: which held-out scenes are drawn, with which sections of the adapter, and how."""

    scenes: Annotated[int, Interval(ge=1, le=SEEDS_APART)] = 500
    """Held-out scenes that lend their captions and poses."""
    seeds: Annotated[int, Ge(1)] = 3
    """Sampling seeds, from [run] seed on: every column draws every scene from the noise of each."""
    columns: tuple[Literal["base", "kb", "dm", "pose", "kb+dm", "full"], ...] = ("base", "kb", "kb+dm", "full")
    """Sections of the adapter that are on: base = none of them, nor the pose; full = all. Files that no column needs may be missing."""
    steps: Annotated[int, Interval(ge=1, le=1000)] = 50
    """Steps of DDIM."""
    scale: Annotated[float, Ge(0)] = 7.5
    """Classifier-free guidance scale."""
    negative_strength: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """The negative prompt's share of the adapter, as KB-DM Adapter Apply has it: 1 = as in training, 0 = the scale pushes towards the pose, too."""
    batch: Annotated[int, Ge(1)] = 25
    """Pictures at a time. A stopped run loses those under way."""
    decompose: Literal["phrases", "off"] = "phrases"
    """How a caption asks the knowledge base: by its phrases, fused by their mean, or as a whole."""


def noise_seed(number: int, sampling_seed: int) -> int:
    """The seed of a picture's noise: of the scene's number in its split and the sampling seed alone.

    PyTorch's CPU generator takes the lower 32 bits of a seed, so these stay small. ComfyUI's samplers take the same number.
    """
    return SEEDS_APART * sampling_seed + number


@dataclass(frozen=True, eq=False)
class ColumnDrawing:
    """Everything that latents are drawn from. captions, poses: those of the held-out scenes from number 0 on.

    adapter, answers: None where no column needs them. made_with: what else decides a picture, by name: hashes of the files `checkpoint`,
    `text`, `adapter` and `knowledge_base`, and `precision` and `device`.
    """

    table: EvaluationTable
    captions: Sequence[str]
    poses: Sequence[Pose]
    guided: GuidedUNet
    text: TextEncoder
    adapter: KBDMAdapter | None
    answers: KBAnswers | None
    made_with: Mapping[str, str]
    autocast: Callable[[], AbstractContextManager]

    def sections(self, column: str) -> tuple[str, ...]:
        """Those that are on: of the column's those that the adapter has."""
        return tuple(name for name in COLUMNS[column] if name in self.adapter.sections)

    def keys(self, column: str, sampling_seed: int) -> list[str]:
        """Content keys of the latents of all scenes, made of everything that decides them: with another adapter those of the base stay the same."""
        sections = self.sections(column)
        names = ["checkpoint", "text", "precision", "device"] + ["adapter"] * bool(sections) + ["knowledge_base"] * ("kb" in sections)
        settings = ["steps", "scale"] + ["decompose"] * ("kb" in sections) + ["negative_strength"] * bool(sections)
        decided = {name: self.made_with[name] for name in names} | {name: getattr(self.table, name) for name in settings}
        common = json.dumps({"drawing": DRAWING, "sections": sections, **decided}, sort_keys=True)
        of_scenes = enumerate(zip(self.captions, self.poses))
        texts = (f"{common}\0{caption}\0{mask_key(pose)}\0{noise_seed(number, sampling_seed)}" for number, (caption, pose) in of_scenes)
        return [hashlib.sha256(text.encode()).hexdigest() for text in texts]

    def latents(
        self, column: str, sampling_seed: int, numbers: Sequence[int], steps: int | None = None, check: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Latents of scenes by number [n,4,16,16], scaled as the UNet sees them, float32 on the CPU. steps: others than the table's."""
        states = self.text.states(self.text.tokens([*(self.captions[number] for number in numbers), ""])).float()  # [n + 1, 77, C]
        seeds = [noise_seed(number, sampling_seed) for number in numbers]
        drawing = Drawing(self.guidance(column, numbers), states[:-1], states[-1:].expand_as(states[:-1]), seeds, LATENT[1:])
        with self.autocast():
            return draw_latents(self.guided, drawing, steps or self.table.steps, self.table.scale, check=check).float().cpu()

    def guidance(self, column: str, numbers: Sequence[int]) -> Guidance:
        """The adapter bound to the poses and captions of scenes by number, with the column's sections on."""
        sections = self.sections(column)
        if not sections:
            return Guidance()
        device, tokens = self.text.device, None
        if "kb" in sections:
            asked = self.answers.tokens(numbers, [False] * len(numbers)), self.answers.tokens([0], [True])
            tokens = tuple(value.to(device) for value in asked)
        pictures = torch.stack([pose_picture(self.poses[number]) for number in numbers]).to(device)  # [n, H, W, 3]
        strengths = {f"{name}_strength": float(name in sections) for name in SECTIONS}
        return adapter_guidance(self.adapter, tokens, pictures, **strengths, negative_strength=self.table.negative_strength)


def decoded(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures uint8 [n,128,128,3] of latents as the UNet sees them."""
    return decode(autoencoder, latents.to(autoencoder.device), LATENT_SCALE)


@torch.no_grad()
def reconstructed(autoencoder: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """Pictures uint8 [n,H,W,3] as the autoencoder gives them back from their mean latents: the best that its decoder can draw of them."""
    found = []
    for items in torch.arange(len(pictures)).split(ENCODED):
        means = autoencoder.encode(as_batch(pictures, items).to(autoencoder.device)).latent_dist.mean
        found.append(decoded(autoencoder, LATENT_SCALE * means))
    return torch.cat(found)


def people_in(estimator: PoseEstimator, pictures: Tensor) -> list[Pose]:
    """The estimator's poses in pictures uint8 [n,H,W,3], rounded as they are kept: what is computed of the files is what was computed here."""
    array = pictures.numpy()
    found = estimator.estimate(as_batch(array, torch.arange(len(array))))
    return [Pose(tuple(Person(person.body.round(DECIMALS)) for person in pose.people), pose.width, pose.height) for pose in found]
