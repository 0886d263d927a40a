"""The demo's grid and its attention pictures: every cell where it belongs, and probabilities that are Eq. 11's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from demo.attention import BLOCKS, MODES, WITH, WITHOUT, Attention, AttentionWatch, WatchedSelfAttention, watch
from demo.attention_picture import draw_attention
from demo.grid import CAPTION, CELL, GAP, HEADING, GridRow, draw_grid, fitting, font, left, overlaid, row_height
from demo.rows import held_out
from kbdm_core.dynamic_mask import DynamicMask
from kbdm_core.guidance import Guidance
from kbdm_core.keypoints import Person, Pose
from kbdm_core.sd15 import BLOCK_BY_NAME
from testbed.random_mini import write_mini
from testbed.tiny_base import TEXT_WIDTH, tiny_models
from train.host import GuidedUNet

SIDE = 8  # of the latents
GATE, BLEND = torch.linspace(0.1, 0.9, 16)[None], torch.linspace(0.2, 1.0, 16)


@pytest.fixture(scope="module")
def unet():
    return tiny_models()[0]


@pytest.fixture(scope="module")
def mask():
    """A person's worth of pixels, none of them at the border of a token."""
    mask = torch.zeros(1, 8 * SIDE, 8 * SIDE)
    mask[:, 19:50, 27:37] = 1.0
    return mask


