"""CLIP features: tokens and texts against hooks and transformers' own CLIP, and their extraction from a folder of good and broken pictures."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from kbdm_core.errors import KBDMError
from testbed.tiny_clip import PREPROCESSING, write_tiny_clip
from train.data import image_keys
from train.data.records import Record, load_image
from train.features import extract
from train.features.clip import ClipTable, VisionTextCLIP
from train.features.extract import extract_texts, extract_tokens, text_store, token_store

TEXTS = ["a person watching a fighter jet", "", "ÉTÉ 日本 😀 (x:1.2)", "a very long caption " * 60, "x" * 100_000]
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """OpenCLIP's name of the tiny model."""
    return write_tiny_clip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def table(tiny, tmp_path):
    return ClipTable(model=tiny, pretrained="", dtype="float32", batch=4, cache=tmp_path / "cache")


def hooked(module: nn.Module, call) -> torch.Tensor:
    """What `module` puts out during call()."""
    seen = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        call()
    handle.remove()
    return seen[-1]


@pytest.mark.parametrize("custom_text", [False, True])
def test_tokens_are_the_patches_after_ln_post_times_the_projection(tmp_path, custom_text):
    table = ClipTable(model=write_tiny_clip(tmp_path, custom_text=custom_text), pretrained="")
    clip = VisionTextCLIP(table)
    visual = clip.model.visual
    normed = hooked(visual.ln_post, lambda: visual(IMAGES))  # [B, 1 + N, C_vision]
    assert torch.allclose(clip.tokens(IMAGES), normed[:, 1:] @ visual.proj, atol=1e-6)
    assert torch.allclose(clip.model.encode_image(IMAGES), normed[:, 0] @ visual.proj, atol=1e-6)
    raw = VisionTextCLIP(replace(table, space="raw"))
    assert torch.allclose(raw.tokens(IMAGES), normed[:, 1:], atol=1e-6)
    assert (clip.grid, clip.width, raw.width) == ((4, 4), 48, 64)
    assert clip.tokens(IMAGES).shape == (3, 16, 48) and raw.tokens(IMAGES).shape == (3, 16, 64)


@pytest.mark.parametrize("custom_text", [False, True])
def test_texts_are_the_eos_state_after_ln_final_times_text_projection(tmp_path, custom_text):
    clip = VisionTextCLIP(ClipTable(model=write_tiny_clip(tmp_path, custom_text=custom_text), pretrained=""))
    tower = clip.model.text if custom_text else clip.model
    states = hooked(tower.ln_final, lambda: clip.texts(TEXTS))  # [B, 77, C_text]
    ids = open_clip.tokenize([text[:1000] for text in TEXTS])
    for b, sentence in enumerate(ids.tolist()):
        eos = states[b, sentence.index(49407)]
        assert torch.allclose(clip.texts(TEXTS)[b], eos @ clip.text_projection, atol=1e-6)
    assert clip.text_projection.shape == (64, 48) and clip.text_projection.dtype == torch.float32


