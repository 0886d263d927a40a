"""The frozen base: sizes read off the tensors of a single file, what is refused and in which words, and text as SD1.5's hosts read it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import comfy.cldm.cldm
import open_clip
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from kbdm_core.errors import FileFormatError, KBDMError, MismatchError
from testbed.host_clip import host_clip
from testbed.host_model import SD15_UNET
from testbed.sd15_layout import UNET as SD15
from testbed.sd15_layout import checkpoint_layout
from testbed.tiny_base import AUTOENCODER, TEXT_WIDTH, WIDTHS, tiny_models, write_tiny_base
from testbed.tiny_clip import write_tiny_clip
from testbed.tiny_controlnet import write_tiny_controlnet
from train.base.checkpoint import (
    TEXT,
    UNET,
    VAE,
    BaseFile,
    autoencoder_of,
    controlnet_of,
    read_base,
    require_sd15,
    text_encoder_of,
    text_projections,
    unet_of,
)
from train.base.text import TextEncoder, text_encoder

PROMPTS = ["", "a man", "Oil painting, a woman in a red shirt; 2 dogs!", "dog " * 75]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def base(path) -> BaseFile:
    return read_base(path)


def rounded(model) -> dict[str, torch.Tensor]:
    """The weights as they are after float16."""
    return {key: value.half().float() for key, value in model.state_dict().items()}


def assert_same_weights(found, expected) -> None:
    found = found.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_checkpoint_gives_back_the_models_that_it_was_made_of(base, path):
    unet, autoencoder, text = tiny_models()
    for found, made in ((unet_of(base), unet), (autoencoder_of(base), autoencoder), (text_encoder_of(base), text)):
        assert_same_weights(found, rounded(made))
        assert not found.training and not any(value.requires_grad for value in found.parameters())
    assert (base.widths, base.text_width, base.base) == (WIDTHS, TEXT_WIDTH, "sd15-32-64-96-96")
    assert base.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    config = unet_of(base).config
    assert (tuple(config.block_out_channels), config.cross_attention_dim, config.attention_head_dim) == (WIDTHS, TEXT_WIDTH, 8)
    assert autoencoder_of(base).config.layers_per_block == AUTOENCODER["layers_per_block"]


def test_a_kb_section_starts_from_the_bases_text_projections(base):
    unet = rounded(tiny_models()[0])
    found = text_projections(base)
    for name, theirs in (("input_blocks.1", "down_blocks.0.attentions.0"), ("middle_block", "mid_block.attentions.0"),
                         ("output_blocks.11", "up_blocks.3.attentions.2")):  # fmt: skip
        for value, kind in zip(found[name], ("to_k", "to_v")):
            assert torch.equal(value, unet[f"{theirs}.transformer_blocks.0.attn2.{kind}.weight"])
    assert len(found) == 16


def test_sd15_in_full_size_has_its_published_numbers_of_weights():
    """Shapes alone, from ComfyUI's own classes."""
    layout = BaseFile(Path("sd15.safetensors"), checkpoint_layout(), "")
    assert (layout.widths, layout.text_width, layout.base) == ((320, 640, 1280, 1280), 768, "sd15")
    unet, autoencoder = unet_of(layout), autoencoder_of(layout)
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964
    assert sum(value.numel() for value in autoencoder.parameters()) == 83_653_863
    assert tuple(autoencoder.config.block_out_channels) == (128, 256, 512, 512) and autoencoder.config.layers_per_block == 2


def layout_of(**changes: object) -> BaseFile:
    """The layout of a UNet like SD1.5's but for `changes`, from the host's own class."""
    with torch.device("meta"):
        unet = UNetModel(**{**SD15, **changes})
    return BaseFile(Path("other.safetensors"), {f"{UNET}{key}": value for key, value in unet.state_dict().items()}, "")


SDXL = {
    "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "num_heads": -1, "num_head_channels": 64,
    "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
SD2 = {"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (SDXL, ["other.safetensors is not an SD1.5 checkpoint", "SDXL"]),
        (SD2, ["other.safetensors is an SD2 checkpoint", "trained on SD1.5"]),
        ({"in_channels": 9}, ["other.safetensors", "9 input channels", "inpainting", "plain SD1.5 model"]),
        ({"in_channels": 8}, ["8 input channels"]),
    ],
    ids=["SDXL", "SD2", "inpainting", "instructions"],
)
def test_other_models_are_refused_by_name(changes, words):
    file = layout_of(**changes)
    for refuse in (require_sd15, unet_of):
        with pytest.raises(MismatchError) as caught:
            refuse(file)
        for word in words:
            assert word in str(caught.value)


def without(base: BaseFile, *prefixes: str) -> BaseFile:
    return replace(base, tensors={key: value for key, value in base.tensors.items() if not key.startswith(prefixes)})


