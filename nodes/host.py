"""Binds a guidance to ComfyUI's ModelPatcher hooks. With host_models.py, all that knows ComfyUI's internals.

One forward of the UNet, in the host's order: `PortsPatch` after input block 0 resolves the guidance once and leaves the values
in transformer_options; `KeyScalePatch` (port 1) and `ExtraAttentionPatch` (port 2) read them in every transformer block;
`PortsPatch` after input blocks 2, 5, 8, 11 adds the residuals (port 3). Patches never change after they are built and share
their tensors, so they are cheap to copy.
"""

from __future__ import annotations

import inspect
import logging
import uuid
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention

from ..kbdm_core.adapter import KBDMAdapter
from ..kbdm_core.guidance import Guidance, Ports
from ..kbdm_core.roles import NEGATIVE, POSITIVE
from ..kbdm_core.sd15 import BLOCKS, RESIDUAL_LEVEL_BY_INPUT_BLOCK, Block
from .token_grid import token_grid

try:  # ComfyUI from December 2024 on
    from comfy.patcher_extension import CallbacksMP, WrappersMP, add_wrapper_with_key
except ImportError:  # comfyui 0.0.1 (June 2024)
    CallbacksMP = WrappersMP = add_wrapper_with_key = None

logger = logging.getLogger("kbdm")

ADAPTER_OPERATIONS = comfy.ops.manual_cast  # weights follow the input's device and dtype, and can be offloaded
COND_NAMES = "kbdm_cond_names"  # transformer_options key: name of each cond by uuid
LAST_BLOCK = BLOCKS[-1].patch_key
HOST_LOADS_PATCH_MODELS = hasattr(comfy.model_patcher.ModelPatcher, "model_patches_models")
ATTENTION_KEYWORDS = inspect.signature(optimized_attention).parameters
TAKES_ANY_KEYWORD = any(p.kind is p.VAR_KEYWORD for p in ATTENTION_KEYWORDS.values())


def host_attention(q, k, v, heads: int, extra: dict | None = None) -> torch.Tensor:
    """The host's own attention (flash, sage, split ...) with the keywords that this host's version knows."""
    extra = extra or {}
    known = {"attn_precision": extra.get("attn_precision"), "transformer_options": extra}
    keywords = {name: value for name, value in known.items() if TAKES_ANY_KEYWORD or name in ATTENTION_KEYWORDS}
    return optimized_attention(q, k.to(q.dtype), v.to(q.dtype), heads, **keywords)


def adapter_patcher(adapter: KBDMAdapter) -> comfy.model_patcher.ModelPatcher:
    """Wrap an adapter so that the host loads, offloads and counts its weights like those of any model."""
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(adapter, management.get_torch_device(), management.unet_offload_device())