def test_tokens_and_texts_are_those_of_the_clip_that_sd15_uses(tiny):
    """The same weights in transformers' CLIPModel, whose text tower is SD1.5's: pooled (unprojected EOS state) @ text_projection = z_t."""
    transformers = pytest.importorskip("transformers")
    clip = VisionTextCLIP(ClipTable(model=tiny, pretrained=""))
    small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 49408, "eos_token_id": 49407},
        vision_config={**small, "image_size": 64, "patch_size": 16},
        projection_dim=48,
    )
    other = transformers.CLIPModel(config).eval()
    other.load_state_dict(as_transformers(clip.model.state_dict()))
    with torch.no_grad():
        states = other.vision_model(IMAGES).last_hidden_state[:, 1:]
        tokens = other.visual_projection(other.vision_model.post_layernorm(states))
        pooled = other.text_model(open_clip.tokenize(TEXTS[:4])).pooler_output
    assert torch.allclose(clip.tokens(IMAGES), tokens, atol=1e-5)
    assert torch.allclose(clip.texts(TEXTS[:4]), pooled @ clip.text_projection, atol=1e-5)


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's names to transformers': fused q, k, v in three, projections as Linear weights."""
    names = {
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    }
    parts = {
        "visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm", "ln_final": "text_model.final_layer_norm",
        "visual.transformer.resblocks": "vision_model.encoder.layers", "transformer.resblocks": "text_model.encoder.layers", "ln_1": "layer_norm1",
        "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    found = {"visual_projection.weight": state["visual.proj"].T, "text_projection.weight": state["text_projection"].T}
    for key, tensor in state.items():
        if key in ("visual.proj", "text_projection"):
            continue
        name = names.get(key, key)
        for ours, theirs in parts.items():
            name = name if key in names else name.replace(ours, theirs)
        if "attn.in_proj_" in name:
            for letter, third in zip("qkv", tensor.chunk(3)):
                found[name.replace("attn.in_proj_", f"self_attn.{letter}_proj.")] = third
        else:
            found[name] = tensor
    return found


def test_a_picture_is_scaled_by_its_shorter_side_cropped_in_the_middle_and_normalised(table):
    clip = VisionTextCLIP(table)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mean, std = (np.array(PREPROCESSING[name]) for name in ("mean", "std"))
    expected = torch.tensor(((pixels / 255 - mean) / std).transpose(2, 0, 1), dtype=torch.float32)
    assert torch.allclose(clip.preprocess(Image.fromarray(pixels)), expected, atol=1e-5)
    wide = np.zeros((128, 512, 3), np.uint8)
    wide[:, 192:320] = np.repeat(np.repeat(pixels, 2, 0), 2, 1)
    middle = clip.preprocess(Image.fromarray(wide))
    assert middle.shape == (3, 64, 64) and np.corrcoef(middle.flatten(), expected.flatten())[0, 1] > 0.9


def test_autocast_changes_the_precision_and_nothing_else(table):
    exact, fast = VisionTextCLIP(table), VisionTextCLIP(table, autocast=torch.bfloat16)
    assert fast.tokens(IMAGES).dtype == fast.texts(TEXTS).dtype == torch.float32
    assert not torch.equal(fast.tokens(IMAGES), exact.tokens(IMAGES))
    assert torch.allclose(fast.tokens(IMAGES), exact.tokens(IMAGES), atol=0.05)
    assert torch.equal(fast.texts(TEXTS), exact.texts(TEXTS))
    assert fast.model.visual.proj.dtype == torch.float32 and not exact.tokens(IMAGES).requires_grad


def test_the_fingerprint_is_of_weights_configuration_and_preprocessing_wherever_they_lie(tiny, tmp_path):
    def fingerprint(folder):
        return VisionTextCLIP(ClipTable(model=f"local-dir:{folder}", pretrained="")).fingerprint

    original = fingerprint(tiny.removeprefix("local-dir:"))
    moved = tmp_path / "moved"
    shutil.copytree(tiny.removeprefix("local-dir:"), moved)
    assert fingerprint(moved) == original
    config = json.loads((moved / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (moved / "open_clip_config.json").write_text(json.dumps(config))
    assert (normalised := fingerprint(moved)) != original
    weights = load_file(moved / "open_clip_model.safetensors")
    weights["visual.proj"][5, 7] += 1e-6
    save_file(weights, moved / "open_clip_model.safetensors")
    assert fingerprint(moved) not in (original, normalised)


OTHER_MODELS = [
    ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}}, "ModifiedResNet"),
    ({"vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"}}, "TimmModel"),
    ({"vision_cfg": {"pool_type": "avg"}}, "picture tower that pools otherwise"),
    ({"vision_cfg": {"final_ln_after_pool": True}}, "picture tower that pools otherwise"),
    ({"vision_cfg": {"attentional_pool": True}}, "picture tower that pools otherwise"),
    ({"text_cfg": {"pool_type": "last"}}, "text tower that pools otherwise"),
    ({"text_cfg": {"proj_bias": True}}, "text tower that pools otherwise"),
    ({"text_cfg": {"embed_cls": True}, "custom_text": True}, "text tower that pools otherwise"),
    ({"text_cfg": {"proj_type": "none"}, "custom_text": True}, "text tower that pools otherwise"),
]


@pytest.mark.parametrize(("changes", "words"), OTHER_MODELS)
def test_models_of_another_kind_are_one_clear_error(tmp_path, changes, words):
    with pytest.raises(KBDMError, match=f"{words}.*such as ViT-L-14-quickgelu"):
        VisionTextCLIP(ClipTable(model=write_tiny_clip(tmp_path, **changes), pretrained=""))


def test_models_that_cannot_be_loaded_are_one_clear_error(tmp_path):
    no_weights, no_config, other_sizes = tmp_path / "no-weights", tmp_path / "no-config", tmp_path / "other-sizes"
    for folder in (no_weights, no_config, other_sizes):
        write_tiny_clip(folder)
    (no_weights / "open_clip_model.safetensors").unlink()
    (no_config / "open_clip_config.json").write_text("{")
    config = json.loads((other_sizes / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 40
    (other_sizes / "open_clip_config.json").write_text(json.dumps(config))
    garbage, pickled = tmp_path / "garbage.safetensors", tmp_path / "pickled.pt"
    garbage.write_bytes(b"not a model")
    torch.save({"state_dict": os.system}, pickled)
    choices = [(f"local-dir:{folder}", "") for folder in (no_weights, no_config, other_sizes, tmp_path / "missing")]
    choices += [("ViT-B-32-quickgelu", "no-such-tag"), ("ViT-B-32-quickgelu", str(garbage)), ("ViT-B-32-quickgelu", str(pickled))]
    choices += [("ViT-B-32-quickgelu", ""), ("no-such-model", "openai")]
    for model, pretrained in choices:
        with pytest.raises(KBDMError, match=r"cannot be loaded \(.{10,350}\)\. Expected a name of OpenCLIP"):
            VisionTextCLIP(ClipTable(model=model, pretrained=pretrained))


def test_weights_trained_with_quickgelu_are_refused_in_a_model_without(monkeypatch):
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_arguments, **_choices: "no.safetensors")
    with pytest.raises(KBDMError, match="QuickGELU mismatch"):
        VisionTextCLIP(ClipTable(model="ViT-L-14", pretrained="openai"))


def test_a_table_without_pictures_or_threads_is_refused():
    for change in ({"batch": 0}, {"workers": 0}):
        with pytest.raises(KBDMError, match="at least 1"):
            ClipTable(**change)


@pytest.mark.slow
def test_the_real_layout_loads_from_a_local_file(tmp_path):
    """ViT-L-14-quickgelu at full size with arbitrary weights: 256 tokens of 768 or 1024 numbers, text_projection [768, 768]."""
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.device("meta"):
        shapes = open_clip.create_model("ViT-L-14-quickgelu", device="meta").state_dict()
    weights = {key: noise.repeat(shape.numel() // len(noise) + 1)[: shape.numel()].reshape(shape.shape).half() for key, shape in shapes.items()}
    save_file(weights, tmp_path / "clip.safetensors")
    clip = VisionTextCLIP(ClipTable(model="ViT-L-14-quickgelu", pretrained=str(tmp_path / "clip.safetensors")))
    assert torch.equal(clip.text_projection, weights["text_projection"].float())
    del weights
    images = torch.randn(1, 3, 224, 224)
    normed = hooked(clip.model.visual.ln_post, lambda: clip.model.encode_image(images))
    tokens = clip.tokens(images)
    assert (clip.grid, clip.width, tokens.shape) == ((16, 16), 768, (1, 256, 768)) and clip.text_projection.shape == (768, 768)
    assert torch.allclose(tokens, normed[:, 1:] @ clip.model.visual.proj, atol=1e-4)
    assert clip.texts(["a person"]).shape == (1, 768)
    assert clip.preprocess(Image.new("RGB", (640, 480))).shape == (3, 224, 224)


def pictures(folder, count: int) -> list[Record]:
    """Records of pictures of several sizes and kinds, all different."""
    folder.mkdir(exist_ok=True)
    generator, records = np.random.default_rng(0), []
    for i in range(count):
        path = folder / f"{i}.{('png', 'jpg', 'webp')[i % 3]}"
        Image.fromarray(generator.integers(0, 256, (60 + 7 * i, 90 + i, 3), np.uint8)).save(path)
        records.append(Record(path.name, path, f"picture {i}"))
    return records


def counted(clip: VisionTextCLIP, monkeypatch) -> list[int]:
    """The sizes of the batches that the model sees from now on."""
    sizes, tokens = [], clip.tokens
    monkeypatch.setattr(clip, "tokens", lambda images: sizes.append(len(images)) or tokens(images))
    return sizes


def test_every_picture_gets_the_tokens_that_the_model_gives_it_alone(table, tmp_path):
    clip, records = VisionTextCLIP(table), pictures(tmp_path / "pictures", 10)
    store = token_store(clip)
    keyed, problems = extract_tokens(records, clip, store)
    assert [record.name for record, _ in keyed] == [record.name for record in records] and problems == []
    rows = store.rows([key for _, key in keyed])
    assert rows.shape == (10, 16, 48)
    for i, record in enumerate(records):
        alone = clip.tokens(clip.preprocess(load_image(record))[None])[0]
        assert np.allclose(rows[[i]][0], alone, atol=1e-5)


def test_what_is_in_the_store_is_neither_read_nor_computed_again(table, tmp_path, monkeypatch):
    clip, records = VisionTextCLIP(table), pictures(tmp_path / "pictures", 6)
    first, _ = extract_tokens(records, clip, token_store(clip))
    sizes = counted(clip, monkeypatch)
    monkeypatch.setattr(extract, "load_image", None)
    monkeypatch.setattr(image_keys, "_sha256", None)
    again, problems = extract_tokens(records, clip, token_store(clip))
    assert [key for _, key in again] == [key for _, key in first] and sizes == problems == []


def test_a_picture_that_changes_is_computed_again(table, tmp_path, monkeypatch):
    clip, records = VisionTextCLIP(table), pictures(tmp_path / "pictures", 3)
    before, _ = extract_tokens(records, clip, token_store(clip))
    Image.new("RGB", (70, 70), "red").save(records[1].image)
    sizes = counted(clip, monkeypatch)
    after, _ = extract_tokens(records, clip, token_store(clip))
    assert [old == new for (_, old), (_, new) in zip(before, after)] == [True, False, True] and sizes == [1]


def test_the_same_picture_under_many_names_is_computed_once(table, tmp_path, monkeypatch):
    clip, (record,) = VisionTextCLIP(table), pictures(tmp_path / "pictures", 1)
    copies = [Record(f"copy {i}", shutil.copy(record.image, tmp_path / f"{i}.png"), "") for i in range(9)]
    sizes = counted(clip, monkeypatch)
    keyed, _ = extract_tokens([record, *copies], clip, store := token_store(clip))
    assert len(keyed) == 10 and len({key for _, key in keyed}) == len(store) == 1 and sizes == [1]


def test_broken_pictures_are_problems_and_the_others_go_on(table, tmp_path):
    clip, records = VisionTextCLIP(table), pictures(tmp_path / "pictures", 9)
    records[1].image.write_bytes(records[1].image.read_bytes()[:-300])
    records[2].image.write_bytes(b"")
    records[3].image.write_bytes(b"a text called .jpg")
    records[4].image.unlink()
    records[5].image.unlink()
    records[5].image.mkdir()
    Image.new("RGB", (1, 4000)).save(records[6].image)
    records[7].image.unlink()
    os.mkfifo(records[7].image)
    keyed, problems = extract_tokens(records, clip, store := token_store(clip))
    assert [record.name for record, _ in keyed] == [records[0].name, records[8].name] and len(store) == 2
    assert [problem.name for problem in problems] == [record.name for record in records[1:8]]
    kinds = ["unreadable_image"] * 3 + ["missing_image"] * 2 + ["unreadable_image", "missing_image"]
    assert [problem.kind for problem in problems] == kinds and "1 x 4000" in problems[5].message


def test_a_run_that_is_ended_keeps_what_it_computed_and_the_next_one_does_the_rest(table, tmp_path, monkeypatch):
    clip, records = VisionTextCLIP(table), pictures(tmp_path / "pictures", 11)
    sizes, calls = counted(clip, monkeypatch), iter(range(100))

    def end_at_the_seventh():
        if next(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_tokens(records, clip, token_store(clip), check=end_at_the_seventh)
    assert sizes == [4] and len(token_store(clip)) == 4
    keyed, _ = extract_tokens(records, clip, store := token_store(clip))
    assert sizes == [4, 4, 3] and len(keyed) == len(store) == 11


def test_ranks_share_the_pictures_and_the_captions(table, tmp_path):
    clip, records = VisionTextCLIP(table), pictures(tmp_path / "pictures", 7)
    alone, _ = extract_tokens(records, clip, token_store(clip))
    other = VisionTextCLIP(replace(table, cache=tmp_path / "other"))
    shared = [extract_tokens(records, other, token_store(other), rank, 3)[0] for rank in range(3)]
    assert [[record.name for record, _ in part] for part in shared] == [[record.name for record in records[rank::3]] for rank in range(3)]
    together = {record.name: key for part in shared for record, key in part}
    assert together == {record.name: key for record, key in alone} and sorted(token_store(other).keys()) == sorted(together.values())
    assert [extract_texts(TEXTS, other, text_store(other), rank, 2) for rank in range(2)] == [extract_texts(TEXTS, clip, text_store(clip))] * 2
    assert sorted(text_store(other).keys()) == sorted(text_store(clip).keys())


def test_another_space_type_precision_or_clip_is_another_key_in_another_folder(table, tmp_path):
    records = pictures(tmp_path / "pictures", 1)
    other = write_tiny_clip(tmp_path / "other", seed=1)
    choices = [(table, None), (table, torch.bfloat16), (replace(table, space="raw"), None), (replace(table, dtype="float16"), None)]
    found = set()
    for choice, autocast in [*choices, (replace(table, model=other), None)]:
        clip = VisionTextCLIP(choice, autocast=autocast)
        ((_, key),), _ = extract_tokens(records, clip, token_store(clip))
        found.add(key)
    assert len(found) == 5 and len(list(table.cache.iterdir())) == 4  # precision is of the key only


def test_captions_are_embedded_once_each(table, monkeypatch):
    clip = VisionTextCLIP(table)
    expected, seen = clip.texts(TEXTS), []
    texts = clip.texts
    monkeypatch.setattr(clip, "texts", lambda batch: seen.extend(batch) or texts(batch))
    keys = extract_texts(TEXTS + TEXTS[:2], clip, store := text_store(clip))
    assert list(keys) == seen == TEXTS
    assert np.allclose(store.rows([keys[text] for text in TEXTS])[:], expected, atol=1e-5)
    assert extract_texts([*TEXTS, "one more"], clip, text_store(clip)).keys() == {*TEXTS, "one more"} and seen == [*TEXTS, "one more"]


def test_a_line_cut_off_in_the_list_of_hashes_costs_that_picture_only(table, tmp_path, monkeypatch):
    clip, records = VisionTextCLIP(table), pictures(tmp_path / "pictures", 3)
    first, _ = extract_tokens(records, clip, store := token_store(clip))
    path = store.folder / "images-0.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    read, sha256 = [], image_keys._sha256
    monkeypatch.setattr(image_keys, "_sha256", lambda image: read.append(image) or sha256(image))
    for expected in (1, 1):  # the second run finds the line that the first one has written behind the cut
        again, _ = extract_tokens(records, clip, token_store(clip))
        assert len(read) == expected and again == first
