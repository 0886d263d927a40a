"""Bar C6: what the trainer writes works in ComfyUI: a fresh adapter is the identity, and a validation graph draws the trainer's own picture."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import comfy.samplers
import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from kbdm_core.adapter_file import load_adapter
from kbdm_core.guidance import adapter_guidance
from kbdm_core.keypoints import Person, Pose
from kbdm_core.knowledge_base import fresh_knowledge_base, save_knowledge_base
from testbed.host_graph import png, saved_picture
from testbed.host_model import host_model, predict, sample
from testbed.model_folder import only_folder
from testbed.pack import ROOT, load_node_module
from testbed.random_weights import randomise
from testbed.sample_data import body, write_captioned, write_folder
from testbed.small_adapter import kb_tokens, load_small_adapter, pose_picture, steer
from testbed.tiny_base import TEXT_WIDTH, write_tiny_base, write_tiny_knowledge_base
from train.__main__ import main
from train.adapter.sampling import scheduler
from train.adapter.workflow import Files, literal, pose_json, workflow
from train.base.checkpoint import read_base, unet_of
from train.base.text import TextEncoder
from train.base.text_tower import text_model
from train.host import GuidedUNet
from train.mini import autoencoder as mini_autoencoder
from train.mini import unet as mini_unet
from train.mini.checkpoint import write_checkpoint

mini_model = load_node_module("mini_model")
model_folders = load_node_module("model_folders")

CLIP = ROOT / "assets" / "mini" / "clip"
QUICK = ("--examples.resolution", 64, "--batch", 2, "--warmup", 0, "--pose-width", 32, "--pose-stem", 8, 8, 16, 16, "--run.device", "cpu")
LONG = "people dancing in a park, " * 30
EXAMPLES = [  # caption, size
    (r"a man (smiling:1.3), [a dog] and \(trees", (96, 64)),
    (f"oil painting, {LONG}", (64, 96)),
    ("pixel art of a knight & his (horse", (64, 64)),
]


def train(folder: Path, *arguments: object) -> None:
    """`python -m train adapter` in this process, in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["adapter", *map(str, (*QUICK, "--run.no-tensorboard", *arguments))]) == 0


def write_examples(root: Path) -> Path:
    """Three pictures of three shapes; the first with two people, one of whom has a face, a hand and a neck of their own."""
    for number, (caption, (width, height)) in enumerate(EXAMPLES):
        path = write_captioned(root / f"{number}.png", number, caption, (width, height))
        people = [Person(body(number, (width, height)).astype(np.float64))]
        if number == 0:
            random = np.random.default_rng(7)
            face, hand, neck = (random.uniform(0.2, 0.8, (count, 3)) * (width, height, 1) for count in (68, 21, 1))
            people.append(Person(body(9, (width, height)).astype(np.float64), face, hand, neck=neck[0]))
        path.with_suffix(".json").write_text(pose_json(Pose(tuple(people), width, height)))
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """The host's models folder, with a random miniature in place/mini, its knowledge base, and an adapter that was trained on it."""
    place = tmp_path_factory.mktemp("models")
    mini = place / "mini"
    models = UNet2DConditionModel(**mini_unet.CONFIG), AutoencoderKL(**mini_autoencoder.CONFIG)
    for number, model in enumerate(models):
        randomise(model, number)
    with torch.no_grad():
        for name, weight in models[0].named_parameters():
            if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
                weight.mul_(4)  # as choosy as trained attention, so that a mask shows
    mini.mkdir()
    write_checkpoint(mini / "checkpoint.safetensors", *models, {})
    shutil.copytree(CLIP, mini / "clip")
    knowledge_base, adapter = (mini / kind / "mini" / f"{kind}.safetensors" for kind in ("knowledge_bases", "adapters"))
    for path in (knowledge_base, adapter):
        path.parent.mkdir(parents=True)
    save_knowledge_base(knowledge_base, fresh_knowledge_base(32, (4, 4), 24, 128))
    base = ("--base.checkpoint", mini / "checkpoint.safetensors", "--base.text-encoder", f"local-dir:{mini / 'clip'}")
    data = ("--data.root", write_examples(place / "pictures"), "--data.held-out", 0, "--knowledge-base", knowledge_base)
    quickly = ("--steps", 6, "--learning-rate", 0.03, "--scalar-rate", 0.2, "--export", "float16", "--decompose", "phrases")
    drawn = ("--validation.steps", 7, "--validation.scale", 3, "--validation.pictures", 3)
    train(place, *base, *data, *quickly, *drawn, "--output", adapter, "--run.folder", place / "run")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in model_folders.SHIPPED:
            stack.enter_context(only_folder(name, place, patch))
        patch.setattr(mini_model, "MINI", mini)
        yield place


