"""The recipe's tables [adapter] and [validation]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from kbdm_core.adapter import SECTIONS, AdapterOptions

Rate = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class AdapterTable:
    """[adapter]: what is trained, and how (Eq. 1)."""

    sections: tuple[Literal["kb", "dm", "pose"], ...] = SECTIONS
    """Parts of the adapter: kb (knowledge base), dm (dynamic mask), pose (pose branch). With a frozen ControlNet: kb and dm."""
    knowledge_base: Path | None = None
    """The knowledge base of the section kb, from `train knowledge-base`; needed if that is among the sections."""
    controlnet: Path | None = None
    """A stock ControlNet for SD1.5 (.safetensors), frozen beside the base: it carries the pose, so that sections can be kb and dm."""
    init: Path | None = None
    """An adapter to go on from, instead of a fresh one; its sections must be those above."""
    steps: Annotated[int, Ge(0)] = 0
    """Optimiser steps; 0 = as many as `epochs` has. With epochs 0 too, the fresh adapter is written as it is."""
    epochs: Annotated[int, Ge(0)] = 10
    """Passes over the pictures, where `steps` is 0."""
    batch: Annotated[int, Ge(1)] = 4
    """Pictures per optimiser step, on all processes together."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Into how many parts, one after the other, each process cuts its share of a batch: less memory, the same gradient."""
    optimiser: Literal["adam", "adamw"] = "adam"
    """The paper's is adam."""
    learning_rate: Rate = 1e-5
    """Of all weights whose section has no rate of its own."""
    kb_rate: Rate | None = None
    """Learning rate of the section kb."""
    dm_rate: Rate | None = None
    """Learning rate of the gate of section dm."""
    pose_rate: Rate | None = None
    """Learning rate of the section pose."""
    scalar_rate: Rate = 1e-3
    """Learning rate of the scales of kb and the blends of dm, which start at 0 and would hardly move at the others'."""
    weight_decay: Rate = 0.01
    """Of adamw, on matrices and kernels."""
    warmup: Annotated[int, Ge(0)] = 500
    """Steps in which the learning rates rise to their full values."""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant, or falling to 0 along half a cosine."""
    clip: Rate = 1.0
    """Largest norm of the gradient; 0 = no limit."""
    prompt_drop: Annotated[float, Ge(0), Le(1)] = 0.5
    """How often "" stands for the prompt, and its knowledge base tokens for the prompt's."""
    decompose: Literal["phrases", "off"] = "phrases"
    """How a caption asks the knowledge base: by its phrases, fused by their mean as KB Text Query does, or as a whole."""
    alpha: Annotated[float, Ge(0)] = 1.0
    """Weight of the error inside the pose mask: 1 = Eq. 1, 5 = the baseline."""
    snr: Rate = 0.0
    """Min-SNR weighting: a picture's error weighs min(SNR + `snr_plus`, this) / SNR; 0 = no limit, and with `snr_plus` 0 Eq. 1 itself."""
    snr_plus: Rate = 0.0
    """1 = weigh as if velocity were predicted: the noisiest timesteps, where the layout is decided, count as much as the others."""
    ema: Annotated[float, Ge(0), Le(1)] = 0.0
    """Decay of the running average of the weights, which is then the result; 0 = the weights themselves."""
    gate_outputs: Literal[1, 16] = 16
    """Values of the gate (Eq. 9) per timestep: one per block, or 1 = one for all, the paper's literal form."""
    pose_width: Annotated[int, Ge(8)] = 512
    """Width of the pose branch's ViT."""
    pose_stem: tuple[int, int, int, int] = (128, 256, 384, 512)
    """Widths of the pose picture's four feature maps."""
    options: AdapterOptions = AdapterOptions()
    """How the paper is read where it is silent."""
    export: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the weights in the file that is written."""

    def rate(self, section: str) -> float:
        """The learning rate of a section's weights."""
        own = {"kb": self.kb_rate, "dm": self.dm_rate, "pose": self.pose_rate}[section]
        return self.learning_rate if own is None else own


@dataclass(frozen=True)
class ValidationTable:
    """[validation]: pictures drawn at fixed seeds in the course of training, and the workflow that draws the same in ComfyUI."""

    every: Annotated[int, Ge(0)] = 1000
    """Steps between two grids of pictures; 0 = only at the end."""
    pictures: Annotated[int, Ge(0)] = 4
    """How many held-out pictures lend their prompts and poses; 0 = none are drawn."""
    steps: Annotated[int, Ge(1), Le(333)] = 50
    """Steps of DDIM. ComfyUI takes a few more where 1000 is no multiple of them, and starts otherwise above 333."""
    scale: Annotated[float, Ge(0)] = 7.5
    """Classifier-free guidance scale."""
    seed: Annotated[int, Ge(0)] = 42
    """Of the first picture's noise; the next ones count up."""
