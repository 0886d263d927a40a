"""Load KB-DM Adapter and KB-DM Adapter Apply: an adapter file, bound to a model, KB tokens, a pose picture and a mask."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..kbdm_core.adapter import KBDMAdapter
from ..kbdm_core.adapter_file import AdapterInfo, load_adapter
from ..kbdm_core.errors import MismatchError
from ..kbdm_core.guidance import adapter_guidance
from . import host, model_folders
from .inputs import END_PERCENT, START_PERCENT, strength
from .notice import tell
from .sd15_model import require_base


@dataclass(frozen=True)
class LoadedAdapter:
    """KBDM_ADAPTER: the adapter, what its file says, and the host's handle on its weights."""

    adapter: KBDMAdapter
    info: AdapterInfo
    weights: Any


class KBDMLoadAdapter:
    """Reads models/kbdm_adapters/*.safetensors."""

    CATEGORY = "KB-DM"
    FUNCTION = "load"
    RETURN_TYPES = ("KBDM_ADAPTER",)
    RETURN_NAMES = ("adapter",)
    OUTPUT_TOOLTIPS = ("The adapter, for KB-DM Adapter Apply and Plot Dynamic Mask.",)
    DESCRIPTION = "Loads a KB-DM adapter (safetensors) from models/kbdm_adapters."
    SEARCH_ALIASES = ["kb-dmgen", "pose adapter loader"]

    @classmethod
    def INPUT_TYPES(cls):
        names = model_folders.names(model_folders.ADAPTERS)
        return {"required": {"adapter_name": (names, {"tooltip": "A file in models/kbdm_adapters."})}}

    @classmethod
    def IS_CHANGED(cls, adapter_name):
        return os.path.getmtime(model_folders.full_path(model_folders.ADAPTERS, adapter_name))

    def load(self, adapter_name):
        path = model_folders.full_path(model_folders.ADAPTERS, adapter_name)
        adapter, info = load_adapter(path, operations=host.ADAPTER_OPERATIONS)
        return (LoadedAdapter(adapter, info, host.adapter_patcher(adapter)),)


class KBDMAdapterApply:
    """Binds an adapter to a model and to its inputs."""

    CATEGORY = "KB-DM"
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The steered model; the connected model itself is not changed.",)
    DESCRIPTION = (
        "Steers an SD1.5 model with a KB-DM adapter: knowledge-base tokens in cross-attention, the dynamic pose mask in self-attention, "
        "the pose branch's feature maps. A part whose input is not connected is off."
    )
    SEARCH_ALIASES = ["kb-dmgen", "pose adapter", "knowledge base guidance"]

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "An SD1.5 model (or the base that the adapter names)."}),
                "adapter": ("KBDM_ADAPTER", {"tooltip": "From Load KB-DM Adapter."}),
                "kb_strength": strength("Weight of the knowledge base; 0 = off.", 2.0),
                "dm_strength": strength("Weight of the dynamic mask; 0 = off, 1 = as trained.", 1.0),
                "pose_strength": strength("Weight of the pose branch; 0 = off.", 2.0),
                "start_percent": START_PERCENT,
                "end_percent": END_PERCENT,
            },
            "optional": {
                "kb_tokens": ("KBDM_TOKENS", {"tooltip": "From KB Text Query. Not connected: the knowledge base is off."}),
                "pose_image": ("IMAGE", {"tooltip": "A skeleton picture on black (Render Pose, DWPose ...). Not connected: the pose branch is off."}),
                "mask": ("MASK", {"tooltip": "Where the people are. Not connected: derived from pose_image; without both, the dynamic mask is off."}),
                "negative_strength": strength(
                    "Share of the adapter for the negative prompt: 1 = as in training, 0 = none, so that cfg pushes towards the pose, too.", 1.0
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }  # fmt: skip

    def apply(
        self, model, adapter, kb_strength, dm_strength, pose_strength, start_percent, end_percent,
        kb_tokens=None, pose_image=None, mask=None, negative_strength=1.0, unique_id=None,
    ):  # fmt: skip
        info, sections = adapter.info, adapter.adapter.sections
        require_base(model, adapter.adapter.sizes.widths, info.base, info.name)
        if kb_tokens is not None and "kb" in sections:
            _require_same_knowledge_base(adapter, kb_tokens)
        for text in _switched_off(sections, kb_tokens, pose_image, mask):
            tell(f"KB-DM Adapter '{info.name}': {text}", unique_id)
        guidance = adapter_guidance(
            adapter.adapter,
            None if kb_tokens is None else (kb_tokens.positive, kb_tokens.negative),
            pose_image,
            mask[None] if mask is not None and mask.ndim == 2 else mask,
            kb_strength,
            dm_strength,
            pose_strength,
            negative_strength=negative_strength,
        )
        return (host.apply_guidance(model, guidance, start_percent, end_percent, adapter.weights),)


def _require_same_knowledge_base(adapter: LoadedAdapter, kb_tokens) -> None:
    trained, given = adapter.info.codebook_sha256, kb_tokens.codebook_sha256
    if trained and trained != given:
        raise MismatchError(
            f"KB-DM Adapter '{adapter.info.name}' was trained with the knowledge base whose codebook is {trained[:12]}…, but kb_tokens come "
            f"from '{kb_tokens.knowledge_base}', whose codebook is {given[:12]}…. Load the knowledge base that belongs to the adapter."
        )
    size, want = list(kb_tokens.positive.shape[-2:]), [adapter.adapter.sizes.kb_tokens, adapter.adapter.sizes.kb_width]
    if size != want:
        raise MismatchError(
            f"KB-DM Adapter '{adapter.info.name}' reads {want[0]} tokens of width {want[1]}, but kb_tokens of '{kb_tokens.knowledge_base}' "
            f"are {size[0]} of width {size[1]}. Load the knowledge base that belongs to the adapter."
        )


def _switched_off(sections, kb_tokens, pose_image, mask) -> list[str]:
    """Sentences on what is off: a section without its input, or an input without its section."""
    said = []
    if "kb" in sections and kb_tokens is None:
        said.append("kb_tokens is not connected, so the knowledge base is off.")
    if "kb" not in sections and kb_tokens is not None:
        said.append("the file has no kb section, so kb_tokens is not used.")
    if "pose" in sections and pose_image is None:
        said.append("pose_image is not connected, so the pose branch is off.")
    if "pose" not in sections and pose_image is not None:
        said.append("the file has no pose section, so pose_image only gives the mask." if "dm" in sections else
                    "the file has no pose section, so pose_image is not used.")  # fmt: skip
    if "dm" in sections and mask is None and pose_image is None:
        said.append("neither mask nor pose_image is connected, so the dynamic mask is off.")
    if "dm" not in sections and mask is not None:
        said.append("the file has no dm section, so mask is not used.")
    return said
