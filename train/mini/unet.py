"""The miniature's UNet: SD1.5's topology at small width, trained to draw Mini-Human from captions (DDPM)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from kbdm_core.safetensors_file import write
from train.base.checkpoint import read_base, unet_of
from train.base.diffusion import LATENT_SCALE, NOISE, SNRWeight
from train.mini.scenes import as_batch
from train.run.loop import Run
from train.run.optimisation import Optimisation
from train.run.order import Order, fingerprint, generator

CONFIG = {
    "sample_size": 16,
    "block_out_channels": (64, 64, 96, 96),
    "layers_per_block": 2,
    "attention_head_dim": 8,  # diffusers' name for SD1.5's eight heads
    "cross_attention_dim": 128,
}


@dataclass(frozen=True)
class UNetTable:
    """[unet]: the miniature's UNet, 6.8 M weights."""

    steps: Annotated[int, Ge(1)] = 12000
    """Optimiser steps."""
    batch: Annotated[int, Ge(1)] = 32
    """Pictures per step."""
    learning_rate: Annotated[float, Ge(0)] = 5e-4
    """Of AdamW, falling to 0 along half a cosine."""
    warmup: Annotated[int, Ge(0)] = 200
    """Steps in which the learning rate rises to its full value."""
    empty_share: Annotated[float, Ge(0), Le(1)] = 0.1
    """How often "" stands for the caption, so that the guidance scale works."""
    snr: Annotated[float, Ge(0)] = 5.0
    """A picture's error weighs min(SNR + `snr_plus`, this) / SNR; 0 = no limit."""
    snr_plus: Annotated[float, Ge(0)] = 1.0
    """1 = the noisiest steps, where the layout is decided, count as much as the others; 0 = min-SNR weighting."""
    ema: Annotated[float, Ge(0), Le(1)] = 0.999
    """Decay of the running average of the weights, which is the result."""
    init: Path | None = None
    """A checkpoint to go on from: its UNet is trained further on its own autoencoder's latents. Take another --run.seed then."""
    compile: bool = False
    """torch.compile the UNet: 1.3 times the steps per second on two CPU cores, after two minutes of compiling. Needs a C++ compiler."""


class UNetObjective(nn.Module):
    """Eq. 1 on noisy latents: the UNet with its weighted noise prediction error."""

    def __init__(self, weight: SNRWeight):
        super().__init__()
        self.unet = UNet2DConditionModel(**CONFIG)
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU, in bf16 and with such narrow heads, twice as fast as the fused attention
        self.noise, self.weight = DDPMScheduler(**NOISE), weight

    def forward(self, latents: Tensor, noise: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """latents, noise [B,4,h,w], timesteps int64 [B], states [B,77,C] -> scalar."""
        noisy = self.noise.add_noise(latents, noise, timesteps)
        error = (self.unet(noisy, timesteps, states).sample.float() - noise).square().mean((1, 2, 3))  # [B]
        return self.weight.of(error, self.noise, timesteps).mean()


class UNetTraining:
    """Stage `unet`. latents: float16 [2 scenes,4,h,w], the mirrored scenes after the others; tokens [scenes,77], `empty` [77] those of ""."""

    name = "unet"

    def __init__(self, run: Run, table: UNetTable, latents: Tensor, tokens: Tensor, empty: Tensor, text: nn.Module):
        self.run, self.table, self.latents, self.tokens, self.empty, self.steps = run, table, latents, tokens, empty, table.steps
        self.text = text.to(run.device)
        self.order = Order(len(latents), max(run.world, table.batch), run.table.seed)
        self.inputs = fingerprint(latents[:: max(1, len(latents) // 512)], tokens)
        torch.manual_seed(run.table.seed)
        objective = UNetObjective(SNRWeight(table.snr, table.snr_plus))
        if table.init is not None:
            objective.unet.load_state_dict(unet_of(read_base(table.init)).state_dict())
        objective = objective.to(run.device)
        if table.compile:
            objective.unet.compile()
        optimiser = torch.optim.AdamW(objective.parameters(), table.learning_rate, weight_decay=0.01)
        self.optimisation = Optimisation(run, objective, optimiser, table.steps, table.warmup, clip=1.0)
        self.average = AveragedModel(self.optimisation.plain.unet, multi_avg_fn=get_ema_multi_avg_fn(table.ema))

    def finished(self) -> bool:
        return False

    def step(self, index: int) -> dict[str, float | Tensor]:
        run = self.run
        random = generator(run.table.seed, 8, index, run.rank)
        items = self.order.step(index, run.rank, run.world)
        latents = self.latents[items].float()  # [B, 4, h, w]
        dropped = torch.rand(len(items), 1, generator=random) < self.table.empty_share
        tokens = torch.where(dropped, self.empty, self.tokens[items % len(self.tokens)])
        noise = torch.randn(latents.shape, generator=random)
        timesteps = torch.randint(NOISE["num_train_timesteps"], (len(items),), generator=random)
        with torch.no_grad():
            states = self.text(tokens.to(run.device)).last_hidden_state  # [B, 77, C]
        inputs = [value.to(run.device) for value in (latents, noise, timesteps)]
        loss = self.optimisation.step(index, [lambda: self.optimisation.module(*inputs, states)], run.check_alone)
        self.average.update_parameters(self.optimisation.plain.unet)
        return {"loss": loss}

    def state(self) -> dict[str, Any]:
        return {**self.optimisation.state(), "average": self.average.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.optimisation.load(state)
        self.average.load_state_dict(state["average"])


def kept_latents(folder: Path, autoencoder: AutoencoderKL, pictures: np.ndarray, check: Callable[[], None]) -> Tensor:
    """`scaled_latents`, from a file in `folder` where the same autoencoder has been over the same pictures before."""
    sample = torch.from_numpy(pictures[:: max(1, len(pictures) // 64)].copy())
    path = folder / f"latents-{len(pictures)}-{fingerprint(sample, *autoencoder.state_dict().values())[:12]}.safetensors"
    if path.exists():
        return load_file(path)["latents"]
    latents = scaled_latents(autoencoder, pictures, check)
    write(path, {"latents": latents}, {}, {})
    return latents


@torch.no_grad()
def scaled_latents(autoencoder: AutoencoderKL, pictures: np.ndarray, check: Callable[[], None], batch: int = 32) -> Tensor:
    """LATENT_SCALE times the mean latents of all pictures, then of all mirrored, float16 [2 scenes,4,16,16]: of deviation 1."""
    found = []
    for mirrored in (False, True):
        for items in tqdm(torch.arange(len(pictures)).split(batch), desc="latents", unit=f"x{batch} pictures"):
            check()
            x = as_batch(pictures, items, torch.full((len(items),), mirrored))
            found.append((LATENT_SCALE * autoencoder.encode(x).latent_dist.mean).half())
    return torch.cat(found)