def graph_of(place: Path, number: int) -> dict:
    return json.loads((place / "run" / "validation" / f"picture-{number}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_validation_graph_draws_the_trainers_picture_in_the_host(place, tmp_path, number):
    expected = png(place / "run" / "validation" / f"picture-{number}.png")
    assert expected.std() > 10, "an even picture shows nothing"
    assert abs(saved_picture(graph_of(place, number), tmp_path / "out") - expected).max() <= 2


@pytest.mark.slow
def test_every_section_of_the_trained_adapter_shows_in_the_picture(place, tmp_path):
    expected = png(place / "run" / "validation" / "picture-0.png")
    for strength in ("kb_strength", "dm_strength", "pose_strength"):
        graph = copy.deepcopy(graph_of(place, 0))
        (apply,) = (node for node in graph.values() if node["class_type"] == "KBDMAdapterApply")
        apply["inputs"][strength] = 0.0
        assert abs(saved_picture(graph, tmp_path / strength) - expected).max() > 10, strength


def test_the_graph_asks_the_knowledge_base_as_the_adapter_was_trained_to():
    graph = workflow(Files("base.safetensors", "adapter.safetensors", "kb.safetensors"), "a man, a dog", "off", "a man", Pose((), 64, 64), 1, 2, 3.0)
    inputs = {node["_meta"]["title"]: node["inputs"] for node in graph.values()}
    query = inputs["KB Text Query"]
    assert (query["text"], query["decompose"], query["negative_text"]) == ("a man, a dog", "off", "")
    assert inputs["Prompt"]["text"] == "a man" and inputs["Load Checkpoint"]["ckpt_name"] == "base.safetensors"


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 30, 50, 64, 300, 333])
def test_the_sampling_schedule_is_the_hosts(steps):
    """Its sigmas, their number, and that it does not start at the last timestep, where the host would scale the noise otherwise."""
    sampling = host_model().get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)
    plan = scheduler(steps)
    alphas = plan.alphas_cumprod[plan.timesteps]
    assert sigmas[-1] == 0 and len(sigmas) == len(plan.timesteps) + 1
    assert torch.allclose(sigmas[:-1], ((1 - alphas) / alphas) ** 0.5, rtol=1e-4)
    assert sigmas[0] < sampling.sigma_max * (1 - 1e-5)
    latent, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for now, following, timestep in zip(sigmas, sigmas[1:], plan.timesteps):  # Euler's step in the host's variables
        x = latent * (now**2 + 1) ** 0.5
        expected = (x + noise * (following - now)) / (following**2 + 1) ** 0.5
        assert torch.allclose(plan.step(noise, timestep, latent, eta=0.0).prev_sample, expected, atol=2e-4)


@pytest.mark.parametrize("prompt", [EXAMPLES[0][0], "((", ")) a cat :1.2)", r"\\(a\) \ ", LONG, "ab" * 200, "🎉 " * 90, "a\nman\t ,"], ids=repr)
def test_the_host_reads_the_graphs_prompt_as_the_trainer_reads_its_own(prompt):
    text = TextEncoder(text_model(open_clip.create_model(f"local-dir:{CLIP}").eval()))
    with torch.inference_mode():
        clip = mini_model.host_models.text_encoder(mini_model.load_text_tower(CLIP))
        (chunk,) = clip.tokenize(literal(text.fitting(prompt)))["l"]
    assert [token for token, *_ in chunk] == text.tokens([text.fitting(prompt)])[0].tolist()
    assert {weight for _, weight, *_ in chunk} == {1.0}
    kept, whole = (text.tokens([each])[0] for each in (text.fitting(prompt), prompt))
    assert (kept == whole)[:72].all(), "more is lost than half a word at the end"


