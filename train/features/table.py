"""The recipe's table [clip], apart from the code that imports OpenCLIP: that takes seconds, which not every command needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kbdm_core.errors import KBDMError


@dataclass(frozen=True)
class ClipTable:
    """The recipe's table [clip]: which CLIP sees pictures and reads captions, and where its answers are kept."""

    model: str = "ViT-L-14-quickgelu"
    """Name of the architecture in OpenCLIP, or local-dir:FOLDER for a model saved with its own configuration. SD1.5 needs ViT-L-14-quickgelu."""
    pretrained: str = "openai"
    """Weights: a tag of OpenCLIP, which downloads them, or a local .safetensors file. Leave it empty for a local-dir: model."""
    space: Literal["joint", "raw"] = "joint"
    """joint: patch tokens projected into the space that they share with text (768 wide for ViT-L-14). raw: unprojected (1024 wide)."""
    dtype: Literal["float32", "float16"] = "float16"
    """Type of the stored features. At 256 tokens of 768 numbers, 50,000 pictures take 20 GB in float16 and 39 GB in float32."""
    batch: int = 32
    """Pictures per forward pass."""
    workers: int = 2
    """Threads that read and decode pictures ahead of the model."""
    cache: Path = Path(".cache/features")
    """Folder of the computed features. It may be kept and shared: a picture is computed once for each CLIP, space and precision."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 1:
            raise KBDMError(f"[clip] batch is {self.batch} and workers is {self.workers}; expected at least 1 of each.")
