"""A knowledge base trained by the commands: better than both baselines, whole on disk, and the same in the host's KB Text Query."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch

from testbed.host import import_host

import_host()

from kbdm_core.errors import KBDMError  # noqa: E402
from kbdm_core.knowledge_base import load_knowledge_base  # noqa: E402
from testbed.host_clip import host_clip  # noqa: E402
from testbed.pack import PACKAGE, load_node_module  # noqa: E402
from testbed.scenes import write_scenes  # noqa: E402
from testbed.tiny_clip import write_tiny_clip  # noqa: E402
from train.__main__ import main  # noqa: E402
from train.base.text_tower import clip_l_layout  # noqa: E402
from train.inspection import describe  # noqa: E402

SCENES = 800


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Scenes and a tiny CLIP; features are computed once."""
    folder = tmp_path_factory.mktemp("knowledge")
    write_scenes(folder / "pictures", SCENES)
    write_tiny_clip(folder / "clip")
    return folder


def arguments(place, command: str, output: str, *more: str) -> list[str]:
    clip = (f"--clip.model=local-dir:{place / 'clip'}", "--clip.pretrained=", f"--clip.cache={place / 'cache'}")
    data = (f"--data.root={place / 'pictures'}", f"--output={place / output}", "--run.no-tensorboard")
    return [command, *data, *clip, *more]


@pytest.fixture(scope="module")
def trained(place):
    """The knowledge base of the default settings, but for 64 entries."""
    assert main(arguments(place, "knowledge-base", "scenes.safetensors", "--codebook.entries=64")) == 0
    return place / "scenes.safetensors"


def held_out(path) -> dict[str, dict[str, float]]:
    return describe(path)["training"]["classifier"]["held_out"]


def test_held_out_tokens_are_retrieved_better_than_by_both_baselines(trained):
    figures = held_out(trained)
    print(json.dumps(figures))
    assert figures["classifier"]["mse"] < 0.8 * figures["nearest_caption"]["mse"]
    assert figures["classifier"]["mse"] < 0.5 * figures["most_frequent"]["mse"]
    assert figures["classifier"]["top1"] > figures["nearest_caption"]["top1"] > figures["most_frequent"]["top1"]


def test_the_reported_figures_are_those_of_the_file(trained, place):
    """Held-out accuracy and MSE, computed again from pictures and captions by OpenCLIP's own calls and the file alone."""
    from train.data.records import DataTable
    from train.features.table import ClipTable
    from train.knowledge.pictures import read_pictures
    from train.run.loop import Run, RunTable

    base = load_knowledge_base(trained)
    table = ClipTable(f"local-dir:{place / 'clip'}", "", cache=place / "cache")
    with Run(RunTable(tensorboard=False), place / "again") as run:
        pictures = read_pictures(run, DataTable(place / "pictures"), table, with_phrases=False)
    records = sorted((place / "pictures").glob("*.png"))
    right, error, count = 0, 0.0, 0
    model, tokenise = open_clip.create_model(table.model).eval(), open_clip.get_tokenizer(table.model)
    for item in pictures.held_out.tolist():
        caption = records[item].with_suffix(".txt").read_text()
        with torch.no_grad():
            z_t = model.encode_text(tokenise([caption]))
            answer = base.query(z_t)
        z_e = torch.from_numpy(pictures.rows[np.array([item])])[0].float()
        truth = torch.cdist(z_e, base.codebook).argmin(-1)
        right += int((answer.indices[0] == truth).sum())
        error += float((answer.fused[0] - z_e).square().mean(-1).sum())
        count += len(truth)
    figures = held_out(trained)["classifier"]
    assert right / count == pytest.approx(figures["top1"], abs=2e-3)
    assert error / count == pytest.approx(figures["mse"], rel=5e-3)


def test_the_literal_mlp_and_a_codebook_of_its_own_file_make_a_knowledge_base_too(trained, place, capsys):
    assert main(arguments(place, "codebook", "alone.safetensors", "--entries=64")) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["used"] == 64 and line["mse"] > 0 and line["seconds"] > 0
    more = (f"--codebook-file={place / 'alone.safetensors'}", "--kind=mlp")
    assert main(arguments(place, "classifier", "mlp.safetensors", *more)) == 0
    base, other = load_knowledge_base(place / "mlp.safetensors"), load_knowledge_base(trained)
    assert base.classifier.kind == "mlp"
    assert base.codebook_sha256 == other.codebook_sha256, "the same seed and data give the same codebook, alone or in one run"
    assert held_out(place / "mlp.safetensors")["classifier"]["mse"] < held_out(trained)["nearest_caption"]["mse"]


def test_a_knowledge_bases_codebook_can_be_kept_for_a_new_classifier(trained, place):
    more = (f"--codebook-file={trained}", "--least-steps=10", "--epochs=1")
    assert main(arguments(place, "classifier", "kept.safetensors", *more)) == 0
    assert load_knowledge_base(place / "kept.safetensors").codebook_sha256 == load_knowledge_base(trained).codebook_sha256


def test_a_run_is_not_gone_on_with_on_other_data(trained, place, tmp_path, capsys):
    pictures = shutil.copytree(place / "pictures", tmp_path / "pictures")
    more = (f"--output={tmp_path / 'kb.safetensors'}", f"--data.root={pictures}", "--codebook.entries=64", "--classifier.least-steps=5")
    assert main(arguments(place, "knowledge-base", "unused", *more)) == 0
    (pictures / "00000.txt").write_text("another caption")
    assert main(arguments(place, "knowledge-base", "unused", *more)) == 2
    assert "other data (pictures, captions or features have changed since)" in capsys.readouterr().err
    assert main(arguments(place, "knowledge-base", "unused", *more, "--run.no-resume")) == 0