BLOCKS = [f"input_blocks.{n}" for n in (1, 2, 4, 5, 7, 8)] + ["middle_block"] + [f"output_blocks.{n}" for n in range(3, 12)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A folder with a tiny base, its knowledge base, and the adapter of 0 steps."""
    folder = tmp_path_factory.mktemp("untrained")
    base, knowledge_base = write_tiny_base(folder / "base.safetensors"), write_tiny_knowledge_base(folder / "kb.safetensors")
    files = "--base.checkpoint", base, "--knowledge-base", knowledge_base, "--data.root", write_folder(folder / "pictures", 4)
    train(folder, *files, "--steps", 0, "--epochs", 0, "--validation.pictures", 0, "--output", folder / "adapter.safetensors")
    return folder


@pytest.mark.slow
def test_an_adapter_of_no_steps_holds_the_contracts_keys_alone(untrained):
    with safe_open(untrained / "adapter.safetensors", "pt") as opened:
        keys, metadata = set(opened.keys()), opened.metadata()
    kb = {f"kb.{block}.{name}" for block in BLOCKS for name in ("to_k.weight", "to_v.weight", "scale")} | {"kb.position"}
    assert {key for key in keys if key.startswith("kb.")} == kb
    assert {key.partition(".")[0] for key in keys} == {"kb", "dm", "pose"}
    assert (metadata["format"], metadata["format_version"], metadata["base"]) == ("kbdm.adapter", "1", "sd15-32-64-96-96")
    assert metadata["base_sha256"] == hashlib.sha256((untrained / "base.safetensors").read_bytes()).hexdigest()
    codebook = load_file(untrained / "kb.safetensors")["codebook.weight"].float().numpy()
    assert metadata["codebook_sha256"] == hashlib.sha256(codebook.tobytes()).hexdigest()


@pytest.mark.slow
def test_an_adapter_of_no_steps_is_the_identity_in_the_host(untrained):
    model = host_model(model_channels=32, channel_mult=[1, 2, 3, 3], context_dim=TEXT_WIDTH)
    prefix = "model.diffusion_model."
    weights = {key.removeprefix(prefix): value.float() for key, value in load_file(untrained / "base.safetensors").items() if key.startswith(prefix)}
    model.model.diffusion_model.load_state_dict(weights)
    loaded = load_small_adapter(untrained / "adapter.safetensors")
    steered = steer(model, loaded, kb_tokens=kb_tokens(codebook_sha256=loaded.info.codebook_sha256))
    x, conds = torch.randn(2, 4, 17, 12), [torch.randn(1, 77, TEXT_WIDTH) for _ in range(2)]
    for sigma in (0.05, 3.0, 14.0):
        assert torch.equal(predict(steered, x, sigma, conds), predict(model, x, sigma, conds))
    assert torch.equal(sample(steered), sample(model))


@pytest.mark.slow
def test_an_adapter_of_no_steps_is_the_identity_in_diffusers(untrained):
    unet = unet_of(read_base(untrained / "base.safetensors"))
    adapter, _ = load_adapter(untrained / "adapter.safetensors")
    latent, text, timesteps = torch.randn(2, 4, 17, 12), torch.randn(2, 77, TEXT_WIDTH), torch.tensor([500, 500])
    with torch.no_grad():
        guided = GuidedUNet(unet)
        plain = guided(latent, timesteps, text, adapter_guidance(adapter))
        steered = guided(latent, timesteps, text, adapter_guidance(adapter, tuple(torch.randn(2, 1, 16, 24)), pose_picture()))
    assert torch.equal(steered, plain)
