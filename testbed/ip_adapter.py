"""A stand-in for IP-Adapter packs: image tokens in every cross-attention, installed and stacked the way those packs do."""

from __future__ import annotations

import importlib

import torch

from testbed.host import import_host
from testbed.pack import PACKAGE

import_host()
optimized_attention = importlib.import_module("comfy.ldm.modules.attention").optimized_attention
BLOCKS = importlib.import_module(f"{PACKAGE}.kbdm_core.sd15").BLOCKS


class GrowingReplace:
    """An attn2 replace that grows by `.add(fn, **settings)`; every entry acts within its own sigma range."""

    def __init__(self):
        self.entries = []

    def add(self, fn, **settings):
        self.entries.append((fn, settings))

    def to(self, device_or_dtype):
        return self

    def __call__(self, q, k, v, extra):
        out, sigma = optimized_attention(q, k, v, extra["n_heads"]), float(extra["sigmas"][0])
        for fn, settings in self.entries:
            if settings["sigma_end"] <= sigma <= settings["sigma_start"]:
                out = out + fn(out, q, k, v, extra, **settings)
        return out


def image_attention(out, q, k, v, extra, tokens, weight, sigma_start, sigma_end):
    """Attention over image tokens, zero for the uncond chunks of the batch."""
    context = tokens[..., : q.shape[-1]].to(q).expand(q.shape[0], -1, -1)
    attended = optimized_attention(q, context, context, extra["n_heads"]) * weight
    is_cond = torch.tensor([float(index == 0) for index in extra["cond_or_uncond"]]).repeat_interleave(q.shape[0] // len(extra["cond_or_uncond"]))
    return attended * is_cond.to(q)[:, None, None]


def add_ip_adapter(model, seed: int = 5, start: float = 1e9, end: float = 0.0):
    """A clone with image tokens: adds to what it finds in a slot, else takes it; the middle one at ("middle", 1) as those packs do."""
    patched = model.clone()
    tokens = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(seed))
    for kind, number in [block.patch_key for block in BLOCKS]:
        slot = (kind, 1) if kind == "middle" else (kind, number)
        found = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {}).get(slot)
        if found is None:
            found = GrowingReplace()
            patched.set_model_attn2_replace(found, *slot)
        found.add(image_attention, tokens=tokens, weight=0.5, sigma_start=start, sigma_end=end)
    return patched