def test_running_the_same_command_again_changes_nothing_and_trains_nothing(trained, place, capsys):
    before = trained.read_bytes()
    assert main(arguments(place, "knowledge-base", "scenes.safetensors", "--codebook.entries=64")) == 0
    assert "going on from step 2000 of 2000" in capsys.readouterr().err
    again, first = load_knowledge_base(trained), before
    trained.write_bytes(first)
    assert again.codebook_sha256 == load_knowledge_base(trained).codebook_sha256


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("codebook", ("--entries=100000",), " tokens cannot fill a codebook of 100000 entries"),
        ("codebook", ("--features=no.npy",), "no.npy cannot be read as a .npy file of tokens"),
        ("classifier", (), "--codebook-file"),
        ("classifier", ("--codebook-file=no.safetensors",), "no such file"),
        ("knowledge-base", ("--data.root=nowhere",), "data.root is nowhere; expected the folder of the pictures"),
        ("knowledge-base", ("--clip.model=ViT-Q-99",), "CLIP 'ViT-Q-99' cannot be loaded"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(place, capsys, command, more, message):
    assert main(arguments(place, command, "wrong.safetensors", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"train {command}: ") and message in error
    assert not (place / "wrong.safetensors").exists() and not (place / "wrong.run" / "recipe.toml").exists()


def test_a_codebook_of_another_clip_is_refused(place, capsys):
    write_tiny_clip(place / "other", seed=1)
    if not (place / "alone.safetensors").exists():
        assert main(arguments(place, "codebook", "alone.safetensors", "--entries=64")) == 0
    more = (f"--codebook-file={place / 'alone.safetensors'}", f"--clip.model=local-dir:{place / 'other'}")
    assert main(arguments(place, "classifier", "wrong.safetensors", *more)) == 2
    assert "use the same [clip] for both stages" in capsys.readouterr().err


def test_pictures_that_cannot_be_used_are_listed_and_the_run_goes_on(place, tmp_path, capsys):
    pictures = shutil.copytree(place / "pictures", tmp_path / "pictures")
    for path in sorted(pictures.glob("*"))[200:]:
        path.unlink()
    (pictures / "00003.png").write_bytes(b"not a picture")
    (pictures / "00005.txt").write_text("  ")
    more = (f"--data.root={pictures}", "--codebook.entries=64", "--classifier.least-steps=20", "--classifier.epochs=1")
    assert main(arguments(place, "knowledge-base", "some.safetensors", *more)) == 0
    report = json.loads((place / "some.run" / "problems.json").read_text())
    assert {(each["kind"], each["name"]) for each in report["problems"]} >= {("unreadable_image", "00003.png"), ("empty_caption", "00005.png")}
    training = describe(place / "some.safetensors")["training"]
    assert training["pictures"] + training["held_out_pictures"] == report["usable"] == 98


@pytest.mark.slow
def test_the_hosts_kb_text_query_answers_as_the_trainers_clip_does(tmp_path):
    """With a text tower of SD1.5's real size: the trained file, loaded by the host's nodes, asked through the host's own text encoder."""
    write_scenes(tmp_path / "pictures", 24)
    name = write_tiny_clip(tmp_path / "clip", text_cfg={"width": 768, "heads": 12, "layers": 12})
    more = ("--codebook.entries=32", "--classifier.least-steps=150", "--classifier.phrase-share=0")
    assert main(arguments(tmp_path, "knowledge-base", "kb.safetensors", *more)) == 0

    model, tokenise = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    query, preview = load_node_module("text_query").KBDMTextQuery(), load_node_module("preview_tokens").KBDMPreviewTokens()
    core = importlib.import_module(f"{PACKAGE}.kbdm_core.knowledge_base")
    loaded = core.load_knowledge_base(tmp_path / "kb.safetensors")
    with torch.inference_mode():
        clip = host_clip(clip_l_layout(model))
        prompt = "a red disc on the left, (a blue disc:1.2) on the right, black sky 🎉"
        tokens, phrases = query.query(loaded, clip, prompt, "", "phrases", "mean", 0.0)
        expected = load_knowledge_base(tmp_path / "kb.safetensors").query(model.encode_text(tokenise(phrases.splitlines())))
        (picture,) = preview.preview(tokens)
    assert tokens.phrases == tuple(phrases.splitlines()) and len(tokens.phrases) >= 4
    assert torch.allclose(tokens.confidence, expected.confidence, atol=1e-4)
    sure = expected.confidence > 0.05  # where two entries are as good as equal, rounding decides
    assert torch.equal(tokens.indices[sure], expected.indices[sure]) and sure.any()
    assert picture.shape[0] == 1 and picture.isfinite().all()


def test_an_unusable_set_of_pictures_is_an_error(tmp_path):
    from train.data.records import DataTable
    from train.features.table import ClipTable
    from train.knowledge.pictures import read_pictures
    from train.run.loop import Run, RunTable

    name = write_tiny_clip(tmp_path / "clip")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "a.txt").write_text("a caption")
    with Run(RunTable(tensorboard=False), tmp_path / "run") as run, pytest.raises(KBDMError, match=r"none of the 1 pictures can be read.*a\.png"):
        read_pictures(run, DataTable(tmp_path / "pictures"), ClipTable(name, "", cache=tmp_path / "cache"), with_phrases=False)
