"""An OpenCLIP text tower as SD1.5's hosts know it: transformers' CLIPTextModel, whose hidden states the UNet attends to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

END = 49407  # of the text, and what SD1.5's hosts fill up with; OpenCLIP fills up with 0


def clip_l_layout(model: nn.Module) -> dict[str, Tensor]:
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


def text_model(clip: nn.Module) -> CLIPTextModel:
    """The text tower of an OpenCLIP model, frozen, in evaluation mode: tokens [B,77] -> last_hidden_state [B,77,C]."""
    layout = clip_l_layout(clip)
    width = clip.ln_final.weight.shape[0]
    config = CLIPTextConfig(
        vocab_size=clip.vocab_size,
        hidden_size=width,
        intermediate_size=layout["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(clip.transformer.resblocks),
        num_attention_heads=clip.transformer.resblocks[0].attn.num_heads,
        hidden_act="quick_gelu",
        projection_dim=clip.text_projection.shape[1],
        eos_token_id=END,
    )
    model = CLIPTextModel(config)
    model.load_state_dict(layout, strict=False)
    return model.eval().requires_grad_(False)


def filled_up(tokens: Tensor) -> Tensor:
    """OpenCLIP's tokens [B,77] as SD1.5's hosts fill them up: the end token stands in every place after the first one."""
    ended = (tokens == END).cumsum(-1) > 0
    return torch.where(ended, END, tokens)
