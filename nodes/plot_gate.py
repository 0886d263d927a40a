"""Plot Dynamic Mask: the gate g(t) over the sampling steps, of a trained adapter or of a schedule."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..kbdm_core.gate import SCHEDULES, TRAINING_TIMESTEPS, GateSchedule
from ..kbdm_core.sd15 import BLOCKS
from .inputs import strength


class KBDMPlotGate:
    """Draws g(t): one line per block for an adapter, one line for a schedule."""

    CATEGORY = "KB-DM"
    FUNCTION = "plot"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("plot",)
    OUTPUT_TOOLTIPS = ("A picture of g(t), for Preview Image or Save Image.",)
    DESCRIPTION = (
        "Shows the gate of the dynamic mask over the sampling: with an adapter, its trained gate and blend for each of the 16 blocks; without one, "
        "the schedule of Dynamic Mask Attention Patch."
    )
    SEARCH_ALIASES = ["kb-dmgen", "gate plot", "dynamic mask schedule"]

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "gate": (list(SCHEDULES), {"default": "linear", "tooltip": "Schedule to draw if no adapter is connected."}),
                "gate_start": strength("g at the first step (noise).", 1.0),
                "gate_end": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "g at the last step (picture)."}),
            },
            "optional": {"adapter": ("KBDM_ADAPTER", {"tooltip": "Draw the trained gate of this adapter instead of the schedule."})},
        }

    def plot(self, gate, gate_start, gate_end, adapter=None):
        timesteps = torch.linspace(TRAINING_TIMESTEPS - 1, 0, 201)
        figure = Figure(figsize=(9, 5), dpi=96, layout="constrained")
        axes = figure.add_subplot(xlabel="timestep (noise → picture)", ylabel="g(t)", ylim=(-0.02, 1.02))
        axes.invert_xaxis()
        if adapter is None:
            axes.plot(timesteps, GateSchedule(gate, gate_start, gate_end)(timesteps)[:, 0], lw=2.5, label=gate)
            axes.set_title(f"Gate schedule: {gate}, {gate_start:g} → {gate_end:g}")
            axes.legend()
        elif "dm" not in adapter.adapter.sections:
            axes.text(0.5, 0.5, f"'{adapter.info.name}' has no dm section", ha="center", transform=axes.transAxes)
        else:
            _plot_section(axes, adapter.adapter.dm, timesteps)
            axes.set_title(f"Gate of {adapter.info.name} (opacity = blend)")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255.0
        return (torch.from_numpy(picture)[None],)


def _plot_section(axes, section, timesteps: torch.Tensor) -> None:
    """One line per block; a block whose blend is near 0 is faint because its mask has no effect yet."""
    weight = section.gate.out.weight
    with torch.no_grad():
        g = section.gate(timesteps.to(weight.device)).cpu().expand(-1, len(BLOCKS))  # [T, 16]
    groups = {"input": "tab:blue", "middle": "tab:green", "output": "tab:orange"}
    for block, amount in zip(BLOCKS, section.blend.float().tolist()):
        alpha = 0.15 + 0.85 * min(1.0, abs(amount))
        axes.plot(timesteps, g[:, block.index], color=groups[block.patch_key[0]], alpha=alpha, label=f"{block.name}  blend {amount:.2f}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
