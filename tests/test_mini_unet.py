"""The miniature's text tower as the hosts know it, and its UNet's objective."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL

from kbdm_core.sd15 import BLOCKS
from train.base.diffusion import SNRWeight
from train.base.text_tower import END, filled_up, text_model
from train.mini import autoencoder, clip, unet
from train.run.loop import Run, RunTable


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return open_clip.CLIP(**clip.CONFIG).eval().requires_grad_(False)


def test_the_hosts_text_model_gives_open_clips_states(tower):
    tokens = clip.tokenised(["a woman in a park", ""])
    found = text_model(tower)(filled_up(tokens))
    z_t = found.last_hidden_state[torch.arange(2), (tokens == END).int().argmax(-1)] @ tower.text_projection
    assert torch.allclose(z_t, tower.encode_text(tokens), atol=1e-5)


def test_tokens_are_filled_up_by_the_end_token():
    tokens = clip.tokenised(["a man"])
    filled = filled_up(tokens)[0]
    assert filled[:4].tolist() == tokens[0, :4].tolist() and filled[3] == END and (filled[3:] == END).all()


def test_the_unet_has_sd15s_blocks_and_no_more_than_eight_million_weights():
    model = unet.UNetObjective(SNRWeight()).unet
    assert sum(value.numel() for value in model.parameters()) <= 8e6
    for block in BLOCKS:
        attention = model.get_submodule(f"{block.diffusers}.transformer_blocks.0.attn1")
        assert attention.heads == 8 and attention.to_k.bias is None


@pytest.mark.parametrize(("most", "plus"), [(5.0, 0.0), (5.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_the_error_of_each_picture_weighs_by_its_snr(most, plus):
    """Against the definition, with the noise schedule's own cumulative products."""
    torch.manual_seed(0)
    objective = unet.UNetObjective(SNRWeight(most, plus))
    latents, noise, states = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16), torch.randn(3, 77, 128)
    timesteps = torch.tensor([5, 300, 990])
    alpha = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0)[timesteps].float()
    noisy = alpha.sqrt()[:, None, None, None] * latents + (1 - alpha).sqrt()[:, None, None, None] * noise
    with torch.no_grad():
        error = (objective.unet(noisy, timesteps, states).sample - noise).square().mean((1, 2, 3))
        snr = alpha / (1 - alpha)
        weight = torch.minimum(snr + plus, torch.tensor(most or torch.inf)) / snr if most or plus else 1.0
        expected = (error * weight).mean()
        assert objective(latents, noise, timesteps, states).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_few_steps_train_the_unet_and_go_on_bit_for_bit(tower, tmp_path):
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(16, 4, 16, 16, generator=random).half()
    tokens = filled_up(clip.tokenised([f"a {word}" for word in ("man", "woman", "girl", "boy", "dog", "cat", "park", "sea")]))
    empty = filled_up(clip.tokenised([""]))[0]
    table = unet.UNetTable(steps=2, batch=4, warmup=0, empty_share=0.5)

    def stage(run):
        return unet.UNetTraining(run, table, latents, tokens, empty, text_model(tower))

    with Run(RunTable(device="cpu", tensorboard=False), tmp_path) as run:
        whole, half = stage(run), stage(run)
        first = {key: value.clone() for key, value in whole.optimisation.plain.state_dict().items()}
        for index in range(2):
            whole.step(index)
        half.step(0)
        resumed = stage(run)
        resumed.load(half.state())
        resumed.step(1)
    for key, value in whole.optimisation.plain.state_dict().items():
        assert torch.equal(value, resumed.optimisation.plain.state_dict()[key])
        assert not torch.equal(value, first[key]), key
    for one, other in zip(whole.average.parameters(), resumed.average.parameters()):
        assert torch.equal(one, other)


def test_latents_of_mirrored_pictures_follow_those_of_the_others():
    torch.manual_seed(0)
    model = AutoencoderKL(**autoencoder.CONFIG).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    latents = unet.scaled_latents(model, pictures, lambda: None, batch=2)
    mirrored = unet.scaled_latents(model, np.ascontiguousarray(pictures[:, :, ::-1]), lambda: None, batch=2)
    assert latents.shape == (6, 4, 16, 16) and latents.dtype == torch.float16
    assert torch.allclose(latents[3:].float(), mirrored[:3].float(), atol=2e-3)


def test_latents_are_kept_until_the_pictures_or_the_autoencoder_change(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = AutoencoderKL(**autoencoder.CONFIG).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    first = unet.kept_latents(tmp_path, model, pictures, lambda: None)
    assert torch.equal(first, unet.scaled_latents(model, pictures, lambda: None))
    monkeypatch.setattr(unet, "scaled_latents", lambda *_: torch.zeros(6, 4, 16, 16))
    assert torch.equal(unet.kept_latents(tmp_path, model, pictures, lambda: None), first)
    assert not unet.kept_latents(tmp_path, model, pictures[::-1], lambda: None).any()
    torch.nn.init.ones_(model.quant_conv.bias)
    assert not unet.kept_latents(tmp_path, model, pictures, lambda: None).any()


def test_retrieval_counts_pairs_that_find_each_other(tower):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 128, 128, 3), dtype=np.uint8)
    tokens = clip.tokenised([f"a {word}" for word in ("man", "woman", "girl", "boy", "dog", "cat")])
    figures = clip.retrieval(tower, pictures, tokens)
    image = tower.encode_image(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1, normalize=True)
    nearest = [int((image[number] @ tower.encode_text(tokens, normalize=True).T).argmax()) for number in range(6)]
    assert figures["picture_to_caption"] == pytest.approx(sum(found == number for number, found in enumerate(nearest)) / 6)
