"""The miniature's CLIP: a tiny OpenCLIP with the text tower's layout of SD1.5's, trained on pictures and captions of Mini-Human."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
from annotated_types import Ge
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor, nn

from train.files import write_text
from train.mini.scenes import as_batch
from train.run.loop import Run
from train.run.optimisation import Optimisation
from train.run.order import Order, fingerprint, generator

CONFIG = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 128, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
PREPROCESSING = {"size": 128, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class MiniClipTable:
    """[mini_clip]: the miniature's CLIP, 8 M weights, of which 6.3 M are the vocabulary of SD1.5's tokeniser."""

    steps: Annotated[int, Ge(1)] = 4000
    """Optimiser steps."""
    batch: Annotated[int, Ge(2)] = 64
    """Pairs per step; each is told from the others."""
    learning_rate: Annotated[float, Ge(0)] = 1e-3
    """Of AdamW, falling to 0 along half a cosine."""
    warmup: Annotated[int, Ge(0)] = 200
    """Steps in which the learning rate rises to its full value."""
    weight_decay: Annotated[float, Ge(0)] = 0.05
    """Of AdamW."""


class ClipObjective(nn.Module):
    """CLIP with its symmetric contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**CONFIG)
        self.loss = ClipLoss()

    def forward(self, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """pictures [B,3,128,128], tokens [B,77] -> loss, and the share of pictures whose own caption is the nearest."""
        image, text, scale = self.clip(pictures, tokens)
        image, text = image.float(), text.float()
        right = ((image @ text.T).argmax(-1) == torch.arange(len(image), device=image.device)).float().mean()
        return self.loss(image, text, scale), right


class ClipTraining:
    """Stage `clip`. pictures: uint8 [scenes,128,128,3]; tokens: their captions [scenes,77]."""

    name = "clip"

    def __init__(self, run: Run, table: MiniClipTable, pictures: np.ndarray, tokens: Tensor):
        self.run, self.table, self.pictures, self.tokens, self.steps = run, table, pictures, tokens, table.steps
        self.order = Order(len(pictures), table.batch, run.table.seed)
        self.inputs = fingerprint(tokens)
        torch.manual_seed(run.table.seed)
        objective = ClipObjective().to(run.device)
        decayed = [value for value in objective.parameters() if value.ndim > 1]
        others = [value for value in objective.parameters() if value.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": table.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, table.learning_rate, betas=(0.9, 0.98))
        self.optimisation = Optimisation(run, objective, optimiser, table.steps, table.warmup, clip=1.0)

    def finished(self) -> bool:
        return False

    def step(self, index: int) -> dict[str, float | Tensor]:
        run = self.run
        items = self.order.step(index, run.rank, run.world)
        shift = torch.randint(-8, 9, (2,), generator=generator(run.table.seed, 7, index, run.rank)).tolist()
        pictures = as_batch(self.pictures, items).roll(shift, (-2, -1)).to(run.device)
        rights = []

        def loss() -> Tensor:
            loss, right = self.optimisation.module(pictures, self.tokens[items].to(run.device))
            rights.append(right)
            return loss

        return {"loss": self.optimisation.step(index, [loss], run.check_alone), "right": rights[0]}

    def state(self) -> dict[str, Any]:
        return self.optimisation.state()

    def load(self, state: dict[str, Any]) -> None:
        self.optimisation.load(state)


@torch.no_grad()
def retrieval(clip: nn.Module, pictures: np.ndarray, tokens: Tensor) -> dict[str, float]:
    """Among all pairs given: the share of pictures whose own caption is the nearest, and of captions whose own picture is."""
    image = torch.cat([clip.encode_image(as_batch(pictures, items), normalize=True) for items in torch.arange(len(pictures)).split(64)])
    text = clip.encode_text(tokens, normalize=True)
    similarity, own = image @ text.T, torch.arange(len(pictures))
    share = {"picture_to_caption": similarity.argmax(1) == own, "caption_to_picture": similarity.argmax(0) == own}
    return {name: float(right.float().mean()) for name, right in share.items()}


def tokenised(captions: list[str]) -> Tensor:
    """Captions -> tokens [scenes,77] of SD1.5's tokeniser, int64."""
    return open_clip.SimpleTokenizer()(captions)


def save_clip(folder: Path, clip: nn.Module) -> None:
    """Write the model in float16 as a folder that OpenCLIP loads by local-dir:FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "open_clip_config.json", json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESSING}, indent=1))
    save_file({key: value.half().contiguous() for key, value in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
