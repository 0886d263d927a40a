"""Load Mini Model in the real host: its three objects against diffusers and transformers on the same weights, and its refusals."""

from __future__ import annotations

import importlib
import json
import shutil

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from testbed.host_model import predict, sample
from testbed.pack import PACKAGE, load_node_module
from testbed.random_mini import write_mini_base
from testbed.small_adapter import random_adapter, steer
from testbed.tiny_clip import write_tiny_clip
from train.base.text_tower import filled_up, text_model
from train.mini import autoencoder as mini_autoencoder
from train.mini import clip as mini_clip
from train.mini import unet as mini_unet

node = load_node_module("mini_model")
sd15_model = load_node_module("sd15_model")
text_query = load_node_module("text_query")
errors = importlib.import_module(f"{PACKAGE}.kbdm_core.errors")

WIDTHS, TEXT_WIDTH = mini_unet.CONFIG["block_out_channels"], mini_unet.CONFIG["cross_attention_dim"]
UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
PROMPTS = ["oil painting, a woman in a red shirt", ""]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    write_mini_base(folder)
    return folder


def load(folder):
    """The node's outputs for the files in this folder, as the host runs it."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(node, "MINI", folder)
        return node.KBDMLoadMini().load()


@pytest.fixture(scope="module")
def loaded(mini):
    return load(mini)


def diffusers_unet(folder, config=mini_unet.CONFIG):
    unet = UNet2DConditionModel(**config)
    state = convert_ldm_unet_checkpoint(load_file(folder / "checkpoint.safetensors"), unet.config)
    unet.load_state_dict({key: value.float() for key, value in state.items()})
    return unet.eval()


def assert_same_noise(model, unet, text_width, size=(16, 16), timestep=500):
    """The host's prediction through apply_model, and diffusers' UNet on the same latent. All in float32."""
    generator = torch.Generator().manual_seed(timestep)
    latent, cond = torch.randn(2, 4, *size, generator=generator), torch.randn(1, 77, text_width, generator=generator)
    sigma = float(model.get_model_object("model_sampling").sigmas[timestep])
    x = latent * (sigma**2 + 1) ** 0.5
    with torch.inference_mode():
        ours = (x - predict(model, x, sigma, [cond])) / sigma
        theirs = unet(latent, torch.full((2,), timestep), cond.expand(2, -1, -1)).sample
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(("size", "timestep"), [((16, 16), 500), ((13, 20), 951)], ids=str)
def test_the_noise_prediction_is_that_of_diffusers(mini, loaded, size, timestep):
    assert_same_noise(loaded[0], diffusers_unet(mini), TEXT_WIDTH, size, timestep)


def test_sampling_is_sd15s_own(loaded):
    """Eps prediction on scaled_linear betas, by their definition, and latents times 0.18215."""
    model, _, _ = loaded
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    cumulated = (1 - betas).cumprod(0)
    assert torch.allclose(model.get_model_object("model_sampling").sigmas.double(), ((1 - cumulated) / cumulated).sqrt(), rtol=1e-5)
    assert model.model.process_latent_in(torch.ones(1)).item() == pytest.approx(0.18215)
    assert model.model.model_type.name == "EPS" and type(model.model.model_config).__name__ == "SD15"


@pytest.mark.parametrize(("height", "width"), [(128, 128), (104, 160)])
def test_pictures_are_decoded_and_encoded_as_by_diffusers(mini, loaded, height, width):
    vae = loaded[2]
    reference = AutoencoderKL(**mini_autoencoder.CONFIG).eval()
    state = convert_ldm_vae_checkpoint(load_file(mini / "checkpoint.safetensors"), reference.config)
    reference.load_state_dict({key: value.float() for key, value in state.items()})
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, height // 8, width // 8, generator=generator)
    picture = torch.rand(1, height, width, 3, generator=generator)
    with torch.inference_mode():
        decoded = (reference.decode(latent).sample.movedim(1, -1) / 2 + 0.5).clamp(0, 1)
        found = vae.decode(latent)
        posterior = reference.encode(picture.movedim(-1, 1) * 2 - 1).latent_dist
        torch.manual_seed(1)
        encoded = vae.encode(picture)
        torch.manual_seed(1)
        drawn = posterior.mean + posterior.std * torch.randn(posterior.mean.shape)
    assert found.shape == (1, height, width, 3) and (found - decoded).abs().max() <= 1e-5
    assert decoded.std() > 0.01, "an even picture shows nothing"
    errors_of_latents = [(encoded - expected).abs().max() for expected in (posterior.mean, drawn)]
    assert min(errors_of_latents) <= 1e-5, "neither the posterior's mean (new hosts) nor drawn from it (2024)"


def test_text_states_and_pooled_text_are_those_of_transformers(mini, loaded):
    clip = loaded[1]
    tower = text_model(open_clip.create_model(f"local-dir:{mini / 'clip'}").eval())
    with torch.inference_mode():
        theirs = tower(filled_up(mini_clip.tokenised(PROMPTS)))
        for index, prompt in enumerate(PROMPTS):
            states, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled="unprojected")
            assert (states - theirs.last_hidden_state[index]).abs().max() <= 1e-5
            assert (pooled - theirs.pooler_output[index]).abs().max() <= 1e-5
            assert (text_query.encode(clip, prompt) - theirs.pooler_output[index]).abs().max() <= 1e-5
            assert torch.equal(clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)[1], pooled)


def test_a_vector_of_a_textual_inversion_has_the_towers_width(loaded):
    assert loaded[1].tokenizer.clip_l.embedding_size == TEXT_WIDTH


def test_the_adapter_sees_sd15s_blocks_at_the_miniatures_widths(loaded):
    assert sd15_model.block_widths(loaded[0]) == WIDTHS


def test_ksampler_draws_with_and_without_an_adapter(loaded):
    model, clip, vae = loaded
    with torch.inference_mode():
        positive, negative = ([[clip.encode_from_tokens(clip.tokenize(text)), {}]] for text in PROMPTS)
        plain, steered = (
            sample(each, (16, 16), steps=2, positive=positive, negative=negative) for each in (model, steer(model, random_adapter(widths=WIDTHS)))
        )
        picture = vae.decode(steered)
    assert plain.shape == steered.shape == (1, 4, 16, 16) and steered.isfinite().all() and not torch.equal(plain, steered)
    assert picture.shape == (1, 128, 128, 3) and picture.isfinite().all()


def test_all_sizes_come_from_the_files(tmp_path):
    unet = {**mini_unet.CONFIG, "block_out_channels": (32, 64, 96, 32), "cross_attention_dim": 48}
    autoencoder = {**mini_autoencoder.CONFIG, "block_out_channels": (32, 64, 32, 96), "layers_per_block": 2}
    write_mini_base(tmp_path, unet, autoencoder, width=48, heads=6, layers=1)
    model, clip, vae = load(tmp_path)
    assert sd15_model.block_widths(model) == (32, 64, 96, 32)
    assert_same_noise(model, diffusers_unet(tmp_path, unet), 48)
    with torch.inference_mode():
        assert clip.encode_from_tokens(clip.tokenize("a man")).shape == (1, 77, 48)
        assert vae.decode(torch.zeros(1, 4, 2, 3)).shape == (1, 16, 24, 3)


def test_two_loads_share_no_weight(mini, loaded):
    again = load(mini)
    for one, other in zip((loaded[0].model, loaded[1].cond_stage_model, loaded[2].first_stage_model),
                          (again[0].model, again[1].cond_stage_model, again[2].first_stage_model)):  # fmt: skip
        first, second = one.state_dict(), other.state_dict()
        assert first.keys() == second.keys()
        assert not {value.data_ptr() for value in first.values()} & {value.data_ptr() for value in second.values()}


def test_the_node_runs_again_when_a_file_changes(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(node, "MINI", tmp_path)
    nothing = node.KBDMLoadMini.IS_CHANGED()
    shutil.copytree(mini, tmp_path, dirs_exist_ok=True)
    first = node.KBDMLoadMini.IS_CHANGED()
    assert first == node.KBDMLoadMini.IS_CHANGED() != nothing
    (tmp_path / "clip" / "open_clip_config.json").write_text("{}")
    assert node.KBDMLoadMini.IS_CHANGED() != first


def test_the_node_reads_the_clip_that_is_shipped():
    """The weights that come with the repository, not random ones."""
    theirs = text_model(open_clip.create_model(f"local-dir:{node.MINI / node.CLIP}").eval())
    with torch.inference_mode():
        clip = node.host_models.text_encoder(node.load_text_tower(node.MINI / node.CLIP))
        states, pooled = clip.encode_from_tokens(clip.tokenize(PROMPTS[0]), return_pooled="unprojected")
        expected = theirs(filled_up(mini_clip.tokenised(PROMPTS[:1])))
    assert (states - expected.last_hidden_state).abs().max() <= 1e-5 * expected.last_hidden_state.abs().max()
    assert (pooled - expected.pooler_output).abs().max() <= 1e-5 * expected.pooler_output.abs().max()


def rewrite(path, change) -> None:
    """Change tensors of a file behind the pack's back."""
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def of_config(table: str, key: str, value: object):
    def change(tensors, metadata):
        config = json.loads(metadata["config"])
        config[table][key] = value
        metadata["config"] = json.dumps(config)

    return change


