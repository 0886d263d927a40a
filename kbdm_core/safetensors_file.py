"""Reading and writing of our safetensors files: validated metadata in, one error type out, never a half-written file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import FileFormatError

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TensorFile:
    """Contents of one safetensors file: its path, tensors by name, metadata (strings) and parsed `config`."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    config: dict

    def fail(self, what: str, expected: object, found: object) -> FileFormatError:
        """The one error of this file, for `raise`: names file, key, expected and found."""
        return FileFormatError(f"{self.path.name}: {what}: expected {expected}, found {found} (file: {self.path}).")

    def tensor(self, key: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """The floating-point tensor `key`, whose shape must match `shape` (None = any size)."""
        if key not in self.tensors:
            raise self.fail(f"tensor '{key}'", f"a tensor of shape {_shape_text(shape)}", "none of that name")
        tensor = self.tensors[key]
        if tensor.dtype not in FLOAT_DTYPES:
            raise self.fail(f"tensor '{key}'", "float32, float16 or bfloat16", tensor.dtype)
        if tensor.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, tensor.shape)):
            raise self.fail(f"tensor '{key}'", f"shape {_shape_text(shape)}", f"shape {list(tensor.shape)}")
        return tensor

    def exactly(self, shapes: Mapping[str, Sequence[int]], known: str) -> dict[str, torch.Tensor]:
        """All tensors, which must be those of `shapes` and no other, finite. known: what they are, for the error ("only tensors of ...")."""
        found = {key: self.tensor(key, tuple(shape)) for key, shape in shapes.items()}
        for key, tensor in found.items():
            if not torch.isfinite(tensor).all():
                raise self.fail(f"tensor '{key}'", "finite values", "NaN or infinity")
        unknown = sorted(self.tensors.keys() - found.keys())
        if unknown:
            raise self.fail(f"tensor '{unknown[0]}'", f"only tensors of {known}", f"{len(unknown)} unknown tensor(s)")
        return found


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def read(path: str | os.PathLike, file_format: str, version: int = 1) -> TensorFile:
    """Read a safetensors file whose metadata must say `format = file_format` and `format_version = version`.

    Nothing is unpickled. Raises FileFormatError for anything that is not such a file: missing, truncated, a pickle
    renamed to .safetensors, a header that lies about sizes, another format or version, a config that is not JSON.
    """
    path = Path(path)
    metadata, tensors = _opened(path, file_format)
    found = TensorFile(path, tensors, metadata, {})
    if metadata.get("format") != file_format:
        raise found.fail("metadata 'format'", f"'{file_format}'", repr(metadata.get("format")))
    if metadata.get("format_version") != str(version):
        raise found.fail("metadata 'format_version'", f"'{version}'", repr(metadata.get("format_version")))
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError) as error:
        raise found.fail("metadata 'config'", "a JSON object", f"text that is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise found.fail("metadata 'config'", "a JSON object", type(config).__name__)
    return TensorFile(path, tensors, metadata, config)


def read_foreign(path: str | os.PathLike) -> TensorFile:
    """Read a safetensors file that another program's format fills, such as OpenCLIP's weights: its metadata may say anything.

    Raises FileFormatError for a missing, truncated or lying file, and for a pickle renamed to .safetensors.
    """
    path = Path(path)
    metadata, tensors = _opened(path, None)
    return TensorFile(path, tensors, metadata, {})


def _opened(path: Path, file_format: str | None) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors; of a file of another format than file_format (None = any will do) the metadata alone."""
    if not path.is_file():
        raise FileFormatError(f"{path.name}: no such file (looked at {path}).")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {}
            if file_format in (None, metadata.get("format")):
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (safe_open is not iterable)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        expected = f"a file of format '{file_format}'" if file_format else "a safetensors file"
        raise FileFormatError(
            f"{path.name}: not a readable safetensors file ({error}). Expected {expected}; "
            f"the download may be cut off, or it may be a .ckpt/.pt that was renamed (file: {path})."
        ) from error
    return metadata, tensors


def write(path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str], config: dict) -> None:
    """Write tensors and metadata to a temporary name, fsync, rename: a crash leaves the old file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode  # those that the user's umask gives; safetensors would let nobody else read
        save_file(contiguous, temporary, metadata={**metadata, "config": json.dumps(config)})
        temporary.chmod(permissions)
        with open(temporary, "rb+") as opened:
            os.fsync(opened.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def tensor_sha256(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) of the tensor's values as contiguous little-endian float32."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()).hexdigest()
