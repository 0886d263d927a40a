"""Pictures at fixed seeds in the course of training, as a grid, and the workflow that draws each of them in ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from kbdm_core.adapter import KBDMAdapter
from kbdm_core.guidance import adapter_guidance
from train.adapter.conditions import KBAnswers
from train.adapter.sampling import Drawing, decode, draw_latents
from train.adapter.table import ValidationTable
from train.adapter.workflow import Files, workflow
from train.base.text import TextEncoder
from train.examples.examples import Examples
from train.files import write_text
from train.host import GuidedUNet
from train.run.loop import Run

FOLDER = "validation"


@dataclass(frozen=True, eq=False)
class Validation:
    """Held-out examples whose prompts and poses are drawn. `latent_scale`: the factor from latents to what the UNet sees."""

    run: Run
    table: ValidationTable
    examples: Examples
    items: Sequence[int]
    text: TextEncoder
    answers: KBAnswers | None
    autoencoder: AutoencoderKL
    latent_scale: float
    files: Files
    controlnet: torch.nn.Module | None = None

    @property
    def folder(self) -> Path:
        return self.run.folder / FOLDER

    def due(self, step: int) -> bool:
        """Whether pictures are drawn before this step."""
        return not self.run.dry and bool(self.table.every) and step > 0 and step % self.table.every == 0

    def draw(self, guided: GuidedUNet, adapter: KBDMAdapter, step: int) -> None:
        """On the main process: step-N.png with the pose beside each picture, picture-K.png and picture-K.json, its workflow. The others wait."""
        if self.run.is_main and self.items:
            check = self.run.check_alone
            rows, pictures = [], []
            for number, item in enumerate(self.items):
                picture, pose = self.picture(guided, adapter, number, item, check)
                pictures.append(picture)
                rows.append(torch.cat([picture, (255 * pose).to(torch.uint8)]))
            height, width = (max(row.shape[axis] for row in rows) for axis in (0, 1))
            grid = torch.zeros(height, width * len(rows), 3, dtype=torch.uint8)
            for number, row in enumerate(rows):
                grid[: row.shape[0], number * width : number * width + row.shape[1]] = row
            save_png(self.folder / f"step-{step:09d}.png", grid)
            for number, (item, picture) in enumerate(zip(self.items, pictures)):
                save_png(self.folder / f"picture-{number}.png", picture)
                write_text(self.folder / f"picture-{number}.json", json.dumps(self.workflow(number, item), indent=1))
        self.run.accelerator.wait_for_everyone()

    def picture(
        self, guided: GuidedUNet, adapter: KBDMAdapter, number: int, item: int, check: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """One picture uint8 [H,W,3] and its pose picture [H,W,3] in 0..1."""
        device = self.run.device
        bucket = self.examples.entries[item].bucket
        batch = self.examples.batch(bucket, torch.tensor([item]), torch.tensor([0]))
        tokens = None
        if self.answers is not None:
            tokens = tuple(self.answers.tokens([item], [dropped]).to(device) for dropped in (False, True))
        guidance = adapter_guidance(adapter, tokens, batch.pose_pictures.to(device))
        prompts = self.text.fitting(batch.captions[0]), ""
        states = [self.text.states(self.text.tokens([prompt])).float() for prompt in prompts]
        drawing = Drawing(guidance, *states, [self.table.seed + number], bucket.latent, batch.pose_pictures)
        half = guided.unet.dtype != torch.float32  # float32 weights draw in float32, as the host does with them
        with self.run.accelerator.autocast() if half else nullcontext():
            latents = draw_latents(guided, drawing, self.table.steps, self.table.scale, self.controlnet, check, quiet=False)
        return decode(self.autoencoder, latents, self.latent_scale)[0], batch.pose_pictures[0]

    def workflow(self, number: int, item: int) -> dict:
        """The graph, in ComfyUI's API format, that draws the same picture with the exported adapter."""
        entry = self.examples.entries[item]
        pose = entry.variant(self.examples.augment, 0).pose(entry.pose)
        decompose, encoded = "off" if self.answers is None else self.answers.decomposition, self.text.fitting(entry.caption)
        return workflow(self.files, entry.caption, decompose, encoded, pose, self.table.seed + number, self.table.steps, self.table.scale)


def save_png(path: Path, picture: Tensor) -> None:
    """uint8 [H,W,3] to a file, written under a temporary name and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        Image.fromarray(picture.numpy()).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
