"""Codebook files: stage 1's product, `kbdm.codebook` safetensors, which stage 2 builds a knowledge base on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kbdm_core.errors import FileFormatError
from kbdm_core.knowledge_base import load_knowledge_base
from kbdm_core.safetensors_file import read, tensor_sha256, write

FORMAT = "kbdm.codebook"
KEY = "codebook.weight"


@dataclass(frozen=True, eq=False)
class CodebookFile:
    """Codebook [K,C], float32; what it was trained on (`clip`: model, weights, space, fingerprint; {} for a features file) and its figures."""

    codebook: Tensor
    clip: dict
    training: dict


def save_codebook(path: Path, file: CodebookFile) -> None:
    """Write a codebook, atomically."""
    metadata = {"format": FORMAT, "format_version": "1", "codebook_sha256": tensor_sha256(file.codebook)}
    write(path, {KEY: file.codebook}, metadata, {"clip": file.clip, "training": file.training})


def load_codebook(path: Path) -> CodebookFile:
    """Read a codebook, or the one of a knowledge base in float32. Raises FileFormatError for anything else."""
    try:
        file = read(path, FORMAT)
    except FileFormatError as error:
        try:
            base = load_knowledge_base(path)
        except FileFormatError:
            raise error from None
        if tensor_sha256(base.codebook) != base.codebook_sha256:
            raise FileFormatError(f"{path.name}: its codebook has been rounded; adapters need the float32 one that was trained.") from None
        source = base.source
        clip = {"model": source.clip_model, "pretrained": source.clip_pretrained, "space": source.space}
        return CodebookFile(base.codebook, clip, source.training.get("codebook", {}))
    codebook = file.tensor(KEY, (None, None)).float()
    if not codebook.isfinite().all():
        raise file.fail(f"tensor '{KEY}'", "finite numbers", "NaN or infinite ones")
    if tensor_sha256(codebook) != file.metadata.get("codebook_sha256"):
        raise file.fail(f"tensor '{KEY}'", f"values of SHA-256 {file.metadata.get('codebook_sha256')}", "others; the file is damaged")
    tables = [file.config.get(key, {}) for key in ("clip", "training")]
    if not all(isinstance(table, dict) for table in tables):
        raise file.fail("config 'clip' and 'training'", "JSON objects", sorted(file.config))
    return CodebookFile(codebook, *tables)
