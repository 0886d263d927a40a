"""Load Knowledge Base, KB Text Query and Preview KB Tokens as ComfyUI runs them; z_t against open_clip on the same weights."""

from __future__ import annotations

import importlib
import os
import uuid
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from testbed.host import import_host

import_host()

from testbed.host_clip import host_clip  # noqa: E402
from testbed.model_folder import model_folders, only_folder  # noqa: E402
from testbed.pack import PACKAGE, load_node_module  # noqa: E402
from train.base.text_tower import clip_l_layout  # noqa: E402

text_query = load_node_module("text_query")
knowledge_base_node = load_node_module("knowledge_base")
preview_tokens = load_node_module("preview_tokens")
core = importlib.import_module(f"{PACKAGE}.kbdm_core.knowledge_base")
errors = importlib.import_module(f"{PACKAGE}.kbdm_core.errors")

TEXT_WIDTH = 6


class CountingClip:
    """A CLIP that counts what it encodes; pooled text is a fixed random vector per phrase."""

    def __init__(self, width: int | None = TEXT_WIDTH):
        self.patcher = SimpleNamespace(patches_uuid=uuid.uuid4())
        self.width = width
        self.encoded: list[str] = []

    def tokenize(self, text):
        return {"l": [text]}

    def encode_from_tokens(self, tokens, return_pooled=False):
        assert return_pooled == "unprojected"
        self.encoded.append(tokens["l"][0])
        if self.width is None:
            return torch.zeros(1, 77, 8), None
        generator = torch.Generator().manual_seed(sum(map(ord, tokens["l"][0])))
        return torch.zeros(1, 77, self.width), torch.randn(1, self.width, generator=generator)


@pytest.fixture
def kb():
    return core.fresh_knowledge_base(entries=20, grid=(3, 4), width=8, text_width=TEXT_WIDTH, hidden=5)


@pytest.fixture
def query(monkeypatch, kb):
    monkeypatch.setattr(text_query.KBDMTextQuery, "_cache", text_query.PhraseCache(size=8))
    defaults = {"negative_text": "", "decompose": "phrases", "compose": "mean", "temperature": 0.0}

    @torch.inference_mode()  # as the host runs its nodes
    def query(clip, text, **changes):
        return text_query.KBDMTextQuery().query(kb, clip, text, **{**defaults, **changes})

    return query


def test_answers_every_phrase_and_the_negative_prompt(kb, query):
    tokens, phrases = query(CountingClip(), "digital art, a person watching a fighter jet", negative_text="blurry")
    assert phrases == "digital art\na person\na fighter jet"
    assert tokens.phrases == ("digital art", "a person", "a fighter jet")
    assert tokens.positive.shape == tokens.negative.shape == (1, 12, 8)
    assert tokens.indices.shape == tokens.confidence.shape == (3, 12)
    assert (tokens.codebook_sha256, tokens.knowledge_base, tokens.grid) == (kb.codebook_sha256, "fresh", (3, 4))
    pooled = torch.cat([text_query.encode(CountingClip(), each) for each in tokens.phrases])
    assert torch.equal(tokens.positive, kb.query(kb.project(pooled)).fused)
    assert torch.equal(tokens.negative, kb.query(kb.project(text_query.encode(CountingClip(), "blurry"))).fused)


def test_phrases_already_asked_are_not_encoded_again(query):
    clip = CountingClip()
    query(clip, "a cat, a dog")
    assert sorted(clip.encoded) == ["", "a cat", "a dog"]
    query(clip, "a dog, a bird", compose="confidence", temperature=1.0)
    assert clip.encoded[3:] == ["a bird"]


def test_a_clip_with_other_weights_is_asked_anew(query):
    clip = CountingClip()
    query(clip, "a cat")
    clip.patcher.patches_uuid = uuid.uuid4()  # as a LoRA does
    query(clip, "a cat")
    assert clip.encoded == ["a cat", "", "a cat", ""]


def test_the_cache_forgets_the_phrase_asked_longest_ago():
    cache, clip = text_query.PhraseCache(size=2), CountingClip()
    for phrase in ("a", "b", "a", "c", "a", "b"):
        cache.pooled(clip, (phrase,))
    assert clip.encoded == ["a", "b", "c", "b"]


def test_more_phrases_than_the_cache_holds_are_answered():
    clip = CountingClip()
    assert text_query.PhraseCache(size=2).pooled(clip, tuple("abcd")).shape == (4, TEXT_WIDTH)


@pytest.mark.parametrize("text", ["", "((:1.2))", "(((", "🎉 女孩", "a, " * 3333, "word " * 2000])
@pytest.mark.parametrize("decompose", ["phrases", "lines", "off"])
def test_any_prompt_is_answered(query, text, decompose):
    tokens, _ = query(CountingClip(), text, decompose=decompose)
    assert tokens.positive.isfinite().all()


