"""The two training steps that are compared: our adapter's and that of diffusers' ControlNet training, on the same frozen UNet and batch (Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kbdm_core.adapter import AdapterSizes, fresh_adapter, sd15_sizes
from testbed.random_weights import randomise
from train.adapter.objective import AdapterObjective, Inputs
from train.adapter.table import AdapterTable
from train.adapter.training import make_optimiser, project_blend
from train.base.diffusion import NOISE
from train.host import text_projections

HEADS = 8  # of every block of SD1.5
CLIP = 1.0  # largest norm of the gradient: the default of both trainers
CONTROLNET_RATE = 5e-6  # learning rate: the default of diffusers' script


@dataclass(frozen=True)
class Scale:
    """How large the models are. adapter: its sizes, among them the UNet's widths; text_width: of the text encoder's states."""

    adapter: AdapterSizes
    text_width: int


SCALES = {
    "sd15": Scale(sd15_sizes(), 768),
    "tiny": Scale(sd15_sizes((32, 64, 96, 96), kb_tokens=16, kb_width=24, pose_width=32, pose_stem=(8, 8, 16, 16)), 64),
}


@dataclass(frozen=True, eq=False)
class Trainee:
    """What is trained, on what, and how. loss: of a batch, a scalar; settle: what follows the optimiser's step."""

    trained: nn.Module
    frozen: nn.Module
    optimiser: torch.optim.Optimizer
    loss: Callable[[Inputs], Tensor]
    settle: Callable[[], None] = lambda: None
    keeps_gradients: bool = False
    """Whether the gradients' memory is kept for the next step, as zeros."""

    def step(self, inputs: Inputs) -> Tensor:
        """One step, in the order of both trainers -> the loss, detached."""
        loss = self.loss(inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), CLIP)
        self.optimiser.step()
        self.settle()
        self.optimiser.zero_grad(set_to_none=not self.keeps_gradients)
        return loss.detach()


def frozen_unet(scale: Scale) -> UNet2DConditionModel:
    """A UNet of SD1.5's layout with random weights, without the time that their first initialisation would take."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=scale.adapter.widths, cross_attention_dim=scale.text_width, attention_head_dim=HEADS, sample_size=64
        )
    unet.load_state_dict({name: torch.empty(value.shape) for name, value in unet.state_dict().items()}, assign=True)
    randomise(unet)
    return unet.requires_grad_(False)


def adapter_trainee(scale: Scale) -> Trainee:
    """Ours: a fresh adapter of all three sections, as `train adapter` begins, with AdamW."""
    unet = frozen_unet(scale)
    adapter = fresh_adapter(scale.adapter, text_projections=text_projections(unet))
    objective = AdapterObjective(adapter, unet)
    optimiser = make_optimiser(adapter, AdapterTable(optimiser="adamw"))
    return Trainee(adapter, unet, optimiser, lambda inputs: objective(inputs).mean(), partial(project_blend, adapter))


def controlnet_trainee(scale: Scale, keeps_gradients: bool = True) -> Trainee:
    """Theirs: a ControlNet that starts as a copy of the UNet's encoder; all its weights with AdamW.

    The script keeps the gradients' memory unless it is told --set_grads_to_none.
    """
    unet = frozen_unet(scale)
    controlnet, schedule = ControlNetModel.from_unet(unet), DDPMScheduler(**NOISE)

    def loss(inputs: Inputs) -> Tensor:
        noisy = schedule.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        down, middle = controlnet(noisy, inputs.timesteps, inputs.states, inputs.pose_pictures.movedim(-1, 1), return_dict=False)
        found = unet(
            noisy, inputs.timesteps, inputs.states, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return F.mse_loss(found, inputs.noise)

    return Trainee(controlnet, unet, torch.optim.AdamW(controlnet.parameters(), CONTROLNET_RATE), loss, keeps_gradients=keeps_gradients)


OURS, BASE = "ours", "ControlNet"
TRAINEES: dict[str, Callable[[Scale], Trainee]] = {
    OURS: adapter_trainee,
    BASE: controlnet_trainee,
    "ControlNet, gradients freed": partial(controlnet_trainee, keeps_gradients=False),
}


def random_inputs(scale: Scale, size: int, batch: int) -> Inputs:
    """The same random batch of pictures of size x size px for every trainee; the person stands in the middle."""
    random = torch.Generator().manual_seed(0)
    side, sizes = size // 8, scale.adapter
    masks = torch.zeros(batch, 2, side, side)
    masks[..., side // 5 : -side // 10, side // 3 : -side // 3] = 1
    return Inputs(
        torch.randn(batch, 4, side, side, generator=random),
        torch.randn(batch, 4, side, side, generator=random),
        torch.randint(NOISE["num_train_timesteps"], (batch,), generator=random),
        torch.randn(batch, 77, scale.text_width, generator=random),
        torch.randn(batch, sizes.kb_tokens, sizes.kb_width, generator=random),
        torch.rand(batch, size, size, 3, generator=random),
        masks,
    )
