"""demo/out/attention.png: where attention goes, at a few timesteps as maps and over all of them as lines."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .attention import MODES, WITH, WITHOUT, Attention

TIMESTEPS = (901, 701, 501, 301, 101)
COLOURS = {WITHOUT: "tab:gray", WITH: "tab:orange"}
STRONGEST = 0.995  # quantile of all maps that is drawn brightest
OUTLINE = "white"


def draw_attention(found: Attention, timesteps: tuple[int, ...] = TIMESTEPS) -> Image.Image:
    """Maps [mode x timestep], mean of the blocks, on one scale with the pose's outline; below, the pose's share of attention over the steps."""
    maps = {mode: found.received[mode].mean(dim=1) * found.pose.numel() for mode in MODES}  # [T, h, w], 1 = even attention
    brightest = float(np.quantile(np.stack([each.numpy() for each in maps.values()]), STRONGEST))
    figure = Figure(figsize=(10.4, 7.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(1.32, 1.0))
    axes = above.subplots(2, 1 + len(timesteps))
    for axis, picture, title in ((axes[0, 0], found.pose_picture, "pose"), (axes[1, 0], found.picture, "drawn with DM")):
        axis.imshow(picture.numpy())
        axis.set_title(title, fontsize=10)
    for row, mode in zip(axes, MODES):
        row[1].set_ylabel(mode, fontsize=11)
        for axis, timestep in zip(row[1:], timesteps):
            nearest = min(range(len(found.timesteps)), key=lambda i: abs(found.timesteps[i] - timestep))
            heat = axis.imshow(maps[mode][nearest].numpy(), vmin=0.0, vmax=brightest, cmap="magma", interpolation="nearest")
            _outline(axis, found.pose.numpy())
            axis.set_title(f"t = {found.timesteps[nearest]}", fontsize=10)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    above.colorbar(heat, ax=list(axes[:, 1:].flat), fraction=0.02, label="attention received (1 = even)")
    above.suptitle(f"Self-attention of {', '.join(found.blocks)}\n“{found.prompt}”", fontsize=10, parse_math=False)
    _lines(below.subplots(), found)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _outline(axis: Axes, pose: np.ndarray) -> None:
    """The border of the pose's tokens, along their edges."""
    padded = np.pad(pose, 1) > 0.5
    for y, x in np.argwhere(padded[:, 1:] != padded[:, :-1]):  # a vertical edge right of column x
        axis.plot([x - 0.5, x - 0.5], [y - 1.5, y - 0.5], color=OUTLINE, lw=0.9)
    for y, x in np.argwhere(padded[1:] != padded[:-1]):
        axis.plot([x - 1.5, x - 0.5], [y - 0.5, y - 0.5], color=OUTLINE, lw=0.9)


def _lines(axis: Axes, found: Attention) -> None:
    """Share of attention on the pose over the sampling: the mean of the blocks, each block faintly, and what even attention would give."""
    for mode in MODES:
        share = found.on_pose(mode).numpy()  # [T, P]
        axis.plot(found.timesteps, share, color=COLOURS[mode], lw=0.8, alpha=0.35)
        axis.plot(found.timesteps, share.mean(axis=1), color=COLOURS[mode], lw=2.5, label=f"{mode}, mean of the blocks (thin: each)")
    axis.axhline(found.pose_share, color="black", ls=":", lw=1.2, label="the pose's share of the tokens (even attention)")
    axis.set(xlabel="timestep (noise → picture)", ylabel="share of attention on the pose", ylim=(0, None))
    axis.invert_xaxis()
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9)