TIME, DEEP = f"{UNET}time_embed.0.weight", f"{UNET}output_blocks.11.1.norm.weight"
CONV, QUANT = f"{AUTOENCODER}decoder.up.2.block.0.conv2.weight", f"{AUTOENCODER}quant_conv.bias"
BROKEN_CHECKPOINTS = [
    (lambda t, m: t.pop(f"{UNET}input_blocks.0.0.weight"), ["input_blocks.0.0.weight", "none of that name"]),
    (lambda t, m: t.pop(DEEP), [DEEP, "[64]", "none of that name"]),
    (lambda t, m: t.pop(QUANT), [QUANT, "[8]", "none of that name"]),
    (lambda t, m: t.update({TIME: t[TIME][:, :32].clone()}), [TIME, "[256, 64]", "[256, 32]"]),
    (lambda t, m: t.update({CONV: t[CONV][:60].clone()}), [CONV, "a multiple of 32 channels", "60"]),
    (lambda t, m: t[DEEP].fill_(float("nan")), [DEEP, "finite values"]),
    (lambda t, m: t.update({DEEP: t[DEEP].long()}), [DEEP, "float32, float16 or bfloat16"]),
    (lambda t, m: t.update({f"{UNET}label_emb.0.0.weight": torch.zeros(1)}), ["label_emb.0.0.weight", "1 unknown tensor(s)"]),
    (lambda t, m: t.update({"cond_stage_model.x": torch.zeros(1)}), ["cond_stage_model.x", "1 other tensor(s)"]),
    (lambda t, m: m.update(format="kbdm.adapter"), ["metadata 'format'", "kbdm.mini_checkpoint", "kbdm.adapter"]),
    (of_config("unet", "attention_head_dim", 4), ["config 'unet.attention_head_dim'", "expected 8", "found 4"]),
    (of_config("autoencoder", "norm_num_groups", 16), ["config 'autoencoder.norm_num_groups'", "expected 32", "found 16"]),
    (lambda t, m: m.update(config="{}"), ["config 'unet.attention_head_dim'", "found None"]),
]


