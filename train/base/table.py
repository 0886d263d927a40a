"""The recipe's table [base]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class BaseTable:
    """[base]: the frozen model that the adapter is trained on, and will be applied to."""

    checkpoint: Path | None = None
    """A single-file .safetensors checkpoint of SD1.5 or of any fine-tune of it."""
    text_encoder: str = ""
    """Where the text encoder is, if not in the checkpoint: local-dir:FOLDER of an OpenCLIP model. The miniature's lies in assets/mini/clip."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights in memory; auto: that of [run] precision. What is trained stays float32."""
    gradient_checkpointing: bool = False
    """Compute the UNet's blocks twice instead of keeping their inner states: less memory, about a third more time."""
