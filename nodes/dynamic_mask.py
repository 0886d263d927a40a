"""Dynamic Mask Attention Patch: port 1 without any trained weights, on any UNet whose to_k has no bias."""

from __future__ import annotations

import torch

from ..kbdm_core.attention import AXES
from ..kbdm_core.dynamic_mask import BLOCK_GROUPS, DynamicMask
from ..kbdm_core.errors import MismatchError
from ..kbdm_core.gate import SCHEDULES, GateSchedule
from ..kbdm_core.guidance import Guidance
from ..kbdm_core.soft_mask import BACKGROUNDS
from . import host
from .inputs import END_PERCENT, START_PERCENT, strength
from .notice import tell
from .sd15_model import describe, has_maskable_attention


class KBDMDynamicMaskAttention:
    """Multiplies self-attention logits by m~ (Eq. 10-11): training-free."""

    CATEGORY = "KB-DM"
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model with masked self-attention; the connected model itself is not changed.",)
    DESCRIPTION = (
        "Dynamic pose mask of KB-DMGen without trained weights: self-attention pays 1+g times as much heed (on its logits) to the tokens under "
        "the mask, and g follows the sampling steps. Works with any SD1.5, SD2 or SDXL checkpoint, beside ControlNets and IP-Adapters."
    )
    SEARCH_ALIASES = ["kb-dmgen", "pose mask attention", "dynamic masking", "self-attention mask"]

    @classmethod
    def INPUT_TYPES(cls):
        g = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model whose self-attention is steered."}),
                "mask": ("MASK", {"tooltip": "Where the people are (white), for example from Pose-to-Mask. One mask per image, or one for all."}),
                "gate": (list(SCHEDULES), {"default": "linear", "tooltip": "How g goes from gate_start to gate_end while sampling."}),
                "gate_start": ("FLOAT", {"default": 1.0, **g, "tooltip": "g at the first step (noise). The mask's logits are multiplied by 1+g."}),
                "gate_end": ("FLOAT", {"default": 0.0, **g, "tooltip": "g at the last step (picture)."}),
                "blend": strength("How much of the masked attention: 0 is the unpatched model, 1 the full effect.", 1.0),
                "background": (
                    list(BACKGROUNDS),
                    {"tooltip": "neutral: tokens outside the mask keep their logits (safe). zero: their logits become 0, as in the paper; "
                     "a logit of 0 is not exclusion (e^0 = 1), and without trained weights pictures may suffer."},
                ),
                "axis": (
                    list(AXES),
                    {"tooltip": "Which side of a pair the mask weighs. key (paper): what is looked at; query: who looks; both: the product."},
                ),
                "blocks": (["all", *BLOCK_GROUPS], {"tooltip": "Which part of the UNet is patched."}),
                "start_percent": START_PERCENT,
                "end_percent": END_PERCENT,
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }  # fmt: skip

    def patch(self, model, mask, gate, gate_start, gate_end, blend, background, axis, blocks, start_percent, end_percent, unique_id=None):
        if not has_maskable_attention(model):
            raise MismatchError(
                f"Dynamic Mask Attention Patch works on UNets whose self-attention keys have no bias (SD1.5, SD2, SDXL), but the connected "
                f"model is {describe(model)}. Load an SD1.5 checkpoint."
            )
        mask = mask[None] if mask.ndim == 2 else mask
        if not (mask > 0.5).any():
            tell("Dynamic Mask Attention Patch: the mask is empty, so the model is left as it is.", unique_id)
        dynamic_mask = DynamicMask(
            mask,
            GateSchedule(gate, gate_start, gate_end),
            torch.tensor([float(blend)]),
            background,
            axis,
            BLOCK_GROUPS if blocks == "all" else (blocks,),
        )
        guidance = Guidance(mask=dynamic_mask if blend else None)
        return (host.apply_guidance(model, guidance, start_percent, end_percent),)
