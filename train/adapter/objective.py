"""Eq. 1 on one batch: the frozen UNet's noise prediction, steered by the adapter, against the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kbdm_core.adapter import KBDMAdapter
from kbdm_core.guidance import Guidance, adapter_guidance
from kbdm_core.sd15 import BLOCKS
from train.base.diffusion import ALIKE, NOISE, SNRWeight
from train.host import GuidedUNet


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one batch is learnt from; h, w = H/8, W/8."""

    latents: Tensor
    """[B,4,h,w], scaled as the UNet sees them."""
    noise: Tensor
    """[B,4,h,w], standard normal."""
    timesteps: Tensor
    """int64 [B]."""
    states: Tensor
    """[B,77,C_text]: the text encoder's hidden states."""
    kb_tokens: Tensor | None
    """[B,N,C], or None without a section kb."""
    pose_pictures: Tensor
    """[B,H,W,3] in 0..1."""
    masks: Tensor
    """[B,2,h,w] in {0,1}: coarse and fine."""

    def part(self, rows: slice) -> Inputs:
        """Some of the pictures."""
        return Inputs(**{name: value if value is None else value[rows] for name, value in vars(self).items()})


class AdapterObjective(nn.Module):
    """The adapter on its frozen base. What is trained is `adapter`; everything else needs no gradient of its own."""

    def __init__(
        self,
        adapter: KBDMAdapter,
        unet: UNet2DConditionModel,
        alpha: float = 1.0,
        weight: SNRWeight = ALIKE,
        controlnet: ControlNetModel | None = None,
    ):
        super().__init__()
        self.adapter, self.controlnet = adapter, controlnet
        self.guided = GuidedUNet(unet.requires_grad_(False))
        self.alpha, self.weight, self.schedule = alpha, weight, DDPMScheduler(**NOISE)

    def forward(self, inputs: Inputs) -> Tensor:
        """The error of each picture [B], float32: its mean square, inside the coarse pose mask times alpha, weighted by the timestep's SNR."""
        noisy = self.schedule.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        guidance = guidance_of(self.adapter, inputs.kb_tokens, inputs.pose_pictures, inputs.masks)
        if guidance.kb is not None:  # outside of what gradient checkpointing computes twice
            for block in BLOCKS:
                guidance.kb.prepared(block, noisy.device, query_dtype(noisy))
        residuals = controlnet_residuals(self.controlnet, noisy, inputs.timesteps, inputs.states, inputs.pose_pictures)
        found = self.guided(noisy, inputs.timesteps, inputs.states, guidance, **residuals)
        square = (found.float() - inputs.noise.float()).square()  # [B, 4, h, w]
        if self.alpha != 1:
            square = square * (1 + (self.alpha - 1) * inputs.masks[:, :1])
        error = square.mean((1, 2, 3))  # [B]
        return self.weight.of(error, self.schedule, inputs.timesteps)


def guidance_of(adapter: KBDMAdapter, kb_tokens: Tensor | None, pose_pictures: Tensor, masks: Tensor) -> Guidance:
    """The guidance of a batch in training: every picture with tokens, pose and masks of its own, all of them positive."""
    tokens = None if kb_tokens is None else (kb_tokens, kb_tokens[:0])
    return adapter_guidance(adapter, tokens, pose_pictures, pose_masks=(masks[:, 0], masks[:, 1]))


def controlnet_residuals(
    controlnet: ControlNetModel | None, noisy: Tensor, timesteps: Tensor, states: Tensor, pose_pictures: Tensor
) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """What a frozen ControlNet adds, as arguments of diffusers' UNet; nothing without one."""
    if controlnet is None:
        return {}
    with torch.no_grad():
        down, middle = controlnet(noisy, timesteps, states, pose_pictures.movedim(-1, 1), return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def query_dtype(x: Tensor) -> torch.dtype:
    """The type that linear layers give their results under the autocast in effect."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
