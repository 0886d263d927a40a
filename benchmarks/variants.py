"""The full-size SD1.5 UNet of the host and the ways to run one step of it that are compared."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

from testbed.host_model import host_model, predict
from testbed.pack import PACKAGE, load_node_module
from testbed.random_weights import randomise

import comfy.cldm.cldm  # isort: skip
import comfy.controlnet  # isort: skip

SD15 = {"model_channels": 320, "num_heads": 8, "context_dim": 768}
SIGMA = 3.0


def core(name: str):
    """A module of the pack's own kbdm_core."""
    return importlib.import_module(f"{PACKAGE}.kbdm_core.{name}")


class Step:
    """One noise prediction of a full-size random SD1.5 UNet: `Step(size, conds).run(model)`."""

    def __init__(self, size: int, conds: int):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(1, 4, size // 8, size // 8, generator=generator)
        self.conds = [torch.randn(1, 77, 768, generator=generator) for _ in range(conds)]

    def run(self, model, **options) -> torch.Tensor:
        return predict(model, self.x, SIGMA, self.conds, **options)


def build(size: int) -> dict[str, Callable[[Step], torch.Tensor]]:
    """All variants by name; they share one UNet."""
    model = host_model(**SD15)
    host, adapters, masks = (load_node_module(name) for name in ("host", "adapter", "dynamic_mask"))
    mask = torch.zeros(1, size, size)
    mask[:, size // 5 : -size // 10, size // 3 : -size // 3] = 1
    dynamic = masks.KBDMDynamicMaskAttention().patch(model, mask, "linear", 1.0, 0.0, 1.0, "neutral", "key", "all", 0.0, 1.0)[0]
    adapter = core("adapter").fresh_adapter(core("adapter").sd15_sizes())
    randomise(adapter)
    adapter.requires_grad_(False)
    loaded = adapters.LoadedAdapter(adapter, core("adapter_file").AdapterInfo("bench", "sd15"), host.adapter_patcher(adapter))
    tokens = core("knowledge_base").KBTokens(*torch.randn(2, 1, 256, 768), "", "bench", (16, 16), (), torch.zeros(0, 256), torch.zeros(0, 256))
    picture = mask[..., None].expand(-1, -1, -1, 3)

    def apply(kb: float, dm: float, pose: float):
        return adapters.KBDMAdapterApply().apply(model, loaded, kb, dm, pose, 0.0, 1.0, tokens, picture, mask)[0]

    patched = {"dynamic mask": dynamic, "KB 256 tokens": apply(1, 0, 0), "pose branch": apply(0, 0, 1), "everything": apply(1, 1, 1)}
    spelled_out = literal(model, mask)
    variants = {name: lambda step, m=m: step.run(m) for name, m in patched.items()}
    return {
        "unpatched": lambda step: step.run(model),
        **variants,
        "literal Eq. 11": lambda step: step.run(spelled_out),
        "host's ControlNet": with_controlnet(model, picture),
    }


def literal(model, mask: torch.Tensor):
    """Eq. 11 as it is written: the N x N logits times the mask, then softmax."""
    pool = core("soft_mask").pool_mask

    def attention(q, k, v, extra):
        side = int(q.shape[1] ** 0.5)
        soft = 1.0 + 0.5 * pool(mask, (side, side))[:, None, None]  # [1, 1, 1, N]
        split = [x.view(x.shape[0], x.shape[1], extra["n_heads"], -1).transpose(1, 2) for x in (q, k, v)]
        logits = split[0] @ split[1].mT * split[0].shape[-1] ** -0.5
        return ((logits * soft).softmax(-1) @ split[2]).transpose(1, 2).flatten(2)

    patched = model.clone()
    for block in core("sd15").BLOCKS:
        patched.set_model_attn1_replace(attention, *block.patch_key)
    return patched


def with_controlnet(model, picture: torch.Tensor) -> Callable[[Step], torch.Tensor]:
    """The host's own ControlNet (full-size, random weights) beside the unpatched model."""
    config = {key: value for key, value in model.model.model_config.unet_config.items() if key not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(**{**config, "hint_channels": 3}).eval()
    randomise(network)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    control.set_cond_hint(picture.movedim(-1, 1), 1.0, (0.0, 1.0))
    control.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)
    extra = [{}] if "transformer_options" in inspect.signature(control.get_control).parameters else []

    def run(step: Step) -> torch.Tensor:
        chunks = len(step.conds)
        sigmas = torch.full((chunks,), SIGMA)
        with torch.no_grad():
            residuals = control.get_control(step.x.repeat(chunks, 1, 1, 1), sigmas, {"c_crossattn": torch.cat(step.conds)}, chunks, *extra)
        return step.run(model, control=residuals)

    return run


@contextmanager
def own_callbacks():
    """Seconds spent inside our own callbacks, without the host's own cross-attention that port 2 calls: a list that fills."""
    host = load_node_module("host")
    spent, base = [], []
    classes = (host.PortsPatch, host.KeyScalePatch, host.ExtraAttentionPatch, host.SlotCheckPatch)
    originals = {each: each.__call__ for each in classes}
    attention = host.host_attention

    def timed(call, sink):
        def wrapper(*args):
            start = time.perf_counter()
            result = call(*args)
            sink(time.perf_counter() - start, args)
            return result

        return wrapper

    def note_base(seconds, args):
        if args[1].shape[1] == 77:  # text keys: what the host would compute anyway
            base.append(seconds)

    host.host_attention = timed(attention, note_base)
    for each, call in originals.items():
        each.__call__ = timed(call, lambda seconds, args: spent.append(seconds))
    try:
        yield lambda: sum(spent) - sum(base)
    finally:
        host.host_attention = attention
        for each, call in originals.items():
            each.__call__ = call
