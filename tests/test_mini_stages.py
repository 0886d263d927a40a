"""The miniature's first stages: drawn scenes on disk, the autoencoder with its latents' deviation folded in, the tiny CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file

from train.__main__ import main
from train.base.diffusion import LATENT_SCALE
from train.features.clip import VisionTextCLIP
from train.features.table import ClipTable
from train.mini import commands, unet
from train.mini.autoencoder import CONFIG, colour_error, edge_error, folded
from train.mini.scenes import WorldTable, as_batch, captions, rendered
from train.mini.world.render import render
from train.mini.world.scene import scene
from train.run.signals import Interrupted


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    rendered(WorldTable(scenes=64, cache=folder, workers=1), lambda: None)
    return folder


def test_drawn_scenes_are_the_worlds_and_are_drawn_once(cache, monkeypatch):
    pictures = rendered(WorldTable(scenes=40, cache=cache), lambda: pytest.fail("drawn again"))
    assert pictures.shape == (40, 128, 128, 3)
    assert all(np.array_equal(pictures[number], render(scene(number))) for number in (0, 7, 39))
    assert captions(WorldTable(scenes=3)) == [scene(number).caption for number in range(3)]


def test_drawing_that_is_stopped_goes_on_and_a_torn_chunk_is_drawn_anew(tmp_path):
    def stop():
        raise Interrupted(15)

    table = WorldTable(scenes=128, cache=tmp_path, workers=1)
    with pytest.raises(Interrupted):
        rendered(table, stop)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 64 * 128 * 128 * 3
    with open(path, "ab") as opened:
        opened.write(b"torn")
    pictures = rendered(table, lambda: None)
    assert np.array_equal(pictures[64], render(scene(64))) and np.array_equal(pictures[127], render(scene(127)))


def test_a_batch_is_in_minus_one_to_one_and_mirrored_where_asked(cache):
    pictures = rendered(WorldTable(scenes=64, cache=cache), lambda: None)
    items, flip = torch.tensor([3, 9]), torch.tensor([False, True])
    batch = as_batch(pictures, items, flip)
    assert batch.shape == (2, 3, 128, 128) and batch.min() >= -1 and batch.max() <= 1
    assert np.allclose((batch[0].permute(1, 2, 0).numpy() + 1) * 127.5, pictures[3], atol=1e-3)
    assert torch.equal(batch[1].flip(-1), as_batch(pictures, items[1:])[0])


def test_folding_the_deviation_changes_the_latents_scale_and_nothing_else(cache):
    pictures = rendered(WorldTable(scenes=64, cache=cache), lambda: None)
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(**CONFIG).eval()
    x = as_batch(pictures, torch.arange(8))
    with torch.no_grad():
        before = autoencoder.encode(x).latent_dist
        expected = autoencoder.decode(before.mean).sample
        autoencoder, deviation = folded(autoencoder, pictures)
        after = autoencoder.encode(x).latent_dist
        scaled = torch.cat([autoencoder.encode(as_batch(pictures, part)).latent_dist.mean for part in torch.arange(64).split(32)]) * LATENT_SCALE
    assert scaled.std().item() == pytest.approx(1, rel=1e-3)
    assert torch.allclose(after.std / before.std, torch.tensor(1 / (LATENT_SCALE * deviation)), rtol=1e-3)
    assert torch.allclose(autoencoder.decode(after.mean).sample, expected, atol=1e-4)


def test_edge_error_is_that_of_differences_of_neighbours():
    x = torch.randn(2, 3, 8, 8)
    at_full = (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
    assert edge_error(x, scales=1).item() == pytest.approx(at_full.item() / 2)
    assert edge_error(torch.full((1, 3, 8, 8), 0.7)).item() == 0


def test_colour_error_takes_no_notice_of_brightness():
    grey = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    assert colour_error(grey).item() == pytest.approx(0, abs=1e-7)
    red = torch.tensor([0.3, 0.0, 0.0])[None, :, None, None].expand(2, 3, 8, 8)
    assert colour_error(red + grey).item() == pytest.approx((0.2**2 + 0.1**2 + 0.1**2) / 3)


@pytest.mark.slow
def test_the_commands_train_and_write_files_that_others_load(cache, tmp_path, capsys, monkeypatch):
    shared = ["--world.scenes=64", f"--world.cache={cache}", "--run.no-tensorboard"]
    assert main(["mini", "autoencoder", "--steps=2", "--batch=2", f"--output={tmp_path / 'autoencoder.safetensors'}", *shared]) == 0
    assert json.loads(capsys.readouterr().out)["latent_deviation"] > 0
    tensors = load_file(tmp_path / "autoencoder.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    AutoencoderKL(**CONFIG).load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    monkeypatch.setattr(commands, "UNSEEN", 64)
    assert main(["mini", "clip", "--steps=2", "--batch=4", f"--output={tmp_path / 'clip'}", *shared]) == 0
    assert json.loads(capsys.readouterr().out)["held_out_pairs"] == 64
    clip = VisionTextCLIP(ClipTable(f"local-dir:{tmp_path / 'clip'}", ""))
    assert (clip.grid, clip.width) == ((8, 8), 128)
    assert clip.texts(["a woman in a park"]).shape == (1, 128)
    made = [f"--autoencoder-file={tmp_path / 'autoencoder.safetensors'}", f"--clip-folder={tmp_path / 'clip'}"]
    assert main(["mini", "unet", "--steps=1", "--batch=2", f"--output={tmp_path / 'checkpoint.safetensors'}", *made, *shared]) == 0
    written = load_file(tmp_path / "checkpoint.safetensors")
    model = UNet2DConditionModel(**unet.CONFIG)
    model.load_state_dict({key: tensor.float() for key, tensor in convert_ldm_unet_checkpoint(written, model.config).items()})
    inside = convert_ldm_vae_checkpoint(written, AutoencoderKL(**CONFIG).config)
    assert inside.keys() == tensors.keys() and all(torch.equal(inside[key], tensor) for key, tensor in tensors.items())


def test_a_dry_run_draws_a_few_scenes_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "DRY_SCENES", 4)
    monkeypatch.chdir(tmp_path)
    assert main(["mini", "clip", "--dry-run", "--world.scenes=20000"]) == 0
    assert "one step took" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_unknown_command_is_told(capsys):
    assert main(["mini", "bake"]) == 2
    assert "there is no command 'mini bake'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "mini autoencoder" in capsys.readouterr().out
