"""Input declarations that several nodes share."""

from __future__ import annotations

START_PERCENT = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001, "tooltip": "Share of the sampling after which it starts."})
END_PERCENT = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.001, "tooltip": "Share of the sampling after which it stops."})


def strength(tooltip: str, maximum: float) -> tuple[str, dict]:
    """A FLOAT input from 0 to `maximum` with default 1."""
    return ("FLOAT", {"default": 1.0, "min": 0.0, "max": maximum, "step": 0.01, "tooltip": tooltip})
