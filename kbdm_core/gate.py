"""The gate g(t) in (0,1) of Eq. 9: learned from the timestep, or a training-free schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import KBDMError
from .sd15 import TIMESTEP_CHANNELS

SCHEDULES = ("constant", "linear", "cosine")
TRAINING_TIMESTEPS = 1000


def timestep_embedding(timestep: Tensor, channels: int = TIMESTEP_CHANNELS, max_period: float = 10000.0) -> Tensor:
    """SD1.5's sinusoidal embedding, cos || sin. timestep [B] -> [B,channels], float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep.float()[:, None] * frequencies[None]  # [B, half]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepGate(nn.Module):
    """g = sigmoid(MLP(e)) (Eq. 9). timestep [B] -> [B,outputs] in (0,1), float32; one output per block, or one for all (the paper)."""

    def __init__(self, outputs: int, hidden: int = 128, operations: Any = nn, device=None, dtype=None):
        super().__init__()
        self.hidden = operations.Linear(TIMESTEP_CHANNELS, hidden, device=device, dtype=dtype)
        self.out = operations.Linear(hidden, outputs, device=device, dtype=dtype)

    def forward(self, timestep: Tensor) -> Tensor:
        e = timestep_embedding(timestep)  # [B, 320]
        return torch.sigmoid(self.out(nn.functional.silu(self.hidden(e)))).float()


@dataclass(frozen=True)
class GateSchedule:
    """Training-free gate: from `start` at the first timestep (noise) to `end` at the last (picture).

    u = 1 - t/999 is the progress; linear: start + (end-start) u; cosine: start + (end-start) (1 - cos(pi u)) / 2;
    constant: start. Raises KBDMError for an unknown kind.
    """

    kind: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise KBDMError(f"Unknown gate '{self.kind}': expected one of {', '.join(SCHEDULES)}.")

    def __call__(self, timestep: Tensor) -> Tensor:
        """timestep [B] -> g [B,1], float32."""
        u = (1.0 - timestep.float() / (TRAINING_TIMESTEPS - 1)).clamp(0.0, 1.0)
        progress = {"constant": torch.zeros_like(u), "linear": u, "cosine": (1.0 - torch.cos(math.pi * u)) / 2.0}[self.kind]
        return (self.start + (self.end - self.start) * progress)[:, None]