@dataclass(eq=False)
class Binding:
    """A guidance, the model it steers, when, and whose weights it uses: shared by all patches of one node run."""

    guidance: Guidance
    base: Any  # comfy.model_base.BaseModel, shared by all clones
    start_percent: float
    end_percent: float
    weights: Any = None  # ModelPatcher of the adapter
    key: str = field(init=False)
    warned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.key = f"kbdm_{uuid.uuid4().hex}"
        self.active = {block.patch_key for block in self.guidance.kb.active_blocks()} if self.guidance.kb else set()

    def begin(self, h: torch.Tensor, transformer_options: dict) -> None:
        """Resolve the guidance for this forward and leave it in transformer_options. h: block-0 features."""
        transformer_options.pop(self.key, None)
        sampling = self.base.model_sampling  # the one in effect, also if a later node replaced it
        sigmas = transformer_options["sigmas"]
        sigma = float(sigmas.flatten()[0])
        if not sampling.percent_to_sigma(self.end_percent) <= sigma <= sampling.percent_to_sigma(self.start_percent):
            return
        roles = cond_roles(transformer_options)
        if h.shape[0] % len(roles):  # a pack that batches in its own way: every image is its own, all positive
            roles = roles[:1]
        timestep = sampling.timestep(sigmas).float().flatten().to(h.device)
        ports = self.guidance.begin(timestep, roles, h.shape[0] // len(roles), h)
        transformer_options[self.key] = Forward(ports, set())

    def move(self, device: Any) -> None:
        """The host moves the model: leave no prepared tensor behind on the device that it leaves."""
        if not isinstance(device, torch.device):
            return
        if device != comfy.model_management.get_torch_device():
            self.guidance.forget()
        if self.weights is not None and not HOST_LOADS_PATCH_MODELS and device.type != "meta":  # from there weights do not come back
            self.weights.model.to(device)

    def check_slots(self, fired: set) -> None:
        """Say once if blocks of port 2 did not run: another node took their place in the model."""
        missing = sorted(self.active - fired - {LAST_BLOCK})
        if missing and not self.warned:
            self.warned = True
            logger.warning(
                "KB-DM Adapter: the knowledge base reached %d of %d blocks; another node replaced the cross-attention of %s. "
                "Apply KB-DM Adapter after that node.", len(self.active) - len(missing), len(self.active), missing,
            )  # fmt: skip


@dataclass(frozen=True)
class Forward:
    """What the blocks of one forward need: the ports, and which blocks have used port 2 so far."""

    ports: Ports
    fired: set


def cond_roles(transformer_options: dict) -> tuple[str, ...]:
    """positive or negative per chunk of the batch.

    By the guider's cond names where the host tells them, else by index: 0 positive, 1 negative, 2 and above positive.
    """
    chunks = transformer_options.get("cond_or_uncond") or [0]
    names = transformer_options.get(COND_NAMES, {})
    uuids = transformer_options.get("uuids") or [None] * len(chunks)
    by_index = [NEGATIVE if index == 1 else POSITIVE for index in chunks]
    return tuple(
        (NEGATIVE if NEGATIVE in names[uid] else POSITIVE) if uid in names else role for role, uid in zip(by_index, uuids)
    )


def remember_cond_names(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: note the guider's name (positive, negative, middle ...) of each cond before sampling."""
    guider = executor.class_obj
    names = {cond["uuid"]: name for name, conds in guider.conds.items() for cond in conds if "uuid" in cond}
    guider.model_options["transformer_options"][COND_NAMES] = names
    return executor(*args, **kwargs)


class _Patch:
    """A patch without state of its own: copying gives the same object, moving moves what the binding holds."""

    def __init__(self, binding: Binding):
        self.binding = binding

    def __deepcopy__(self, memo):
        return self

    def to(self, device_or_dtype):
        self.binding.move(device_or_dtype)
        return self


class PortsPatch(_Patch):
    """input_block_patch: prologue of the forward (block 0) and port 3 (blocks 2, 5, 8, 11, before the skip is stored)."""

    def __call__(self, h, transformer_options):
        number = transformer_options["block"][1]
        if number == 0:
            self.binding.begin(h, transformer_options)
        forward = transformer_options.get(self.binding.key)
        level = RESIDUAL_LEVEL_BY_INPUT_BLOCK.get(number)
        residual = forward.ports.residual(level) if forward is not None and level is not None else None
        if residual is None:
            return h
        if residual.shape[-2:] != h.shape[-2:]:  # Deep Shrink works at another resolution here
            residual = F.interpolate(residual, h.shape[-2:], mode="bilinear")
        return h + residual.to(h.dtype)

    def models(self):
        return [self.binding.weights] if self.binding.weights is not None else []


class KeyScalePatch(_Patch):
    """attn1_patch: port 1, scales the inputs of self-attention's bias-free to_q and to_k. The value is left alone."""

    def __call__(self, n, context, value, extra):
        forward = extra.get(self.binding.key)
        if forward is None or context.shape[0] != forward.ports.batch:
            return n, context, value
        size = token_grid(context.shape[1], extra["original_shape"], extra.get("activations_shape"))
        if size is None or n.shape[:2] != context.shape[:2]:
            return n, context, value
        n, context = forward.ports.scale_tokens(extra["block"], n, context, size)
        return n, context, value


class SlotCheckPatch(_Patch):
    """output_block_patch: before the last block, see whether port 2 ran wherever it should."""

    def __call__(self, h, hsp, transformer_options):
        forward = transformer_options.get(self.binding.key)
        if forward is not None and transformer_options["block"] == LAST_BLOCK:
            self.binding.check_slots(forward.fired)
        return h, hsp


class ExtraAttentionPatch(_Patch):
    """attn2 replace: port 2. Calls what was in the slot before, adds the KB attention, then what other packs `.add` to it."""

    def __init__(self, binding: Binding, block: Block, prior: Any = None, added: tuple = ()):
        super().__init__(binding)
        self.block, self.prior, self.added = block, prior, list(added)

    def __deepcopy__(self, memo):
        return self.shell()

    def shell(self) -> ExtraAttentionPatch:
        """A copy with a callback list of its own: an IP-Adapter added to one branch of the graph does not reach the other."""
        return ExtraAttentionPatch(self.binding, self.block, self.prior, tuple(self.added))

    def add(self, callback, **kwargs):
        """IP-Adapter packs call this on what they find in the slot; runs as out + callback(out, q, k, v, extra, **kwargs)."""
        self.added.append((callback, kwargs))

    def __call__(self, q, k, v, extra):
        heads = extra["n_heads"]
        out = self.prior(q, k, v, extra) if self.prior is not None else host_attention(q, k, v, heads, extra)
        forward = extra.get(self.binding.key)
        if forward is not None and q.shape[0] == forward.ports.batch:
            forward.fired.add(self.block.patch_key)
            kb = forward.ports.extra_attention(self.block, q, heads, lambda *qkv: host_attention(*qkv, extra))
            out = out + kb.to(out.dtype)
        if self.added:
            sigma = float(extra["sigmas"].flatten()[0])
            for callback, kwargs in self.added:
                if kwargs.get("sigma_end", 0.0) <= sigma <= kwargs.get("sigma_start", float("inf")):
                    out = out + callback(out, q, k, v, extra, **kwargs)
        return out

    def to(self, device_or_dtype):
        super().to(device_or_dtype)
        prior = self.prior.to(device_or_dtype) if hasattr(self.prior, "to") else self.prior
        return self if prior is self.prior else ExtraAttentionPatch(self.binding, self.block, prior, tuple(self.added))

    def models(self):
        return self.prior.models() if hasattr(self.prior, "models") else []


def apply_guidance(model, guidance: Guidance, start_percent: float, end_percent: float, weights=None):
    """A clone of `model` (ModelPatcher) that the guidance steers from start_percent to end_percent; `model` is not changed.

    weights: the adapter's ModelPatcher, if the guidance uses one. Nothing is patched where nothing would happen.
    """
    patched = model.clone()
    if start_percent >= end_percent or (guidance.mask is None and guidance.kb is None and guidance.pose is None):
        return patched
    binding = Binding(guidance, model.model, start_percent, end_percent, weights)
    _insert_front(patched, "input_block_patch", PortsPatch(binding))
    if guidance.mask is not None:
        _insert_front(patched, "attn1_patch", KeyScalePatch(binding))
    if guidance.kb is not None:
        for block in guidance.kb.active_blocks():
            slot, prior = _attn2_slot(patched, block)
            patched.set_model_attn2_replace(ExtraAttentionPatch(binding, block, prior), *slot)
        _insert_front(patched, "output_block_patch", SlotCheckPatch(binding))
        if WrappersMP is not None:
            options = patched.model_options["transformer_options"] = _copied(patched.model_options["transformer_options"], "wrappers")
            if COND_NAMES not in options.get("wrappers", {}).get(WrappersMP.OUTER_SAMPLE, {}):
                add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, COND_NAMES, remember_cond_names, options)
        _keep_clones_apart(patched)
    return patched


def _copied(options: dict, name: str) -> dict:
    """transformer_options with a deep-enough copy of one nested container, so that the model that came in keeps its own."""
    nested = {k: {key: list(v) for key, v in inner.items()} for k, inner in options.get(name, {}).items()}
    return {**options, name: nested}


def _insert_front(model, name: str, patch) -> None:
    """Put a patch before those of other nodes: they then see what an unpatched model with these features would show them."""
    options = model.model_options["transformer_options"]
    patches = dict(options.get("patches", {}))
    patches[name] = [patch, *patches.get(name, [])]
    model.model_options = {**model.model_options, "transformer_options": {**options, "patches": patches}}


def _attn2_slot(model, block: Block) -> tuple[tuple, Any]:
    """The key under which the host would look now, and what it finds there: a 3-tuple key shadows the 2-tuple."""
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    precise = (*block.patch_key, 0)
    slot = precise if precise in replaced else block.patch_key
    return slot, replaced.get(slot)


def _keep_clones_apart(model) -> None:
    """Where clone() copies containers only, give every clone shells of its own (where it deep-copies, __deepcopy__ does)."""
    if CallbacksMP is None or _shells(model.clone()) != _shells(model):
        return
    callbacks = model.callbacks.get(CallbacksMP.ON_CLONE, {})
    if COND_NAMES not in callbacks:
        model.add_callback_with_key(CallbacksMP.ON_CLONE, COND_NAMES, _renew_shells)


def _shells(model) -> dict:
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    return {slot: id(patch) for slot, patch in replaced.items() if isinstance(patch, ExtraAttentionPatch)}


def _renew_shells(_, clone) -> None:
    options = clone.model_options["transformer_options"]
    replaced = dict(options.get("patches_replace", {}))
    replaced["attn2"] = {
        slot: patch.shell() if isinstance(patch, ExtraAttentionPatch) else patch for slot, patch in replaced.get("attn2", {}).items()
    }
    clone.model_options = {**clone.model_options, "transformer_options": {**options, "patches_replace": replaced}}
