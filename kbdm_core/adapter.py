"""KBDMAdapter: the trainable part of KB-DMGen in three optional sections, `kb`, `dm` and `pose`, one per port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import AXES, BRANCH_AXES
from .errors import KBDMError
from .gate import TimestepGate
from .kb_attention import KBAttention
from .pose_branch import PoseBranch
from .sd15 import BLOCKS
from .soft_mask import BACKGROUNDS

SECTIONS = ("kb", "dm", "pose")


@dataclass(frozen=True)
class AdapterSizes:
    """Sizes of an adapter. All can be read off its tensors; a section is present if its first size is not None.

    widths: of the base UNet's four levels; kb_tokens, kb_width: N, C; gate_outputs: 16 or 1; pose_width: of the ViT.
    """

    widths: tuple[int, ...]
    kb_tokens: int | None = None
    kb_width: int | None = None
    gate_outputs: int | None = None
    pose_width: int | None = None
    pose_stem: tuple[int, ...] | None = None


@dataclass(frozen=True)
class AdapterOptions:
    """How the maths is read (evidence: the paper is silent). Kept in the file's `config`."""

    dm_axis: str = "key"
    dm_background: str = "zero"
    pose_axis: str = "union"
    pose_background: str = "zero"

    def __post_init__(self) -> None:
        known_values = {"dm_axis": AXES, "dm_background": BACKGROUNDS, "pose_axis": BRANCH_AXES, "pose_background": BACKGROUNDS}
        for name, known in known_values.items():
            if getattr(self, name) not in known:
                raise KBDMError(f"Adapter option {name} is '{getattr(self, name)}': expected one of {', '.join(known)}.")


DEFAULT_OPTIONS = AdapterOptions()


class DynamicMaskSection(nn.Module):
    """The section `dm`: timestep gate (Eq. 9) and one raw blend per block. blend = 0 is the identity."""

    def __init__(self, gate_outputs: int, operations: Any = nn, device=None, dtype=None):
        super().__init__()
        self.gate = TimestepGate(gate_outputs, operations=operations, device=device, dtype=dtype)
        self.blend = nn.Parameter(torch.zeros(len(BLOCKS), device=device, dtype=dtype))


class KBDMAdapter(nn.Module):
    """The adapter. A freshly initialised one is the identity on its base, bit for bit in fp32.

    operations: where Linear, Conv2d and LayerNorm come from (torch.nn, or a host's own that cast and offload).
    """

    def __init__(self, sizes: AdapterSizes, options: AdapterOptions = DEFAULT_OPTIONS, operations: Any = nn, device=None, dtype=None):
        super().__init__()
        self.sizes, self.options = sizes, options
        kw = {"operations": operations, "device": device, "dtype": dtype}
        if sizes.kb_tokens is not None:
            self.kb = KBAttention(sizes.kb_tokens, sizes.kb_width, sizes.widths, **kw)
        if sizes.gate_outputs is not None:
            self.dm = DynamicMaskSection(sizes.gate_outputs, **kw)
        if sizes.pose_width is not None:
            self.pose = PoseBranch(sizes.widths, sizes.pose_width, sizes.pose_stem, **kw)

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections that this adapter has."""
        return tuple(name for name in SECTIONS if hasattr(self, name))


def fresh_adapter(
    sizes: AdapterSizes,
    options: AdapterOptions = DEFAULT_OPTIONS,
    text_projections: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> KBDMAdapter:
    """A new adapter that is the identity: scale 0, blend 0, zero convolutions.

    text_projections: block name -> (to_k, to_v) weights of the base's attn2, from which `kb` starts. The global random
    state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = KBDMAdapter(sizes, options)
        if "kb" in adapter.sections:
            adapter.kb.initialise(text_projections or {})
        if "pose" in adapter.sections:
            adapter.pose.initialise()
    return adapter


def sd15_sizes(
    widths: tuple[int, ...] = (320, 640, 1280, 1280),
    sections: tuple[str, ...] = SECTIONS,
    kb_tokens: int = 256,
    kb_width: int = 768,
    gate_outputs: int = len(BLOCKS),
    pose_width: int = 512,
    pose_stem: tuple[int, ...] = (128, 256, 384, 512),
) -> AdapterSizes:
    """Sizes of an adapter for SD1.5 (the defaults) or any UNet of its topology."""
    kb, dm, pose = (name in sections for name in SECTIONS)
    return AdapterSizes(
        tuple(widths),
        *((kb_tokens, kb_width) if kb else (None, None)),
        gate_outputs if dm else None,
        *((pose_width, tuple(pose_stem)) if pose else (None, None)),
    )
