"""Random weights for models of any kind."""

from __future__ import annotations

import torch


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Random weights of sensible scale everywhere, also where the host leaves them zero or uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim <= 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + (name.endswith("weight") * 1.0))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
