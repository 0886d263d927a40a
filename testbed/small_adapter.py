"""A small adapter of random weights, as Load KB-DM Adapter gives it, and inputs for every part of it."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from testbed.host_model import WIDTHS
from testbed.pack import PACKAGE, load_node_module
from testbed.random_weights import randomise

nodes = load_node_module("adapter")
core_adapter = importlib.import_module(f"{PACKAGE}.kbdm_core.adapter")
core_file = importlib.import_module(f"{PACKAGE}.kbdm_core.adapter_file")
core_tokens = importlib.import_module(f"{PACKAGE}.kbdm_core.knowledge_base").KBTokens

ON = {"kb_strength": 1.0, "dm_strength": 1.0, "pose_strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
TOKENS, TOKEN_WIDTH = 16, 24
CODEBOOK = "0123456789abcdef" * 4


def small_sizes(sections=core_adapter.SECTIONS, widths=WIDTHS):
    return core_adapter.sd15_sizes(widths, sections, TOKENS, TOKEN_WIDTH, pose_width=32, pose_stem=(8, 8, 16, 16))


def save_small_adapter(path, sections=core_adapter.SECTIONS, fresh: bool = False, seed: int = 0, dtype=None, widths=WIDTHS) -> None:
    """Write an adapter whose ports all do something, or a fresh one, which is the identity."""
    adapter = core_adapter.fresh_adapter(small_sizes(sections, widths))
    if not fresh:
        randomise(adapter, seed)
        for block in core_adapter.BLOCKS if "kb" in sections else ():
            adapter.kb.block(block).scale.data.fill_(0.5)
        if "dm" in sections:
            adapter.dm.blend.data.fill_(0.7)
    core_file.save_adapter(path, adapter, core_file.AdapterInfo("small", "sd15-mini", codebook_sha256=CODEBOOK), dtype)


def load_small_adapter(path):
    """The file as the loader node gives it, weights managed by the host."""
    adapter, info = core_file.load_adapter(path, operations=nodes.host.ADAPTER_OPERATIONS)
    return nodes.LoadedAdapter(adapter, info, nodes.host.adapter_patcher(adapter))


def random_adapter(**choices):
    """A loaded adapter; choices: of save_small_adapter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        save_small_adapter(path, **choices)
        return load_small_adapter(path)


def kb_tokens(seed: int = 3, **changes):
    """KBDM_TOKENS of one prompt and one negative prompt that have nothing in common."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.randn(2, 1, TOKENS, TOKEN_WIDTH, generator=generator)
    tokens = core_tokens(
        positive=positive, negative=negative, codebook_sha256=CODEBOOK, knowledge_base="small-kb", grid=(4, 4), phrases=("a person",),
        indices=torch.zeros(1, TOKENS, dtype=torch.long), confidence=torch.ones(1, TOKENS),
    )  # fmt: skip
    return replace(tokens, **changes)


def pose_picture(height: int = 136, width: int = 96) -> torch.Tensor:
    """IMAGE: coloured limbs on black."""
    picture = torch.zeros(1, height, width, 3)
    picture[:, height // 4 : height // 2, width // 3 : width // 3 + 6] = torch.tensor([1.0, 0.2, 0.0])
    picture[:, height // 2 : height // 2 + 6, width // 4 : width // 2] = torch.tensor([0.0, 0.4, 1.0])
    return picture


def steer(model, adapter, **changes):
    """KB-DM Adapter Apply with everything connected and on, but for the changes."""
    connected = {"kb_tokens": kb_tokens(), "pose_image": pose_picture(), "mask": None}
    (steered,) = nodes.KBDMAdapterApply().apply(model, adapter, **{**ON, **connected, **changes})
    return steered
