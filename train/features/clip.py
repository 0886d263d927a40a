"""The frozen CLIP: patch tokens z_e of pictures and embeddings z_t of captions (Eq. 2, 7), from any OpenCLIP of the standard layout."""

from __future__ import annotations

import hashlib
import json
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from kbdm_core.errors import KBDMError
from train.features.table import ClipTable

MOST_CHARACTERS = 2000  # more than 77 tokens have; the tokeniser's time grows with the square of a word's length


class VisionTextCLIP:
    """A CLIP of both towers in evaluation mode, its weights as loaded. `autocast` is the precision of the vision tower, None = float32.

    grid (h, w) of the N tokens; width C of a token in the table's space; text_projection [C_text, C_z], float32 on the CPU;
    `preprocess` PIL RGB -> [3,H,W] is the model's own evaluation transform; `fingerprint` hashes the weights as loaded, the configuration
    and the preprocessing. Raises KBDMError if the model cannot be loaded or is not a CLIP with two standard transformers.
    """

    def __init__(self, table: ClipTable, device: str | torch.device = "cpu", autocast: torch.dtype | None = None):
        self.table, self.device, self.autocast = table, torch.device(device), autocast
        model, self._tokenise = _load(table)
        self.model = model.to(self.device)
        self.text_projection: Tensor = _text_tower(self.model).text_projection.detach().float().cpu()
        visual = self.model.visual
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.width: int = visual.proj.shape[1 if table.space == "joint" else 0]
        preprocessing = open_clip.get_model_preprocess_cfg(self.model)
        self.preprocess: Callable[[Image.Image], Tensor] = image_transform_v2(PreprocessCfg(**preprocessing), is_train=False)
        self.fingerprint = _fingerprint(self.model, open_clip.get_model_config(table.model), preprocessing)

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """z_e: patch tokens after ln_post, times visual.proj in the joint space. images [B,3,H,W] -> [B,N,C] float32 on the device."""
        visual = self.model.visual
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            found = visual.forward_intermediates(
                images.to(self.device, non_blocking=True), indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
            )
        tokens = found["image_intermediates"][-1].float()  # [B, N, C_vision]
        return tokens @ visual.proj.float() if self.table.space == "joint" else tokens

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """z_t: the EOS state after ln_final, times text_projection, not normalised. B texts -> [B,C_z] float32 on the device.

        Always in the weights' own precision: captions are few beside pictures, and the classifier is asked with z_t later.
        """
        read = [text[:MOST_CHARACTERS] for text in texts]
        return self.model.encode_text(self._tokenise(read).to(self.device)).float()


def _load(table: ClipTable) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    name = f"CLIP '{table.model}'" + (f" with weights '{table.pretrained}'" if table.pretrained else "")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")  # it would run, and every feature would be wrong
            model = open_clip.create_model(table.model, table.pretrained or None, require_pretrained=True)
        tokenise = open_clip.get_tokenizer(table.model)
    except Exception as error:  # whatever OpenCLIP meets in a name, a file or on the network
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)  # PyTorch lists every tensor that does not fit
        raise KBDMError(
            f"{name} cannot be loaded ({reason}). Expected a name of OpenCLIP with one of its tags or a local "
            ".safetensors file, or local-dir:FOLDER with open_clip_config.json and weights; without a network only local files work."
        ) from error
    if (lacking := _lacking(model)) is not None:
        raise KBDMError(
            f"{name} has {lacking}; expected a CLIP of two standard transformers, with a class token, visual.proj and text_projection, "
            "such as ViT-L-14-quickgelu."
        )
    return model.eval().requires_grad_(False), tokenise


def _lacking(model: nn.Module) -> str | None:
    """What keeps a model from giving patch tokens and a text embedding as this project defines them."""
    visual = getattr(model, "visual", None)
    if type(model) not in (open_clip.CLIP, open_clip.CustomTextCLIP) or not isinstance(visual, VisionTransformer):
        return f"a picture tower of type {type(visual).__name__} in a {type(model).__name__}"
    if visual.pool_type != "tok" or visual.attn_pool is not None or visual.final_ln_after_pool or visual.proj is None:
        return "a picture tower that pools otherwise than by its class token after ln_post and visual.proj"
    text = _text_tower(model)
    if text is not model and not isinstance(text, TextTransformer):
        return f"a text tower of type {type(text).__name__}"
    pool_type = model.text_pool_type if text is model else text.pool_type
    if pool_type != "argmax" or not isinstance(text.text_projection, nn.Parameter) or getattr(text, "cls_emb", None) is not None:
        return "a text tower that pools otherwise than by its EOS state after ln_final and text_projection"
    return None


def _text_tower(model: nn.Module) -> nn.Module:
    """Where ln_final and text_projection are: CustomTextCLIP has a tower of its own for them, CLIP holds them itself."""
    return getattr(model, "text", model)


def _fingerprint(model: nn.Module, config: dict, preprocessing: dict) -> str:
    digest = hashlib.sha256(json.dumps([config, preprocessing], sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([key, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
