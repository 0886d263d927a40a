"""ComfyUI's own SD1.5 text encoder with weights of an OpenCLIP text tower."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
from transformers import CLIPTextConfig


def host_clip(state: dict[str, torch.Tensor], config: CLIPTextConfig | None = None):
    """ComfyUI's own SD1.5 text encoder with these weights (layout of CLIP-L files), in float32. config: sizes, if not CLIP-L's."""
    import comfy.sd
    import comfy.sd1_clip

    host = comfy.sd1_clip
    params, model, tokenizer = {}, host.SD1ClipModel, host.SD1Tokenizer
    if config:
        params = {"textmodel_json_config": config.to_dict()}
        model = partial(model, clip_model=host.SDClipModel)  # what new hosts take for checkpoints knows no sizes but CLIP-L's
        tokenizer = partial(tokenizer, tokenizer=partial(host.SDTokenizer, embedding_size=config.hidden_size))
    target = SimpleNamespace(params=params, clip=model, tokenizer=tokenizer)
    clip = comfy.sd.CLIP(target)
    missing, unexpected = clip.load_sd(state)
    assert not unexpected and set(missing) <= {"text_projection.weight", "logit_scale"}
    return clip