def narrowed(base: BaseFile, key: str) -> BaseFile:
    return replace(base, tensors={**base.tensors, key: base.tensors[key][:-1]})


NORM, CONVOLUTION = f"{UNET}output_blocks.11.1.norm.weight", f"{VAE}decoder.up.2.block.0.conv1.weight"
LAYER = f"{TEXT}text_model.encoder.layers.1.mlp.fc2.weight"


@pytest.mark.parametrize(
    ("read", "change", "words"),
    [
        (autoencoder_of, lambda base: without(base, VAE), ["first_stage_model.*", "own VAE", "none"]),
        (text_encoder_of, lambda base: without(base, TEXT), ["cond_stage_model.transformer.*", "base.text_encoder", "none"]),
        (unet_of, lambda base: without(base, f"{UNET}input_blocks.10.0.out_layers.3"), ["input_blocks.10.0.out_layers.3.weight", "none"]),
        (unet_of, lambda base: without(base, NORM), ["UNet2DConditionModel", "Missing key", "up_blocks.3.attentions.2.norm.weight"]),
        (unet_of, lambda base: narrowed(base, NORM), ["UNet2DConditionModel", "up_blocks.3.attentions.2.norm.weight", "[31]", "[32]"]),
        (autoencoder_of, lambda base: without(base, f"{VAE}post_quant_conv.weight"), ["first_stage_model.post_quant_conv.weight", "none"]),
        (autoencoder_of, lambda base: narrowed(base, CONVOLUTION), ["AutoencoderKL", "up_blocks.1.resnets.0.conv1.weight", "[31, 32, 3, 3]"]),
        (text_encoder_of, lambda base: without(base, f"{TEXT}text_model.embeddings"), ["token_embedding.weight", "none of that name"]),
        (text_encoder_of, lambda base: without(base, LAYER), ["CLIPTextModel", "encoder.layers.1.mlp.fc2.weight"]),
    ],
    ids=["no VAE", "no text encoder", "no level", "no norm", "a short norm", "no VAE entrance", "a thin kernel", "no vocabulary", "no layer"],
)
def test_a_checkpoint_that_is_not_whole_is_refused(base, read, change, words):
    with pytest.raises(FileFormatError) as caught:
        read(change(base))
    for word in ("base.safetensors", str(base.path), "expected", "found", *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_file_that_is_no_checkpoint_is_refused(path, tmp_path):
    torn, renamed, empty = (tmp_path / f"{name}.safetensors" for name in ("torn", "renamed", "empty"))
    torn.write_bytes(path.read_bytes()[:-100])
    torch.save({"state_dict": {"model.weight": torch.zeros(2)}}, renamed)
    empty.touch()
    for broken in (torn, renamed, empty):
        with pytest.raises(FileFormatError, match=rf"{broken.name}: not a readable safetensors file .* converted to \.safetensors first"):
            read_base(broken)
    with pytest.raises(FileFormatError, match=r"absent.safetensors: no such checkpoint"):
        read_base(tmp_path / "absent.safetensors")
    save_file({"lora_unet_down.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(MismatchError, match=r"lora.safetensors is not an SD1.5 checkpoint"):
        require_sd15(read_base(tmp_path / "lora.safetensors"))


def test_a_controlnet_says_what_the_hosts_own_says(base, tmp_path):
    path = write_tiny_controlnet(tmp_path / "controlnet.safetensors")
    config = {**SD15_UNET, "model_channels": 32, "channel_mult": [1, 2, 3, 3], "context_dim": TEXT_WIDTH, "hint_channels": 3}
    for key in ("out_channels", "transformer_depth_output"):
        config.pop(key)
    theirs = comfy.cldm.cldm.ControlNet(**config).eval()
    theirs.load_state_dict({key.removeprefix("control_model."): value.float() for key, value in load_file(path).items()})
    generator = torch.Generator().manual_seed(0)
    latent, text = torch.randn(2, 4, 16, 8, generator=generator), torch.randn(2, 77, TEXT_WIDTH, generator=generator)
    hint, timesteps = torch.rand(2, 3, 128, 64, generator=generator), torch.tensor([3, 700])
    with torch.no_grad():
        down, middle = controlnet_of(path, base)(latent, timesteps, text, hint, return_dict=False)
        expected = theirs(latent, hint, timesteps, text)
    if isinstance(expected, dict):  # hosts since mid-2024
        expected = [*expected["output"], *expected["middle"]]
    assert len(expected) == len(down) + 1 == 13
    for ours, other in zip((*down, middle), expected):
        assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


def test_controlnets_of_another_base_are_refused(base, path, tmp_path):
    other = write_tiny_controlnet(tmp_path / "other.safetensors", (32, 64, 64, 64))
    with pytest.raises(MismatchError, match=r"other.safetensors .* widths \[32, 64, 64, 64\].* base.safetensors has \[32, 64, 96, 96\]"):
        controlnet_of(other, base)
    tensors = load_file(write_tiny_controlnet(tmp_path / "fitting.safetensors"))
    keys = [key for key in tensors if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    save_file({**tensors, **{key: tensors[key][:, :32].clone() for key in keys}}, tmp_path / "text.safetensors")
    with pytest.raises(MismatchError, match=r"text states of width 32, but base.safetensors has .* and 64"):
        controlnet_of(tmp_path / "text.safetensors", base)
    for key in ("input_blocks.10.0.out_layers.3.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "input_hint_block.4.weight"):
        save_file({name: value for name, value in tensors.items() if not name.endswith(key)}, tmp_path / "part.safetensors")
        with pytest.raises(FileFormatError, match=rf"part.safetensors: .*{key}"):
            controlnet_of(tmp_path / "part.safetensors", base)
    with pytest.raises(FileFormatError, match=r"base.safetensors: tensor 'input_hint_block.0.weight': expected a ControlNet for SD1.5"):
        controlnet_of(path, base)


def test_text_states_are_those_of_transformers(base):
    text, reference = TextEncoder(text_encoder_of(base)), tiny_models()[2]
    reference.load_state_dict(rounded(reference))
    tokens = text.tokens(PROMPTS)
    with torch.no_grad():
        theirs = reference(tokens)
    assert torch.equal(text.states(tokens), theirs.last_hidden_state) and torch.equal(text.pooled(PROMPTS), theirs.pooler_output)


def test_text_states_are_those_of_the_host(base):
    text = TextEncoder(text_encoder_of(base))
    state = {key.removeprefix(TEXT): value.float() for key, value in base.tensors.items() if key.startswith(TEXT)}
    with torch.inference_mode():
        clip = host_clip(state, text.model.config)
        for prompt in PROMPTS:
            states, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled="unprojected")
            assert (states - text.states(text.tokens([prompt]))).abs().max() <= 1e-5
            assert (pooled - text.pooled([prompt])).abs().max() <= 1e-5


def test_what_is_read_of_a_long_prompt_fills_a_host_s_first_chunk(base):
    text = TextEncoder(text_encoder_of(base))
    assert text.fitting("A man,  two DOGS") == "A man,  two DOGS"
    kept = text.fitting("cat " * 100)
    assert kept.split() == ["cat"] * 75 and torch.equal(text.tokens([kept]), text.tokens(["cat " * 100]))


@pytest.mark.parametrize("change", ["no prefix", "a projection", "positions", "float positions"])
def test_text_encoders_of_all_common_files_are_read(base, change):
    tensors = dict(base.tensors)
    if change == "no prefix":  # as some fine-tunes are saved
        tensors = {key.replace(f"{TEXT}text_model.", TEXT): value for key, value in tensors.items()}
    elif change == "a projection":
        tensors[f"{TEXT}text_projection.weight"] = torch.eye(TEXT_WIDTH)
    else:
        positions = torch.arange(77)[None]
        tensors[f"{TEXT}text_model.embeddings.position_ids"] = positions if change == "positions" else positions.half()
    assert_same_weights(text_encoder_of(replace(base, tensors=tensors)), rounded(tiny_models()[2]))


def test_the_fingerprint_is_of_the_weights(base):
    text, again = (TextEncoder(text_encoder_of(base)) for _ in range(2))
    assert text.fingerprint == again.fingerprint
    with torch.no_grad():
        again.model.text_model.final_layer_norm.bias[3] += 1e-3
    assert text.fingerprint != again.fingerprint


def test_a_text_encoder_may_lie_in_an_open_clip_folder(base, tmp_path):
    place = write_tiny_clip(tmp_path / "clip")
    text = text_encoder(base, place)
    clip = open_clip.create_model(place).eval()
    tokens = text.tokenise(["a man"])
    with torch.no_grad():
        projected = clip.encode_text(tokens)
        assert (text.pooled(["a man"]) @ clip.text_projection - projected).abs().max() <= 1e-5
    assert isinstance(text.model, CLIPTextModel)


def test_other_places_of_a_text_encoder_are_refused(base, tmp_path):
    with pytest.raises(KBDMError, match=r"base.text_encoder is 'ViT-B-32'; expected nothing .* local-dir:FOLDER"):
        text_encoder(base, "ViT-B-32")
    with pytest.raises(KBDMError, match=r"local-dir:.*absent cannot be loaded .* expected open_clip_config.json"):
        text_encoder(base, f"local-dir:{tmp_path / 'absent'}")
    wide = write_tiny_clip(tmp_path / "wide", text_cfg={"width": 96, "heads": 4, "layers": 1})
    with pytest.raises(MismatchError, match=r"UNet of base.safetensors attends to text states of width 64, but base.text_encoder .* gives 96"):
        text_encoder(base, wide)