def refused(folder, file: str, *words: str) -> None:
    """Loading is refused with the file's name, all these words, and what to do."""
    with pytest.raises(errors.FileFormatError) as caught:
        load(folder)
    for word in (file, *words, "install the pack anew, or train them"):
        assert word in str(caught.value)


@pytest.fixture
def copy(mini, tmp_path):
    """The miniature's files, to break."""
    shutil.copytree(mini, tmp_path / "mini")
    return tmp_path / "mini"


@pytest.mark.parametrize(("change", "words"), BROKEN_CHECKPOINTS, ids=lambda value: value[0].split(".")[-1] if isinstance(value, list) else "")
def test_a_broken_checkpoint_is_refused(copy, change, words):
    rewrite(copy / "checkpoint.safetensors", change)
    refused(copy, "checkpoint.safetensors", *words)


def test_a_missing_and_a_torn_file_are_refused(copy):
    for name in ("checkpoint.safetensors", "clip/open_clip_model.safetensors"):
        path, whole = copy / name, (copy / name).read_bytes()
        path.write_bytes(whole[:1000])
        refused(copy, path.name, "not a readable safetensors file")
        path.unlink()
        refused(copy, path.name, "no such file")
        path.write_bytes(whole)
    load(copy)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["a JSON object beside the weights"]),
        ("[]", ["a JSON object beside the weights", "list"]),
        ("{", ["a JSON object beside the weights"]),
        ("{}", ["model_cfg.text_cfg.heads", "a divisor of the width 128", "None"]),
        ('{"model_cfg": {"text_cfg": {"heads": 5}}}', ["model_cfg.text_cfg.heads", "a divisor of the width 128", "5"]),
    ],
)
def test_a_broken_configuration_of_the_clip_is_refused(copy, text, words):
    path = copy / "clip" / "open_clip_config.json"
    path.unlink() if text is None else path.write_text(text)
    refused(copy, path.name, *words)


IN_PROJECTION = "transformer.resblocks.1.attn.in_proj_weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, m: t.pop("token_embedding.weight"), ["token_embedding.weight", "[49408, any]"]),
        (lambda t, m: t.update(positional_embedding=t["positional_embedding"][:64].clone()), ["positional_embedding", "[77, 128]", "[64, 128]"]),
        (lambda t, m: t.pop(IN_PROJECTION), ["layers.1.self_attn.q_proj.weight", "none of that name"]),
        (lambda t, m: t.update({IN_PROJECTION: t[IN_PROJECTION][:, :64].clone()}), ["layers.1.self_attn.q_proj.weight", "[128, 64]"]),
    ],
    ids=["no vocabulary", "64 positions", "no projection", "a narrow projection"],
)
def test_broken_weights_of_the_clip_are_refused(copy, change, words):
    rewrite(copy / "clip" / "open_clip_model.safetensors", change)
    refused(copy, "open_clip_model.safetensors", *words)


def test_a_clip_of_another_width_is_refused(copy):
    write_tiny_clip(copy / "clip")
    refused(copy, "checkpoint.safetensors", "the width 64 of the text encoder", "128")
