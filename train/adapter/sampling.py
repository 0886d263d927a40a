"""Pictures from prompts and poses: DDIM with classifier-free guidance, as ComfyUI's sampler `ddim` with scheduler `ddim_uniform` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from kbdm_core.guidance import Guidance
from kbdm_core.roles import NEGATIVE, POSITIVE
from train.adapter.objective import controlnet_residuals
from train.base.diffusion import NOISE
from train.host import GuidedUNet

ROLES = (POSITIVE, NEGATIVE)


@dataclass(frozen=True, eq=False)
class Drawing:
    """What I pictures are drawn from. states: of the prompts and of the negative prompt [I,77,C] each; seeds: of their noise."""

    guidance: Guidance
    positive: Tensor
    negative: Tensor
    seeds: Sequence[int]
    size: tuple[int, int]
    """h, w of the latents."""
    pose_pictures: Tensor | None = None
    """[I,H,W,3], for a ControlNet."""


def scheduler(steps: int) -> DDIMScheduler:
    """DDIM with leading spacing, offset 1 and a last step to the clean latent, for so many steps as the host counts them.

    Every (1000 // steps)-th timestep from 1 on is taken: a few more than `steps` where that does not divide 1000.
    """
    made = DDIMScheduler(**NOISE, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=True, clip_sample=False)
    made.set_timesteps(steps)
    every = NOISE["num_train_timesteps"] // steps
    made.timesteps = torch.arange(1, NOISE["num_train_timesteps"], every).flip(0)  # diffusers stops after `steps`, lower down
    return made


def noise_of(seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Standard normal noise [I,4,h,w], drawn on the CPU for each picture from its own seed, as the host does for a batch of one."""
    return torch.cat([torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def draw_latents(
    guided: GuidedUNet,
    drawing: Drawing,
    steps: int,
    scale: float,
    controlnet: ControlNetModel | None = None,
    check: Callable[[], None] = lambda: None,
    quiet: bool = True,
) -> Tensor:
    """Latents [I,4,h,w], scaled as the UNet sees them, on the UNet's device. `check` is called before every step and may raise.

    The first latent is noise sigma / sqrt(1 + sigma^2) of the first timestep, which is not quite 1: where the host starts.
    """
    device = next(guided.parameters()).device
    plan = scheduler(steps)
    first = plan.alphas_cumprod[plan.timesteps[0]]
    x = (noise_of(drawing.seeds, drawing.size) * (1 - first) ** 0.5).to(device)
    both = torch.cat([drawing.positive, drawing.negative]).to(device)
    pictures = None if drawing.pose_pictures is None else drawing.pose_pictures.to(device).repeat(2, 1, 1, 1)
    for t in tqdm(plan.timesteps, desc="drawing", unit="step", disable=quiet):
        check()
        timesteps = torch.full((2 * len(x),), int(t), device=device)
        doubled = x.repeat(2, 1, 1, 1)
        residuals = controlnet_residuals(controlnet, doubled, timesteps, both, pictures)
        found = guided(doubled, timesteps, both, drawing.guidance, ROLES, **residuals).float()
        with_prompt, without = found.chunk(2)
        x = plan.step(without + scale * (with_prompt - without), t, x, eta=0.0).prev_sample
    return x


@torch.no_grad()
def decode(autoencoder: AutoencoderKL, latents: Tensor, scale: float, batch: int = 16) -> Tensor:
    """Latents as the UNet sees them -> pictures uint8 [I,H,W,3] on the CPU, cut off to whole steps as the host saves them."""
    parts = [autoencoder.decode(part.to(autoencoder.dtype) / scale).sample.float().cpu() for part in latents.split(batch)]
    unit = (torch.cat(parts) / 2 + 0.5).clamp(0, 1)  # [I, 3, H, W]
    return (255 * unit).to(torch.uint8).permute(0, 2, 3, 1)