def test_a_missing_text_encoder_is_an_error(query):
    with pytest.raises(errors.MismatchError, match="no text encoder"):
        query(None, "a cat")
    with pytest.raises(errors.MismatchError, match="no pooled text"):
        query(CountingClip(None), "a cat")


@pytest.mark.parametrize("width", [1024, 1280, 2048])
def test_a_text_encoder_of_another_width_is_an_error(query, width):
    with pytest.raises(errors.MismatchError, match=f"{width}.*{TEXT_WIDTH}"):
        query(CountingClip(width), "a cat")


def test_brackets_of_a_phrase_are_text_to_the_host():
    import comfy.sd1_clip

    tokenizer = comfy.sd1_clip.SD1Tokenizer()
    seen = {}
    clip = SimpleNamespace(
        tokenize=tokenizer.tokenize_with_weights,
        encode_from_tokens=lambda tokens, return_pooled: (seen.update(tokens), torch.zeros(1, 768)),
    )
    text_query.encode(clip, "fate (series:1.3)")
    ids = [token for token, weight in seen["l"][0] if token < 49406]
    assert {weight for _, weight in seen["l"][0]} == {1.0}
    words = tokenizer.sd_tokenizer.tokenizer if hasattr(tokenizer, "sd_tokenizer") else tokenizer.clip_l.tokenizer
    assert words.decode(ids).replace(" ", "") == "fate(series:1.3)"
    text_query.encode(clip, "word " * 300)
    assert len(seen["l"]) == 1


def open_clip_text_tower():
    """open_clip's ViT-L-14-quickgelu with random weights that float16 holds exactly (hosts may store them so), vision cut to a stub."""
    import open_clip

    config = open_clip.get_model_config("ViT-L-14-quickgelu")
    stub = {"image_size": 28, "layers": 1, "width": 64, "patch_size": 14}
    torch.manual_seed(0)
    model = open_clip.model.CLIP(config["embed_dim"], stub, config["text_cfg"], quick_gelu=True).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "bias" in name or "ln_" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        parameter.copy_(parameter.half().float())
    return model, open_clip.get_tokenizer("ViT-L-14-quickgelu")


@pytest.mark.slow
@torch.inference_mode()  # as the host runs its nodes
def test_z_t_of_the_host_is_open_clips_encode_text():
    """With a checkpoint that has no text_projection (SD1.5 checkpoints) and with one that has (CLIP-L files)."""
    model, tokenize = open_clip_text_tower()
    kb = core.fresh_knowledge_base(entries=4, grid=(2, 2))
    kb = core.KnowledgeBase(kb.codebook, kb.classifier, model.text_projection.detach(), kb.grid, kb.codebook_sha256, kb.name)
    words = ("a photo of the red dog on my old car near some big tree and one blue house with two dark cat by night " * 4).split()
    lengths = (1, 2, 7, 40, 74, 75)
    prompts = [" ".join(words[:length]) for length in lengths]
    tokens = tokenize(prompts)
    assert (tokens != 0).sum(1).tolist() == [length + 2 for length in lengths]
    expected = model.encode_text(tokens)

    clip = host_clip(clip_l_layout(model))
    errors_without = [(kb.project(text_query.encode(clip, each)) - z_t).abs().max().item() for each, z_t in zip(prompts, expected)]
    clip.load_sd({"text_projection.weight": model.text_projection.detach().T.contiguous()})
    assert not torch.equal(clip.cond_stage_model.clip_l.transformer.text_projection.weight.float(), torch.eye(768))
    errors_with = [(kb.project(text_query.encode(clip, each)) - z_t).abs().max().item() for each, z_t in zip(prompts[::3], expected[::3])]
    print(f"max abs error of z_t: {max(errors_without):.1e} without, {max(errors_with):.1e} with text_projection")
    assert max(errors_without + errors_with) <= 1e-4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with only_folder(model_folders.KNOWLEDGE_BASES, tmp_path, monkeypatch) as folder:
        yield folder


def test_only_safetensors_are_listed(folder, kb):
    core.save_knowledge_base(folder / "people.safetensors", kb)
    (folder / "old.ckpt").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    options = knowledge_base_node.KBDMLoadKnowledgeBase.INPUT_TYPES()["required"]["knowledge_base_name"][0]
    assert options == ["people.safetensors"]


