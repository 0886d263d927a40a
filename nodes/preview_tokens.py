"""Preview KB Tokens: a picture of what the knowledge base answered to each phrase."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ..kbdm_core.knowledge_base import KBTokens

TITLE_LENGTH = 60


class KBDMPreviewTokens:
    """ComfyUI node: index map and confidence of each phrase, a row each, as IMAGE."""

    CATEGORY = "KB-DM"
    DESCRIPTION = (
        "Shows what the knowledge base answered: for each phrase the codebook entry at every position (an entry has the same colour "
        "everywhere) and how sure the classifier was of it."
    )
    SEARCH_ALIASES = ("kb-dmgen", "kbdm", "index map", "confidence", "show tokens")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("One picture with a row per phrase: entries on the left, confidence on the right.",)
    FUNCTION = "preview"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"kb_tokens": ("KBDM_TOKENS", {"tooltip": "From KB Text Query."})}}

    def preview(self, kb_tokens: KBTokens) -> tuple[Tensor]:
        return (draw_tokens(kb_tokens),)


def draw_tokens(tokens: KBTokens) -> Tensor:
    """Index map and confidence heat map of each phrase -> IMAGE [1,H,W,3] in [0,1]. The confidence scale is one for all phrases."""
    rows = len(tokens.phrases)
    indices = tokens.indices.reshape(rows, *tokens.grid).numpy()
    confidence = tokens.confidence.reshape(rows, *tokens.grid).numpy()
    figure = Figure(figsize=(7.4, 3.2 * rows), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False)
    for i, (left, right) in enumerate(axes):
        used = len(np.unique(indices[i]))
        left.imshow(entry_colours(indices[i]), interpolation="nearest")
        left.set_title(_drawable(tokens.phrases[i]) or "(empty prompt)", loc="left", fontsize=11, parse_math=False)
        left.set_xlabel(f"{used} different {'entry' if used == 1 else 'entries'}", fontsize=9)
        heat = right.imshow(confidence[i], vmin=0.0, vmax=float(confidence.max()), cmap="viridis", interpolation="nearest")
        right.set_xlabel(f"confidence, mean {confidence[i].mean():.3g}", fontsize=9)
        figure.colorbar(heat, ax=right, fraction=0.046)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(picture.astype(np.float32) / 255.0)[None]


def entry_colours(indices: np.ndarray) -> np.ndarray:
    """A fixed colour for each codebook index, neighbouring indices far apart in hue. int [...] -> RGB float [...,3]."""
    hue = indices * 0.6180339887498949 % 1.0
    saturation = 0.45 + 0.5 * (indices * 0.7548776662466927 % 1.0)
    value = 0.55 + 0.45 * (indices * 0.5698402909980532 % 1.0)
    return hsv_to_rgb(np.stack([hue, saturation, value], axis=-1))


def _drawable(phrase: str) -> str:
    """The phrase shortened, with a box for each character that matplotlib's font lacks (emoji, CJK), which it would warn of."""
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    short = phrase if len(phrase) <= TITLE_LENGTH else phrase[: TITLE_LENGTH - 1] + "…"
    return "".join(each if ord(each) in known else "\N{WHITE SQUARE}" for each in short)
