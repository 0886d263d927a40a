"""Small models of the real host: SD1.5's topology, random weights, and the pieces that sampling needs."""

from __future__ import annotations

import torch

from testbed.host import import_host
from testbed.random_weights import randomise

import_host()

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402

WIDTHS = (32, 64, 128, 128)
SD15_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 64, "use_linear_in_transformer": False,
    "adm_in_channels": None, "use_temporal_attention": False, "use_temporal_resblock": False, "legacy": False, "dtype": torch.float32,
}  # fmt: skip


def host_model(config_class: str = "SD15", seed: int = 0, compute_dtype: torch.dtype | None = None, **changes):
    """A ModelPatcher of the host's own class for this family, with a small UNet of random weights.

    compute_dtype: what the host casts weights of another `dtype` to; None = it computes in `dtype`.
    """
    config = getattr(comfy.supported_models, config_class)({**SD15_UNET, **changes})
    config.manual_cast_dtype = compute_dtype
    base = config.get_model({}, "", device=torch.device("cpu"))
    randomise(base.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(base.eval(), torch.device("cpu"), torch.device("cpu"))


def predict(model, x, sigma: float, conds, cond_or_uncond=None, control=None, **options):
    """One forward of the UNet through the host's apply_model, with the model's patches, as the samplers call it.

    x [I,4,h,w] latent; conds: one context [1,T,C] per chunk; cond_or_uncond: as the samplers lay the batch out;
    control: a ControlNet's residuals.
    """
    layout = list(range(len(conds))) if cond_or_uncond is None else cond_or_uncond
    model.patch_model()
    sigmas = torch.full((x.shape[0],), sigma)
    transformer_options = {**model.model_options["transformer_options"], "cond_or_uncond": layout, "sigmas": sigmas, **options}
    context = torch.cat([c.expand(x.shape[0], -1, -1) for c in conds])
    with torch.no_grad():
        return model.model.apply_model(
            x.repeat(len(conds), 1, 1, 1), sigmas.repeat(len(conds)), c_crossattn=context, control=control, transformer_options=transformer_options
        )


def text(seed: int, **values) -> list:
    """A CONDITIONING of one random prompt; values: what the host's Conditioning nodes would add, such as area or mask."""
    return [[torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(seed)), values]]


def sample(model, size=(17, 12), images=1, steps=3, cfg=7.0, positive=None, negative=None, latent=None, **options):
    """The latent that the host's KSampler gives. size: of the empty latent, unless there is a `latent`; options: of comfy.sample.sample."""
    latent = torch.zeros(images, 4, *size) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed=0)  # seeds the global generator too, which HyperTile and ToMe draw from
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "normal", positive or text(1), negative or text(2), latent, disable_pbar=True, seed=0, **options
        )