def test_a_file_is_read_once_until_it_changes(folder, kb):
    node = knowledge_base_node.KBDMLoadKnowledgeBase()
    path = folder / "people.safetensors"
    core.save_knowledge_base(path, kb)
    first, version = node.load(path.name)[0], node.IS_CHANGED(path.name)
    assert node.load(path.name)[0] is first and node.IS_CHANGED(path.name) == version
    core.save_knowledge_base(path, core.fresh_knowledge_base(entries=21, grid=(3, 4), width=8, text_width=TEXT_WIDTH, hidden=5))
    os.utime(path, ns=(1, 1))
    assert node.load(path.name)[0].codebook.shape == (21, 8)
    assert node.IS_CHANGED(path.name) != version


def test_a_knowledge_base_loaded_by_the_host_answers_in_and_out_of_inference_mode(folder, kb):
    core.save_knowledge_base(folder / "people.safetensors", kb)
    with torch.inference_mode():
        loaded = knowledge_base_node.KBDMLoadKnowledgeBase().load("people.safetensors")[0]
        inside = loaded.query(loaded.project(torch.ones(1, TEXT_WIDTH)), temperature=1.0).fused
    assert torch.allclose(loaded.query(loaded.project(torch.ones(1, TEXT_WIDTH)), temperature=1.0).fused, inside)


def test_a_file_that_is_gone_is_an_error(folder):
    with pytest.raises(errors.FileFormatError, match=r"'lost.safetensors' is not there"):
        knowledge_base_node.KBDMLoadKnowledgeBase().load("lost.safetensors")


def test_registering_twice_keeps_the_users_own_folders_first(tmp_path, monkeypatch):
    with only_folder(model_folders.ADAPTERS, tmp_path, monkeypatch) as folder:
        own = tmp_path / "from extra_model_paths"
        model_folders.register()
        model_folders.folder_paths.add_model_folder_path(model_folders.ADAPTERS, str(own))  # after the miniature's
        for _ in range(2):
            model_folders.register()
        paths, extensions = model_folders.folder_paths.folder_names_and_paths[model_folders.ADAPTERS]
        assert paths == [str(folder), str(own), str(tmp_path / "mini" / "adapters")] and extensions == {".safetensors"}


@pytest.mark.parametrize(
    ("name", "shipped"),
    [(model_folders.KNOWLEDGE_BASES, "knowledge_bases/mini/knowledge_base"), (model_folders.ADAPTERS, "adapters/mini/adapter")],
)
def test_the_miniatures_file_is_listed_and_gives_way_to_the_users(tmp_path, monkeypatch, name, shipped):
    with only_folder(name, tmp_path, monkeypatch) as folder:
        assert model_folders.names(name) == []
        for file in (tmp_path / "mini" / f"{shipped}.safetensors", folder / "people.safetensors"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        listed = f"mini{os.sep}{Path(shipped).name}.safetensors"
        assert model_folders.names(name) == [listed, "people.safetensors"]
        assert Path(model_folders.full_path(name, listed)) == tmp_path / "mini" / f"{shipped}.safetensors"
        (folder / "mini").mkdir()
        (folder / listed).touch()
        assert Path(model_folders.full_path(name, listed)) == folder / listed


def test_preview_has_a_row_per_phrase_and_survives_titles_of_any_script(query):
    tokens, _ = query(CountingClip(), "a $x_{ person\n🎉 女孩\n" + "long " * 40, decompose="lines")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (image,) = preview_tokens.KBDMPreviewTokens().preview(tokens)
        (empty,) = preview_tokens.KBDMPreviewTokens().preview(query(CountingClip(), "")[0])
    assert image.dtype == torch.float32 and image.shape[0] == 1 and image.shape[3] == 3
    assert image.min() >= 0 and image.max() <= 1
    assert image.shape[1] == 3 * empty.shape[1]


def test_an_entry_has_the_same_colour_everywhere_and_neighbours_differ():
    colours = torch.from_numpy(preview_tokens.entry_colours(torch.arange(4096).numpy()))
    assert torch.equal(colours[7], torch.from_numpy(preview_tokens.entry_colours(torch.tensor([[7, 1]]).numpy()))[0, 0])
    assert (colours[1:] - colours[:-1]).norm(dim=-1).min() > 0.2


@pytest.mark.parametrize(
    "node",
    [knowledge_base_node.KBDMLoadKnowledgeBase, text_query.KBDMTextQuery, preview_tokens.KBDMPreviewTokens],
    ids=lambda node: node.__name__,
)
def test_every_input_and_output_explains_itself(node):
    inputs = node.INPUT_TYPES()
    assert all(spec[1]["tooltip"] for group in inputs.values() for spec in group.values())
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert node.CATEGORY == "KB-DM" and node.DESCRIPTION and node.SEARCH_ALIASES and hasattr(node, node.FUNCTION)
