"""Knowledge base: query and composition against literal loops, the file format, and files that are not what they say."""

from __future__ import annotations

import json
import pickle
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from kbdm_core import safetensors_file
from kbdm_core.classifier import CLASSIFIERS
from kbdm_core.errors import FileFormatError, KBDMError, MismatchError
from kbdm_core.knowledge_base import fresh_knowledge_base, load_knowledge_base, save_knowledge_base


def small(**changes):
    return fresh_knowledge_base(**{"entries": 20, "grid": (3, 4), "width": 8, "text_width": 6, "hidden": 5, **changes})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "people.safetensors"
    save_knowledge_base(path, small())
    return path


def rewrite(path, change_tensors=None, change_config=None, **metadata):
    """Write the file again with something changed, by the safetensors library itself."""
    file = safetensors_file.read(path, "kbdm.knowledge_base")
    tensors, config = dict(file.tensors), dict(file.config)
    if change_tensors:
        change_tensors(tensors)
    if change_config:
        change_config(config)
    save_file(tensors, path, metadata={**file.metadata, "config": json.dumps(config), **metadata})


def test_hard_query_takes_the_most_probable_entry_at_each_position():
    kb = small()
    z_t = torch.randn(3, 8)
    answer = kb.query(z_t)
    y = kb.classifier(z_t)
    assert answer.fused.shape == (1, 12, 8) and answer.indices.shape == answer.confidence.shape == (3, 12)
    for n in range(12):
        entries = [kb.codebook[y[p, n].argmax()] for p in range(3)]
        assert torch.allclose(answer.fused[0, n], torch.stack(entries).mean(0), atol=1e-6)
    assert torch.equal(answer.indices, y.argmax(-1))
    assert torch.allclose(answer.confidence, y.softmax(-1).amax(-1), atol=1e-6)


def test_confidence_weighs_phrases_per_position():
    kb = small()
    z_t = torch.randn(3, 8) * 3
    answer = kb.query(z_t, "confidence")
    for n in range(12):
        weights = answer.confidence[:, n] / answer.confidence[:, n].sum()
        expected = sum(weights[p] * kb.codebook[answer.indices[p, n]] for p in range(3))
        assert torch.allclose(answer.fused[0, n], expected, atol=1e-6)


@pytest.mark.parametrize("compose", ["mean", "confidence"])
def test_temperature_blends_entries_by_probability(compose):
    kb = small()
    z_t = torch.randn(3, 8)
    answer = kb.query(z_t, compose, temperature=0.7)
    blended = (kb.classifier(z_t) / 0.7).softmax(-1) @ kb.codebook  # [P, N, C]
    weights = answer.confidence / answer.confidence.sum(0) if compose == "confidence" else torch.full((3, 12), 1 / 3)
    assert torch.allclose(answer.fused[0], (weights[..., None] * blended).sum(0), atol=1e-6)


def test_a_temperature_near_zero_is_the_hard_query():
    kb = small()
    z_t = torch.randn(2, 8)
    assert torch.allclose(kb.query(z_t, temperature=1e-6).fused, kb.query(z_t).fused, atol=1e-5)


def test_the_same_phrase_twice_answers_like_once():
    kb = small()
    z_t = torch.randn(1, 8)
    for compose in ("mean", "confidence"):
        assert torch.allclose(kb.query(z_t.repeat(2, 1), compose).fused, kb.query(z_t).fused, atol=1e-6)


def test_unknown_composition_and_negative_temperature_are_errors():
    with pytest.raises(KBDMError, match="mean, confidence"):
        small().query(torch.randn(1, 8), "median")
    for temperature in (-1.0, float("nan")):
        with pytest.raises(KBDMError, match="temperature"):
            small().query(torch.randn(1, 8), temperature=temperature)


