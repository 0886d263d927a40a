"""What a file is: format, sizes, origin and training of every file of ours, and whether it is sound."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tyro.conf import Positional

from kbdm_core import adapter_file, knowledge_base, mini_checkpoint
from kbdm_core.adapter_file import load_adapter
from kbdm_core.errors import FileFormatError, KBDMError
from kbdm_core.knowledge_base import load_knowledge_base
from kbdm_core.mini_checkpoint import load_mini_checkpoint
from train.features import store
from train.knowledge import codebook_file
from train.knowledge.codebook_file import load_codebook
from train.mini import estimator
from train.mini.estimator import read_estimator
from train.run import checkpoint
from train.run.checkpoint import load_checkpoint


@dataclass(frozen=True)
class InspectCommand:
    """Tell what files are, and whether they are sound."""

    files: Positional[tuple[Path, ...]] = ()
    """Knowledge bases, adapters, codebooks, the miniature's files, checkpoints of runs, or folders of features."""
    json: bool = False
    """Print one JSON object a line instead of text."""


def inspect(command: InspectCommand) -> None:
    """`python -m train inspect`. Raises KBDMError after the last file if some were unreadable: each is named, none ends the run."""
    if not command.files:
        raise KBDMError("no file was given: python -m train inspect FILE ...")
    broken = 0
    for path in command.files:
        try:
            found = describe(path)
        except KBDMError as error:
            broken += 1
            found = {"file": str(path), "error": str(error)}
        print(json.dumps(found) if command.json else _text(found))
    sys.stdout.flush()
    if broken:
        raise KBDMError(f"{broken} of {len(command.files)} files cannot be used, as said above.")


def describe(path: Path) -> dict[str, Any]:
    """What the file is, as JSON can hold it. The file is read and checked as a whole. Raises KBDMError for a file that is none of ours."""
    if path.is_dir():
        return {"file": str(path), **_features(path)}
    header = _header(path)
    form = header.get("format")
    if form not in READERS:
        raise FileFormatError(f"{path.name}: metadata 'format': expected one of {', '.join(READERS)}, found {form!r} (file: {path}).")
    facts = READERS[form](path)
    return {"file": str(path), "format": form, "format_version": header.get("format_version"), "bytes": path.stat().st_size, **facts}


def _header(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileFormatError(f"{path.name}: no such file (looked at {path}).")
    try:
        with safe_open(path, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise FileFormatError(f"{path.name}: not a readable safetensors file ({error}) (file: {path}).") from error


def _knowledge_base(path: Path) -> dict[str, Any]:
    base = load_knowledge_base(path)
    entries, width = base.codebook.shape
    return {
        "entries": entries,
        "width": width,
        "grid": list(base.grid),
        "classifier": base.classifier.kind,
        "classifier_weights": sum(value.numel() for value in base.classifier.parameters()),
        "text_width": base.text_projection.shape[0],
        "codebook_sha256": base.codebook_sha256,
        "clip": {"model": base.source.clip_model, "pretrained": base.source.clip_pretrained, "space": base.source.space},
        "training": base.source.training,
    }


def _adapter(path: Path) -> dict[str, Any]:
    adapter, info = load_adapter(path)
    sections = {name: sum(value.numel() for value in getattr(adapter, name).parameters()) for name in adapter.sections}
    hashes = {"base": info.base, "base_sha256": info.base_sha256, "codebook_sha256": info.codebook_sha256}
    options = vars(adapter.options) if hasattr(adapter.options, "__dict__") else str(adapter.options)
    return {"sections": sections, **hashes, "options": options, "training": info.training}


def _codebook(path: Path) -> dict[str, Any]:
    file = load_codebook(path)
    entries, width = file.codebook.shape
    return {"entries": entries, "width": width, "clip": file.clip, "training": file.training}


def _estimator(path: Path) -> dict[str, Any]:
    found, config = read_estimator(path)
    weights = sum(value.numel() for value in found.parameters())
    return {"weights": weights, "judged": config.get("judged"), "training": config.get("training")}


def _checkpoint(path: Path) -> dict[str, Any]:
    step, state = load_checkpoint(path)
    return {"stage": path.parent.name, "step": step, "holds": sorted(state)}


def _mini_checkpoint(path: Path) -> dict[str, Any]:
    found = load_mini_checkpoint(path)
    return {"unet": vars(found.unet), "autoencoder": vars(found.autoencoder), "training": found.file.config.get("training", {})}


def _features(folder: Path) -> dict[str, Any]:
    found = store.FeatureStore.existing(folder)
    return {
        "format": store.FORMAT,
        "rows": len(found),
        "shape": list(found.shape),
        "dtype": str(found.dtype),
        "bytes": len(found) * found.row_bytes,
        **found.description,
    }


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    knowledge_base.FORMAT: _knowledge_base,
    adapter_file.FORMAT: _adapter,
    codebook_file.FORMAT: _codebook,
    estimator.FORMAT: _estimator,
    checkpoint.FORMAT: _checkpoint,
    mini_checkpoint.FORMAT: _mini_checkpoint,
}


def _text(facts: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", _text(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)
