"""How SD1.5 adds noise and scales latents, fixed in its hosts, and the weight of a timestep's error."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT_SCALE = 0.18215  # from the autoencoder's latents to what the UNet sees


@dataclass(frozen=True)
class SNRWeight:
    """Weight of a noise prediction error by its timestep's signal-to-noise ratio: min(SNR + plus, most) / SNR.

    plus = 0: min-SNR weighting (Hang et al. 2023). plus = 1: as if velocity were predicted (Salimans & Ho 2022), so that the
    noisiest timesteps, where the layout is decided, count as much as the others. most = 0: no limit.
    """

    most: float = 0.0
    plus: float = 0.0

    def of(self, error: Tensor, schedule: DDPMScheduler, timesteps: Tensor) -> Tensor:
        """error [B], timesteps int64 [B] -> [B]."""
        if not self.most and not self.plus:
            return error
        snr = compute_snr(schedule, timesteps)
        weight = snr + self.plus
        return error * (weight.clamp(max=self.most) if self.most else weight) / snr


ALIKE = SNRWeight()  # Eq. 1: every timestep counts as it is