def test_text_of_another_width_names_both_widths_and_what_to_connect():
    kb = fresh_knowledge_base(entries=4, grid=(2, 2))
    assert torch.allclose(kb.project(torch.eye(768)), kb.text_projection)
    with pytest.raises(MismatchError, match=r"1280.*'fresh'.*ViT-L-14-quickgelu.*768.*SD1.5"):
        kb.project(torch.randn(1, 1280))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_round_trip_keeps_everything(tmp_path, kind):
    kb = small(classifier=CLASSIFIERS[kind])
    save_knowledge_base(tmp_path / "kb.safetensors", kb)
    loaded = load_knowledge_base(tmp_path / "kb.safetensors")
    z_t = torch.randn(2, 8)
    assert torch.equal(loaded.query(z_t).fused, kb.query(z_t).fused)
    assert torch.equal(loaded.text_projection, kb.text_projection)
    assert (loaded.grid, loaded.codebook_sha256, loaded.source.training) == (kb.grid, kb.codebook_sha256, kb.source.training)
    assert loaded.name == "kb.safetensors"
    assert isinstance(loaded.classifier, CLASSIFIERS[kind])
    assert not any(p.requires_grad for p in loaded.classifier.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_file_keeps_the_hash_and_is_computed_in_float32(tmp_path, dtype):
    kb = small()
    save_knowledge_base(tmp_path / "half.safetensors", kb, dtype)
    assert load_file(tmp_path / "half.safetensors")["codebook.weight"].dtype == dtype
    loaded = load_knowledge_base(tmp_path / "half.safetensors")
    assert loaded.codebook_sha256 == kb.codebook_sha256
    assert loaded.codebook.dtype == loaded.query(torch.randn(1, 8)).fused.dtype == torch.float32
    assert torch.allclose(loaded.codebook, kb.codebook, atol=0.02)


def test_the_raw_space_may_have_tokens_wider_than_its_text(tmp_path):
    kb = small()
    wide = type(kb)(torch.randn(20, 30), kb.classifier, kb.text_projection, kb.grid, "0" * 64, "wide")
    save_knowledge_base(tmp_path / "wide.safetensors", wide, torch.float16)
    loaded = load_knowledge_base(tmp_path / "wide.safetensors")
    assert loaded.query(loaded.project(torch.randn(2, 6))).fused.shape == (1, 12, 30)


def test_a_fresh_knowledge_base_depends_on_its_seed_only():
    before = torch.random.get_rng_state()
    assert small().codebook_sha256 == small().codebook_sha256 != small(seed=1).codebook_sha256
    assert torch.equal(small().classifier.output.weight, small().classifier.output.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_save_that_fails_leaves_the_old_file_and_no_other(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(safetensors_file.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_knowledge_base(path, small(seed=1))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


BROKEN_TENSORS = [
    (lambda t: t.pop("codebook.weight"), "codebook.weight"),
    (lambda t: t.pop("text_projection"), "text_projection"),
    (lambda t: t.pop("classifier.position"), "classifier.position"),
    (lambda t: t.update({"classifier.input.weight": torch.randn(5, 9)}), r"classifier.input.weight.*\[any, 8\].*\[5, 9\]"),
    (lambda t: t.update({"classifier.output.weight": torch.randn(19, 5)}), r"classifier.output.weight.*\[20, 5\].*\[19, 5\]"),
    (lambda t: t.update({"classifier.extra": torch.randn(1)}), "classifier.extra"),
    (lambda t: t.update({"codebook.weight": torch.randn(20)}), r"codebook.weight.*\[any, any\].*\[20\]"),
    (lambda t: t.update({"codebook.weight": torch.zeros(0, 8)}), "codebook.weight.*at least one"),
    (lambda t: t.update({"codebook.weight": torch.zeros(20, 8, dtype=torch.int32)}), "codebook.weight.*float32.*int32"),
    (lambda t: t.update({"text_projection": torch.zeros(6, 8).to(torch.float8_e4m3fn)}), "text_projection.*float32.*float8"),
    (lambda t: t.update({"text_projection": torch.full((6, 8), torch.nan)}), "text_projection.*finite.*48 NaN"),
    (lambda t: t.update({"codebook.weight": t["codebook.weight"] + 1}), "codebook.weight.*SHA-256"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN_TENSORS)
def test_broken_tensors_are_named(path, change, message):
    rewrite(path, change_tensors=change)
    with pytest.raises(FileFormatError, match=f"(?s)people.safetensors.*{message}"):
        load_knowledge_base(path)


BROKEN_CONFIGS = [
    (lambda c: c.pop("grid"), "grid"),
    (lambda c: c.update(grid=[4, 4]), "classifier.position"),  # N is 12 in the tensors
    (lambda c: c.update(grid=[0, 4]), r"grid.*\[0, 4\]"),
    (lambda c: c.update(grid=[True, 12]), "grid"),
    (lambda c: c.update(grid="3x4"), "grid.*3x4"),
    (lambda c: c.pop("classifier"), "classifier"),
    (lambda c: c.update(classifier=None), "classifier.*JSON object"),
    (lambda c: c["classifier"].update(kind="forest"), "classifier.kind.*factorised.*mlp.*forest"),
    (lambda c: c["classifier"].update(kind=["mlp"]), "classifier.kind"),
    (lambda c: c["classifier"].update(kind="mlp"), "classifier.position"),
    (lambda c: c.update(clip_model=3), "clip_model.*text.*3"),
    (lambda c: c.update(training=[]), "training"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN_CONFIGS)
def test_broken_config_is_named(path, change, message):
    rewrite(path, change_config=change)
    with pytest.raises(FileFormatError, match=f"(?s)people.safetensors.*{message}"):
        load_knowledge_base(path)


@pytest.mark.parametrize("metadata", [{"codebook_sha256": "abc"}, {"format": "kbdm.adapter"}, {"format_version": "2"}, {"config": "{"}])
def test_broken_metadata_is_named(path, metadata):
    rewrite(path, **metadata)
    with pytest.raises(FileFormatError, match=next(iter(metadata))):
        load_knowledge_base(path)


def test_files_that_are_something_else_are_refused(tmp_path):
    contents = {
        "empty": b"",
        "text": b"not a model" * 10,
        "huge-header": struct.pack("<Q", 2**62) + b"{}",
        "long-header": struct.pack("<Q", 10_000) + b"{}",
        "pickle": pickle.dumps({"codebook.weight": [1.0]}),
        "no-metadata": struct.pack("<Q", 2) + b"{}",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=name):
            load_knowledge_base(path)
    torch.save({"codebook.weight": torch.zeros(2, 2)}, tmp_path / "torch.safetensors")
    for path in (tmp_path / "torch.safetensors", tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(FileFormatError):
            load_knowledge_base(path)


def test_every_truncation_is_refused(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            load_knowledge_base(path)


def test_a_hundred_random_corruptions_load_or_say_so(path):
    """A changed weight may pass as another weight; everything else is a FileFormatError, and no other exception ever."""
    whole = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 4, 64])):
            limit = generator.choice([8, struct.unpack("<Q", whole[:8])[0] + 8, len(whole)])
            damaged[generator.randrange(limit)] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            load_knowledge_base(path)
        except FileFormatError as error:
            refused += 1
            assert "people.safetensors" in str(error)
    assert refused >= 60
