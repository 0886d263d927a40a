"""The miniature's autoencoder: AutoencoderKL in the layout of SD1.5's, 128 px to 16 x 16 x 4, trained on Mini-Human."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval, MultipleOf
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kbdm_core.safetensors_file import read, write
from train.base.diffusion import LATENT_SCALE
from train.mini.scenes import as_batch
from train.run.loop import Run
from train.run.optimisation import Optimisation
from train.run.order import Order, fingerprint, generator

FORMAT = "kbdm.mini_autoencoder"
CONFIG = {
    "block_out_channels": (64, 64, 64, 64),
    "layers_per_block": 0,  # one residual block per level in the decoder, none in the encoder
    "latent_channels": 4,
    "norm_num_groups": 32,  # fixed in SD1.5's hosts; 32 channels would be normalised one by one, and lose the picture's colours
    "sample_size": 128,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


@dataclass(frozen=True)
class AutoencoderTable:
    """[autoencoder]: the miniature's VAE, 0.9 M weights."""

    steps: Annotated[int, Ge(1)] = 11000
    """Optimiser steps."""
    batch: Annotated[int, Ge(1)] = 8
    """Pictures per step."""
    crop: Annotated[int, Interval(ge=16, le=128), MultipleOf(8)] = 64
    """Side of the random part of each picture that a step sees."""
    learning_rate: Annotated[float, Ge(0)] = 1e-3
    """Of AdamW, falling to 0 along half a cosine."""
    warmup: Annotated[int, Ge(0)] = 100
    """Steps in which the learning rate rises to its full value."""
    edges: Annotated[float, Ge(0)] = 1.0
    """Weight of the error of the pictures' gradients at three scales, beside that of the pictures: it keeps limbs sharp."""
    colours: Annotated[float, Ge(0)] = 8.0
    """Weight of the squared error of the colours of 4 x 4 px together, without their brightness: they would be learnt last."""
    kl: Annotated[float, Ge(0)] = 1e-4
    """Weight of the latents' divergence from a standard normal, per latent number."""
    ema: Annotated[float, Ge(0)] = 0.999
    """Decay of the running average of the weights, which is the result."""


class AutoencoderObjective(nn.Module):
    """Reconstruction error, error of gradients and divergence of a batch."""

    def __init__(self, table: AutoencoderTable):
        super().__init__()
        self.table = table
        self.autoencoder = AutoencoderKL(**CONFIG)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,3,H,W] in -1..1, noise [B,4,H/8,W/8] -> loss, and the mean absolute error of the pictures."""
        latents = self.autoencoder.encode(x).latent_dist
        y = self.autoencoder.decode(latents.mean + latents.std * noise).sample.float()
        error = (y - x).abs().mean()
        divergence = 0.5 * (latents.mean.float().square() + latents.var.float() - 1 - latents.logvar.float()).mean()
        table = self.table
        loss = error + table.edges * edge_error(y - x) + table.colours * colour_error(y - x) + table.kl * divergence
        return loss, error.detach()


def edge_error(difference: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of horizontal and vertical gradients at full, half and quarter size. difference [B,3,H,W] -> scalar."""
    total = difference.new_zeros(())
    for scale in range(scales):
        x = nn.functional.avg_pool2d(difference, 2**scale) if scale else difference
        total = total + x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()
    return total / (2 * scales)


def colour_error(difference: Tensor, size: int = 4) -> Tensor:
    """Mean squared difference of the colours of `size` x `size` pixels together, brightness (their mean) apart. difference [B,3,H,W] -> scalar."""
    return nn.functional.avg_pool2d(difference - difference.mean(1, keepdim=True), size).square().mean()


class AutoencoderTraining:
    """Stage `autoencoder`. pictures: uint8 [scenes,128,128,3]."""

    name = "autoencoder"

    def __init__(self, run: Run, table: AutoencoderTable, pictures: np.ndarray):
        self.run, self.table, self.pictures, self.steps = run, table, pictures, table.steps
        self.order = Order(len(pictures), table.batch, run.table.seed)
        self.inputs = fingerprint(torch.from_numpy(pictures[:: max(1, len(pictures) // 64)].copy()))
        torch.manual_seed(run.table.seed)
        objective = AutoencoderObjective(table).to(run.device)
        optimiser = torch.optim.AdamW(objective.parameters(), table.learning_rate, weight_decay=0.0)
        self.optimisation = Optimisation(run, objective, optimiser, table.steps, table.warmup, clip=1.0)
        self.average = AveragedModel(self.optimisation.plain.autoencoder, multi_avg_fn=get_ema_multi_avg_fn(table.ema))

    def finished(self) -> bool:
        return False

    def step(self, index: int) -> dict[str, float | Tensor]:
        run = self.run
        items = self.order.step(index, run.rank, run.world)
        random = generator(run.table.seed, 6, index, run.rank)
        x = as_batch(self.pictures, items, torch.rand(len(items), generator=random) < 0.5).to(run.device)
        side = self.table.crop
        top, left = torch.randint(x.shape[-1] - side + 1, (2,), generator=random).tolist()
        x = x[..., top : top + side, left : left + side]
        noise = torch.randn(len(items), 4, side // 8, side // 8, generator=random).to(run.device)
        errors = []

        def loss() -> Tensor:
            loss, error = self.optimisation.module(x, noise)
            errors.append(error)
            return loss

        total = self.optimisation.step(index, [loss], run.check_alone)
        self.average.update_parameters(self.optimisation.plain.autoencoder)
        return {"loss": total, "error": errors[0]}

    def state(self) -> dict[str, Any]:
        return {**self.optimisation.state(), "average": self.average.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.optimisation.load(state)
        self.average.load_state_dict(state["average"])


@torch.no_grad()
def folded(autoencoder: AutoencoderKL, pictures: np.ndarray, count: int = 512) -> tuple[AutoencoderKL, float]:
    """The autoencoder with its latents' standard deviation folded into its weights, so that LATENT_SCALE times a latent has deviation 1.

    Only the 1 x 1 convolutions around the latents change. Measured on `count` pictures, spread evenly -> also the deviation before.
    """
    items = torch.arange(0, len(pictures), max(1, len(pictures) // count))[:count]
    means = torch.cat([autoencoder.encode(as_batch(pictures, part)).latent_dist.mean for part in items.split(32)])
    deviation = float(means.std())
    factor = 1 / (LATENT_SCALE * deviation)
    out, back = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = autoencoder.config.latent_channels
    out.weight[:channels] *= factor
    out.bias[:channels] *= factor
    out.bias[channels:] += 2 * float(np.log(factor))  # the log-variances
    back.weight /= factor
    return autoencoder, deviation


def load_autoencoder(path: Path) -> AutoencoderKL:
    """Read an autoencoder that `save_autoencoder` wrote, in float32, frozen. Raises FileFormatError for another file."""
    file = read(path, FORMAT)
    autoencoder = AutoencoderKL(**CONFIG)
    tensors = {key: file.tensor(key, tuple(value.shape)).float() for key, value in autoencoder.state_dict().items()}
    autoencoder.load_state_dict(tensors)
    return autoencoder.eval().requires_grad_(False)


def save_autoencoder(path: Path, autoencoder: AutoencoderKL, training: dict) -> None:
    """Write the autoencoder in float16, in diffusers' layout, which ComfyUI reads as well."""
    tensors = {key: value.half() for key, value in autoencoder.state_dict().items()}
    write(path, tensors, {"format": FORMAT, "format_version": "1"}, {"config": CONFIG, "training": training})
