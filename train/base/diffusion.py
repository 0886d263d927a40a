"""How SD1.5 adds noise and scales latents, fixed in its hosts, and the weight of a timestep's error."""

from __future__ import annotations

from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT_SCALE = 0.18215  # from the autoencoder's latents to what the UNet sees


def min_snr(error: Tensor, schedule: DDPMScheduler, timesteps: Tensor, most: float) -> Tensor:
    """Min-SNR weighting (Hang et al. 2023) of noise prediction errors: error [B] times min(SNR, most) / SNR; most = 0 leaves them alone."""
    if not most:
        return error
    snr = compute_snr(schedule, timesteps)
    return error * snr.clamp(max=most) / snr
