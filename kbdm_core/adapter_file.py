"""Adapter files: `kbdm.adapter` safetensors in and out, every tensor and the metadata validated."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from . import safetensors_file
from .adapter import SECTIONS, AdapterOptions, AdapterSizes, KBDMAdapter
from .errors import KBDMError
from .safetensors_file import TensorFile
from .sd15 import BLOCKS, LEVELS

FORMAT = "kbdm.adapter"


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter file says of itself: its base, the hash of the base it was trained on and of its codebook ("" = none), and its training."""

    name: str
    base: str
    base_sha256: str = ""
    codebook_sha256: str = ""
    training: dict = field(default_factory=dict)


def save_adapter(path: str | os.PathLike, adapter: KBDMAdapter, info: AdapterInfo, dtype: torch.dtype | None = None) -> None:
    """Write an adapter (atomically). dtype: cast on the way (None = as it is)."""
    tensors = {key: value.to(dtype) if dtype else value for key, value in adapter.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "format_version": "1",
        "base": info.base,
        "base_sha256": info.base_sha256,
        "codebook_sha256": info.codebook_sha256,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/kbdm-adapter",
        "modelspec.implementation": "kb-dmgen",
        "modelspec.title": info.name,
    }
    config = {"sections": list(adapter.sections), "options": asdict(adapter.options), "training": info.training}
    safetensors_file.write(path, tensors, metadata, config)


def load_adapter(path: str | os.PathLike, operations: Any = nn, device: Any = "cpu") -> tuple[KBDMAdapter, AdapterInfo]:
    """Read an adapter file; widths, C and N come from its tensors.

    operations: see KBDMAdapter. Raises FileFormatError that names file, key, expected and found.
    """
    file = safetensors_file.read(path, FORMAT)
    base = file.metadata.get("base", "")
    if not base:
        raise file.fail("metadata 'base'", "the base model's name, such as sd15", "nothing")
    if not file.metadata.get("codebook_sha256") and "kb.position" in file.tensors:
        raise file.fail("metadata 'codebook_sha256'", "the hash of the codebook that the kb section was trained with", "nothing")
    try:
        options = AdapterOptions(**file.config.get("options", {}))
    except (TypeError, KBDMError) as error:
        raise file.fail("config 'options'", "options this version knows", f"{file.config.get('options')} ({error})") from error
    with torch.device("meta"):
        adapter = KBDMAdapter(_sizes(file), options, operations)
    tensors = file.exactly({key: value.shape for key, value in adapter.state_dict().items()}, f"the sections {', '.join(SECTIONS)}")
    adapter.load_state_dict({key: value.to(device) for key, value in tensors.items()}, assign=True)
    adapter.eval().requires_grad_(False)
    hashes = (file.metadata.get(key, "") for key in ("base_sha256", "codebook_sha256"))
    info = AdapterInfo(file.path.name, base, *hashes, file.config.get("training", {}))
    return adapter, info


def _sizes(file: TensorFile) -> AdapterSizes:
    """Read the sizes off the tensors; the first misfit is the error."""
    present = [section for section in SECTIONS if any(key.startswith(f"{section}.") for key in file.tensors)]
    if not present:
        raise file.fail("sections", f"tensors of at least one of {', '.join(SECTIONS)}", f"{len(file.tensors)} other tensor(s)")
    widths, kb_tokens, kb_width, gate_outputs, pose_width, pose_stem = (), None, None, None, None, None
    if "kb" in present:
        kb_tokens, kb_width = file.tensor("kb.position", (None, None)).shape
        by_level = {block.level: block.name for block in BLOCKS}
        widths = tuple(file.tensor(f"kb.{by_level[level]}.to_k.weight", (None, kb_width)).shape[0] for level in range(LEVELS))
    if "dm" in present:
        gate_outputs = file.tensor("dm.gate.out.weight", (None, None)).shape[0]
        if gate_outputs not in (1, len(BLOCKS)):
            raise file.fail("tensor 'dm.gate.out.weight'", f"1 or {len(BLOCKS)} outputs", gate_outputs)
    if "pose" in present:
        pose_width = file.tensor("pose.norm.weight", (None,)).shape[0]
        widths = tuple(file.tensor(f"pose.level_out.{level}.weight", (None, None, 1, 1)).shape[0] for level in range(LEVELS))
        pose_stem = tuple(file.tensor(f"pose.level_stem.{level}.weight", (None, None, 1, 1)).shape[1] for level in range(LEVELS))
    return AdapterSizes(widths, kb_tokens, kb_width, gate_outputs, pose_width, pose_stem)