@pytest.fixture(scope="module")
def guidance(mask):
    return Guidance(mask=DynamicMask(mask, lambda timestep: GATE.expand(len(timestep), -1), BLEND))


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents and text states of a positive and a negative chunk, and their timestep."""
    generator = torch.Generator().manual_seed(seed)
    latent, states = torch.randn(1, 4, SIDE, SIDE, generator=generator), torch.randn(2, 77, TEXT_WIDTH, generator=generator)
    return latent.repeat(2, 1, 1, 1), torch.full((2,), 501), states


def literal_eq11(hidden: torch.Tensor, attn, mask: torch.Tensor, index: int) -> torch.Tensor:
    """softmax((Q K^T / sqrt(d)) .* m~), one head and one logit matrix at a time -> [B,heads,N,N]."""
    soft = torch.ones(SIDE * SIDE)
    for y in range(SIDE):
        for x in range(SIDE):
            m = float(mask[0, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].any())
            soft[y * SIDE + x] = 1 + BLEND[index] * ((1 + GATE[0, index]) * m - 1)
    found = []
    for tokens in hidden:
        q, k = tokens @ attn.to_q.weight.T, tokens @ attn.to_k.weight.T
        d = q.shape[1] // attn.heads
        logits = [q[:, i * d : (i + 1) * d] @ k[:, i * d : (i + 1) * d].T / math.sqrt(d) * soft[None, :] for i in range(attn.heads)]
        exponentials = [each.double().exp() for each in logits]
        found.append(torch.stack([each / each.sum(1, keepdim=True) for each in exponentials]).float())
    return torch.stack(found)


@pytest.mark.parametrize("name", ["input_blocks.1", "output_blocks.9"])
@torch.no_grad()
def test_the_probabilities_shown_are_those_of_eq_11(unet, guidance, mask, name):
    guided, block, told, seen = GuidedUNet(unet), BLOCK_BY_NAME[name], [], []
    processors = dict(unet.attn_processors)
    processors[f"{block.diffusers}.transformer_blocks.0.attn1.processor"] = WatchedSelfAttention(guided, block, lambda *said: told.append(said))
    unet.set_attn_processor(processors)
    attn = unet.get_submodule(f"{block.diffusers}.transformer_blocks.0.attn1")
    handle = attn.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    guided(*inputs(), guidance, ("positive", "negative"))
    handle.remove()
    ((said, probabilities),) = told
    assert said is block and probabilities.shape == (2, attn.heads, SIDE * SIDE, SIDE * SIDE)
    expected = literal_eq11(seen[0], attn, mask, block.index)
    assert (probabilities - expected).abs().max() <= 1e-5 * expected.max()
    assert expected.std() > 1e-3, "even attention would hide a wrong mask"


@torch.no_grad()
def test_watching_changes_no_prediction_and_tells_both_modes_apart(unet, guidance):
    roles = ("positive", "negative")
    expected = GuidedUNet(unet)(*inputs(), guidance, roles)
    watcher = AttentionWatch(GuidedUNet(unet))
    assert torch.equal(watcher(*inputs(), guidance, roles), expected)
    assert watcher.timesteps == [501]
    other = AttentionWatch(GuidedUNet(unet))
    other(*inputs(), Guidance(), roles)
    assert torch.equal(watcher.received[WITHOUT][0], other.received[WITH][0])
    for mode in MODES:
        (found,) = watcher.received[mode]
        assert found.shape == (len(BLOCKS), SIDE * SIDE) and torch.allclose(found.sum(1), torch.ones(len(BLOCKS)))
    assert (watcher.received[WITH][0] - watcher.received[WITHOUT][0]).abs().max() > 1e-3


@torch.no_grad()
def test_only_the_positive_prompt_is_watched(unet, guidance):
    latent, timestep, states = inputs()
    watcher = AttentionWatch(GuidedUNet(unet))
    watcher(latent, timestep, states, guidance, ("positive", "negative"))
    watcher(latent, timestep, torch.stack([states[0], states[0] + 1]), guidance, ("positive", "negative"))
    first, second = watcher.received[WITH]
    assert torch.allclose(first, second, atol=1e-6)


def test_a_row_is_watched_with_the_files_of_the_miniature(tmp_path):
    row, checks = held_out(59, 5), []
    found = watch(write_mini(tmp_path), row, 2, 7.5, lambda: checks.append(None))
    assert found.timesteps == [501, 1] and len(checks) == 2 and found.prompt == row.prompt
    assert found.picture.shape == (128, 128, 3) and found.picture.dtype == torch.uint8 and found.pose_picture.shape == (128, 128, 3)
    assert 0.02 < found.pose_share < 0.5
    for mode in MODES:
        assert found.received[mode].shape == (2, 5, 16, 16) and ((found.on_pose(mode) > 0) & (found.on_pose(mode) < 1)).all()
    assert not torch.allclose(found.on_pose(WITH), found.on_pose(WITHOUT), rtol=1e-3)


def known_attention() -> Attention:
    """All attention on the pose with the mask, even attention without it."""
    pose = torch.zeros(4, 4)
    pose[1:3, 1] = 1.0
    even, focused = torch.full((2, 1, 4, 4), 1 / 16), (pose / pose.sum()).expand(2, 1, 4, 4)
    black = torch.zeros(8, 8, 3)
    return Attention("a man", [501, 1], ("input_blocks.1",), {WITHOUT: even, WITH: focused}, pose, black.to(torch.uint8), black)


def test_the_share_on_the_pose_is_what_its_tokens_receive():
    found = known_attention()
    assert found.pose_share == 2 / 16
    assert torch.allclose(found.on_pose(WITHOUT), torch.tensor(2 / 16)) and torch.allclose(found.on_pose(WITH), torch.tensor(1.0))


def test_the_attention_picture_is_bright_where_attention_is():
    picture = np.asarray(draw_attention(known_attention(), (501, 1))).astype(int)
    maps = picture[: int(0.57 * picture.shape[0]), : int(0.85 * picture.shape[1])]  # without the colour bar and the lines
    brightest = np.argwhere((maps[..., 0] > 240) & (maps[..., 1] > 240) & (maps[..., 2] < 210))  # the end of the scale, a light yellow
    assert len(brightest) > 500 and brightest[:, 0].min() > len(maps) / 2, "the lower row alone, that with DM"


def person(joints: dict[int, tuple[float, float]]) -> Pose:
    body = np.zeros((17, 3))
    for joint, place in joints.items():
        body[joint] = (*place, 1.0)
    return Pose((Person(body),), 128, 128)


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (128, 128), colour)


def test_every_picture_stands_in_its_cell_and_the_pose_over_it():
    arm = person({5: (32, 64), 7: (96, 64)})  # left shoulder to elbow, straight across
    colours = [(200, 40, 40), (40, 200, 40)]
    pictures = [plain(colour) for colour in colours]
    rows = [GridRow("one", arm, plain((9, 9, 9)), pictures), GridRow("two", arm, plain((99, 9, 9)), pictures[::-1])]
    grid = draw_grid(rows, ["a", "b"], "a footer")
    assert grid.width == left(2) + CELL + left(0)
    for number, row in enumerate(rows):
        top = HEADING + number * row_height() + CAPTION
        assert grid.crop((left(0), top, left(0) + CELL, top + CELL)).getcolors() == [(CELL * CELL, row.pose_picture.getpixel((0, 0)))]
        for column, picture in enumerate(row.pictures, start=1):
            box = (left(column), top, left(column) + CELL, top + CELL)
            assert grid.crop(box).getcolors() == [(CELL * CELL, picture.getpixel((0, 0)))]
            below = np.asarray(grid.crop((box[0], top + CELL + GAP, box[2], top + 2 * CELL + GAP)))
            changed = np.argwhere((abs(below.astype(int) - picture.getpixel((0, 0))) > 40).any(axis=2))
            scale = CELL / 128
            assert abs(changed[:, 0].mean() - 64 * scale) < 1.5 and np.ptp(changed[:, 0]) < 6  # a thin line
            assert abs(changed[:, 1].min() - 32 * scale) < 4 and abs(changed[:, 1].max() - 96 * scale) < 4


def test_missing_joints_have_no_lines():
    picture = plain((120, 120, 120))
    assert overlaid(picture, person({5: (32, 64)})).getcolors() == [(128 * 128, (120, 120, 120))]


def test_a_long_prompt_is_cut_off_with_an_ellipsis():
    long = "a very " * 60 + "long prompt"
    cut = fitting(long, 12, 300)
    assert cut.endswith("…") and font(12).getlength(cut) <= 300 and long.startswith(cut[:-1])
    assert fitting("short", 12, 300) == "short"
