"""The miniature's evaluation: columns are what they say, a stopped run goes on to the same figures, figures are those of the kept people."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from kbdm_core.adapter import SECTIONS, fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import AdapterInfo, load_adapter, save_adapter
from kbdm_core.keypoints import Pose, parse_pose_json
from kbdm_core.knowledge_base import fresh_knowledge_base, load_knowledge_base, save_knowledge_base
from kbdm_core.sd15 import BLOCKS
from testbed.random_weights import randomise
from testbed.tiny_base import TEXT_WIDTH, WIDTHS, write_tiny_base, write_tiny_knowledge_base
from testbed.tiny_clip import write_tiny_clip
from train.__main__ import main
from train.adapter.conditions import KBAnswers
from train.adapter.sampling import noise_of
from train.base.checkpoint import autoencoder_of, read_base, unet_of
from train.base.text import text_encoder
from train.host import GuidedUNet
from train.mini import evaluation, evaluation_command
from train.mini.estimator import PoseEstimator, load_estimator, save_estimator
from train.mini.evaluation import COLUMNS, ColumnDrawing, EvaluationTable, noise_seed, people_in, reconstructed
from train.mini.evaluation_report import markdown, summary
from train.mini.pose_score import PoseScore, pose_score
from train.mini.scenes import WorldTable, captions, drawn, poses
from train.mini.world.dataset import SPLITS
from train.run.signals import Interrupted

FIRST, SCENES, STEPS = SPLITS["held-out"].start, 4, 2
WORLD = WorldTable(first=FIRST, scenes=SCENES)
NAMES = [f"{column}-seed-{seed}" for column in ("base", "full") for seed in (0, 1)]
KEPT = ["true_pictures", "reconstructions", *NAMES]
TINY = {"kb_tokens": 16, "kb_width": 24, "pose_width": 32, "pose_stem": (8, 8, 16, 16)}


def write_adapter(path: Path, sections=SECTIONS, fresh: bool = False, seed: int = 0, codebook: str = "0" * 64, **sizes) -> Path:
    """An adapter whose ports all do something, or a fresh one, which is the identity."""
    adapter = fresh_adapter(sd15_sizes(sections=sections, **{"widths": WIDTHS, **TINY, **sizes}), seed=seed)
    if not fresh:
        randomise(adapter, seed)
        for block in BLOCKS if "kb" in sections else ():
            adapter.kb.block(block).scale.data.fill_(0.5)
        if "dm" in sections:
            adapter.dm.blend.data.fill_(0.7)
    save_adapter(path, adapter, AdapterInfo("small", "sd15-mini", codebook_sha256=codebook))
    return path


def write_estimator(path: Path) -> Path:
    """Random weights that see people in most pictures."""
    estimator = PoseEstimator((8, 8, 16, 16))
    randomise(estimator)
    estimator.people[-1].bias[:1] = 0.5
    save_estimator(path, estimator, {}, {"held_out": {"pck@0.2": 0.25}})
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of tiny models."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_base(folder / "checkpoint.safetensors")
    write_tiny_clip(folder / "clip")
    knowledge_base = load_knowledge_base(write_tiny_knowledge_base(folder / "knowledge_base.safetensors"))
    write_adapter(folder / "adapter.safetensors", codebook=knowledge_base.codebook_sha256)
    with torch.no_grad():
        write_estimator(folder / "estimator.safetensors")
    return folder


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(evaluation_command, "rendered", lambda table, check: drawn(table.first, table.scenes))
    monkeypatch.setattr(evaluation_command, "KB_CACHE", tmp_path_factory.mktemp("kb"))


def evaluate(files: Path, folder: Path, *options: str, **others: Path) -> int:
    """The command, on the tiny models or others."""
    named = {name: files / f"{name}.safetensors" for name in ("checkpoint", "knowledge_base", "adapter", "estimator")} | others
    given = [f"--{name.replace('_', '-')}-file={path}" for name, path in named.items()]
    small = [f"--scenes={SCENES}", f"--steps={STEPS}", "--seeds=2", "--batch=3", "--columns", "base", "full", "--run.device=cpu"]
    return main(["mini", "evaluate", *small, *given, f"--clip-folder={files / 'clip'}", f"--output={folder / 'evaluation.json'}", *options])


def drawing_of(files: Path, adapter: Path | None = None, **changes) -> ColumnDrawing:
    """What the command draws with."""
    base = read_base(files / "checkpoint.safetensors")
    text, said = text_encoder(base, f"local-dir:{files / 'clip'}"), captions(WORLD)
    answers = KBAnswers(load_knowledge_base(files / "knowledge_base.safetensors"), text, said, "phrases", evaluation_command.KB_CACHE)
    made_with = {name: name for name in ("checkpoint", "text", "adapter", "knowledge_base", "precision", "device")}
    loaded, _ = load_adapter(adapter or files / "adapter.safetensors")
    table = EvaluationTable(scenes=SCENES, steps=STEPS)
    made = ColumnDrawing(table, said, poses(WORLD), GuidedUNet(unet_of(base)), text, loaded, answers, made_with, nullcontext)
    return replace(made, **changes)


def counted(monkeypatch, stop_at: int | None = None) -> list[int]:
    """How many pictures each batch drawn from now on has. SIGTERM is taken to come while batch `stop_at` is drawn."""
    drawn_batches, draw = [], evaluation.draw_latents

    def counting(guided, drawing, *arguments, **options):
        if len(drawn_batches) == stop_at:
            raise Interrupted(15)
        drawn_batches.append(len(drawing.seeds))
        return draw(guided, drawing, *arguments, **options)

    monkeypatch.setattr(evaluation, "draw_latents", counting)
    return drawn_batches


def people_kept(folder: Path, name: str) -> list[Pose]:
    """The people of all scenes as our reader of COCO files takes them from a file of detections."""
    records = json.loads((folder / "evaluation.run/detections" / f"{name}.json").read_text())
    found = []
    for image in range(FIRST, FIRST + SCENES):
        own = [record for record in records if record["image_id"] == image]
        found += parse_pose_json(json.dumps(own), 128, 128) if own else [Pose((), 128, 128)]
    return found


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> Path:
    """The folder of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_command, "rendered", lambda table, check: drawn(table.first, table.scenes))
        patch.setattr(evaluation_command, "KB_CACHE", folder / "kb")
        assert evaluate(files, folder) == 0
    return folder


def test_the_figures_are_the_scores_of_the_people_kept(whole):
    figures, truth = json.loads((whole / "evaluation.json").read_text()), poses(WORLD)
    assert figures["sampling_seeds"] == [0, 1] and figures["first_scene"] == FIRST
    assert figures["estimator"]["own_error"] == {"held_out": {"pck@0.2": 0.25}}
    told = {"true_pictures": figures["true_pictures"], "reconstructions": figures["reconstructions"]}
    told |= {f"{column}-seed-{seed}": figures["columns"][column]["seeds"][seed] for column in ("base", "full") for seed in (0, 1)}
    assert told.keys() == set(KEPT)
    for name, score in told.items():
        assert score == pose_score(people_kept(whole, name), truth).as_dict() and score["pictures"] == SCENES
        assert any(pose.people for pose in people_kept(whole, name))
    assert figures["columns"]["base"]["seeds"][0] != figures["columns"]["full"]["seeds"][0]


def test_a_grid_shows_the_first_pictures(whole, files):
    autoencoder = autoencoder_of(read_base(files / "checkpoint.safetensors"))
    shown = {name: np.asarray(Image.open(whole / f"evaluation.run/pictures/{name}.png")) for name in KEPT}
    assert {picture.shape for picture in shown.values()} == {(132, 522, 3)}, "four pictures of 128 px with 2 px between them"
    cells = [slice(2 + 130 * number, 130 + 130 * number) for number in range(4)]
    for number, picture in enumerate(drawn(FIRST, 4)):
        assert np.array_equal(shown["true_pictures"][2:130, cells[number]], picture)
    assert np.array_equal(shown["reconstructions"][2:130, cells[3]], reconstructed(autoencoder, drawn(FIRST, 4))[3].numpy())


@pytest.mark.parametrize("stop_at", [1, 6])
def test_a_stopped_run_goes_on_to_what_it_would_have_been(whole, files, tmp_path, monkeypatch, capsys, stop_at):
    with monkeypatch.context() as patch:
        before = counted(patch, stop_at)
        assert evaluate(files, tmp_path) == 143
        assert "stopped by SIGTERM; run the same command again to go on" in capsys.readouterr().err
    after = counted(monkeypatch)
    assert evaluate(files, tmp_path) == 0
    assert before + after == [3, 1] * 4, "nothing is drawn twice"
    for name in ("evaluation.json", *(f"evaluation.run/detections/{name}.json" for name in KEPT)):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_only_what_has_changed_is_drawn_again(files, tmp_path, monkeypatch):
    assert evaluate(files, tmp_path, "--seeds=1") == 0
    again = counted(monkeypatch)
    assert evaluate(files, tmp_path, "--seeds=1", "--batch=4") == 0 and again == []
    codebook = load_knowledge_base(files / "knowledge_base.safetensors").codebook_sha256
    other = write_adapter(tmp_path / "other.safetensors", seed=5, codebook=codebook)
    assert evaluate(files, tmp_path, "--seeds=1", adapter=other) == 0 and again == [3, 1], "the column full"
    assert evaluate(files, tmp_path, "--seeds=2", adapter=other) == 0 and again == [3, 1] * 3, "both, from the second seed"
    assert evaluate(files, tmp_path, "--seeds=1", "--run.no-resume") == 0 and again == [3, 1] * 5


def test_keys_tell_pictures_apart_by_all_that_decides_them_and_by_nothing_else(files):
    drawing = drawing_of(files)
    keys = {(column, seed): drawing.keys(column, seed) for column in COLUMNS for seed in (0, 1)}
    assert len({key for own in keys.values() for key in own}) == len(COLUMNS) * 2 * SCENES

    def changed(**changes) -> set[str]:
        other = replace(drawing, **changes)
        return {column for column in COLUMNS if other.keys(column, 0)[1] != drawing.keys(column, 0)[1]}

    def table(**changes):
        return {"table": replace(drawing.table, **changes)}

    def made_with(name):
        return {"made_with": {**drawing.made_with, name: "another"}}

    every = set(COLUMNS)
    assert changed(**table(batch=1, seeds=9, columns=("kb",))) == set()
    assert changed(**table(steps=3)) == changed(**table(scale=3.0)) == every
    assert changed(**table(negative_strength=0.0)) == every - {"base"}
    assert all(changed(**made_with(name)) == every for name in ("checkpoint", "text", "precision", "device"))
    assert changed(**made_with("adapter")) == every - {"base"}
    assert changed(**made_with("knowledge_base")) == changed(**table(decompose="off")) == {"kb", "kb+dm", "full"}
    assert changed(captions=["another"] * SCENES) == changed(poses=drawing.poses[::-1]) == every


def plain_latents(files: Path, number: int, seed: int) -> torch.Tensor:
    """A picture of the base by diffusers alone: its own attention, one prompt at a time."""
    base = read_base(files / "checkpoint.safetensors")
    unet, text = unet_of(base), text_encoder(base, f"local-dir:{files / 'clip'}")
    states = [text.states(text.tokens([prompt])) for prompt in (captions(WORLD)[number], "")]
    plan = DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", timestep_spacing="leading", steps_offset=1, set_alpha_to_one=True, clip_sample=False
    )
    plan.set_timesteps(STEPS)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * (1 - plan.alphas_cumprod[plan.timesteps[0]]) ** 0.5
    with torch.no_grad():
        for t in plan.timesteps:
            asked, without = (unet(x, t, each).sample for each in states)
            x = plan.step(without + 7.5 * (asked - without), t, x).prev_sample
    return x


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def test_the_column_base_is_the_unguided_model(files):
    found = drawing_of(files, adapter=None).latents("base", 1, [2])
    assert close(found, plain_latents(files, 2, noise_seed(2, 1)))


def test_the_other_columns_have_the_sections_they_name(files, tmp_path):
    drawing = drawing_of(files)
    for column, sections in COLUMNS.items():
        guidance = drawing.guidance(column, [0, 1])
        on = [name for name, port in (("kb", guidance.kb), ("dm", guidance.mask), ("pose", guidance.pose)) if port is not None]
        assert tuple(on) == sections
    found = {column: drawing.latents(column, 0, [0]) for column in COLUMNS}
    assert all(not close(found[a], found[b]) for a in COLUMNS for b in COLUMNS if a < b)
    for_the_prompt = replace(drawing, table=replace(drawing.table, negative_strength=0.0))
    assert all(close(for_the_prompt.latents(column, 0, [0]), found[column]) == (column == "base") for column in COLUMNS)
    fresh = drawing_of(files, write_adapter(tmp_path / "fresh.safetensors", fresh=True))
    assert torch.equal(fresh.latents("full", 0, [0]), found["base"]), "a fresh adapter is the identity"


def test_noise_is_that_of_scene_and_seed_whatever_the_batch(files):
    drawing = drawing_of(files)
    together = drawing.latents("full", 1, range(SCENES))
    assert close(drawing.latents("full", 1, [2]), together[2:3]) and close(drawing.latents("full", 1, [3, 1]), together[[3, 1]])
    seeds = [noise_seed(number, seed) for number in (0, 1, 499, 999_999) for seed in (0, 1, 2)]
    noise = noise_of(seeds, (2, 2))
    assert len(set(seeds)) == len(noise.flatten(1).unique(dim=0)) == 12


def test_reconstructions_are_the_decoded_means(files):
    autoencoder, pictures = autoencoder_of(read_base(files / "checkpoint.safetensors")), drawn(FIRST, 2)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        y = autoencoder.decode(autoencoder.encode(x).latent_dist.mode()).sample
    expected = ((y / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    found = reconstructed(autoencoder, pictures)
    assert found.dtype == torch.uint8 and (found - expected).abs().max() < 1.01 and len(found.unique()) > 20


def test_people_are_those_of_the_estimator_to_a_thousandth(files):
    estimator, pictures = load_estimator(files / "estimator.safetensors"), drawn(FIRST, 2)
    exact = estimator.estimate(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1)
    for pose, other in zip(people_in(estimator, torch.from_numpy(pictures)), exact, strict=True):
        for person, known in zip(pose.people, other.people, strict=True):
            assert np.abs(person.body - known.body).max() < 0.0006 and np.array_equal(person.body, person.body.round(3))


def score(pck: float, people_error: float = 0.0) -> PoseScore:
    each = {0.2: pck, 0.1: pck / 2}
    return PoseScore(10, 120, each, each, {0.2: float("nan"), 0.1: float("nan")}, {0.2: {}, 0.1: {}}, people_error, 3.0)


def test_means_spreads_and_shares_are_over_seeds_and_of_reconstructions():
    figures = summary({"base": [score(0.2)], "full": [score(0.5, 1.0), score(0.6), score(0.7, 2.0)]}, score(0.9), score(0.8))
    full, base = figures["columns"]["full"], figures["columns"]["base"]
    assert (full["mean"]["pck@0.2"], full["spread"]["pck@0.2"], full["of_reconstructions"]["pck@0.2"]) == (0.6, 0.1, 0.75)
    assert (full["mean"]["pck@0.1"], full["spread"]["pck@0.1"], full["of_reconstructions"]["pck@0.1"]) == (0.3, 0.05, 0.75)
    assert (full["mean"]["people_error"], full["spread"]["people_error"]) == (1.0, 1.0)
    assert full["mean"]["pck@0.2_several_people"] is full["of_reconstructions"]["pck@0.2_several_people"] is None
    assert base["spread"]["pck@0.2"] is None and base["of_reconstructions"]["pck@0.2_one_person"] == 0.25 and len(full["seeds"]) == 3
    assert summary({"base": [score(0.0)]}, score(0.5), score(0.0))["columns"]["base"]["of_reconstructions"]["pck@0.2"] is None, "nothing to divide by"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(figures).splitlines()]
    assert {len(line) for line in lines} == {10} and [line[0] for line in lines[2:]] == ["true pictures", "reconstructions", "base", "full"]
    assert lines[3][1] == "0.800" and lines[3][-1] == "1" and lines[2][-1] == "1.125"
    assert lines[5][1] == "0.600 ± 0.100" and lines[5][3] == "–" and lines[5][-1] == "0.750"


def other_knowledge_base(files: Path, folder: Path) -> dict[str, Path]:
    path = folder / "other.safetensors"
    save_knowledge_base(path, fresh_knowledge_base(32, (4, 4), 24, TEXT_WIDTH, seed=7))
    return {"knowledge_base": path}


def adapter_of_other_sizes(files: Path, folder: Path) -> dict[str, Path]:
    codebook = load_knowledge_base(files / "knowledge_base.safetensors").codebook_sha256
    return {"adapter": write_adapter(folder / "other.safetensors", codebook=codebook, kb_tokens=9)}


def adapter_of_another_base(files: Path, folder: Path) -> dict[str, Path]:
    return {"adapter": write_adapter(folder / "other.safetensors", ("pose",), widths=(32, 64, 64, 64))}


REFUSED = {
    "another knowledge base": (other_knowledge_base, [], ["'adapter.safetensors' was trained with the knowledge base whose codebook", "'other.s"]),
    "another number of tokens": (adapter_of_other_sizes, [], ["reads 9 tokens of width 24", "are 16 of width 24"]),
    "another base": (adapter_of_another_base, [], ["was made for sd15-mini", "[32, 64, 96, 96]"]),
    "no such section": (
        lambda files, folder: {"adapter": write_adapter(folder / "other.safetensors", ("pose",))},
        ["--columns", "kb"],
        ["The column 'kb' needs the section kb", "has pose alone"],
    ),
    "no such file": (lambda files, folder: {"adapter": folder / "missing.safetensors"}, [], ["missing.safetensors: no such file"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_together_is_refused_before_anything_is_written(files, tmp_path, capsys, case):
    make: Callable[[Path, Path], dict[str, Path]] = REFUSED[case][0]
    _, options, words = REFUSED[case]
    assert evaluate(files, tmp_path / "run", *options, **make(files, tmp_path)) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and not (tmp_path / "run").exists()


def test_the_base_alone_needs_no_adapter_and_its_figures_no_seed_more(files, tmp_path, capsys):
    nothing = {"adapter": tmp_path / "none.safetensors", "knowledge_base": tmp_path / "none.safetensors"}
    assert evaluate(files, tmp_path, "--columns", "base", "--seeds=1", **nothing) == 0
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(figures["columns"]) == ["base"] and "adapter" not in figures["made_with"]
    said = capsys.readouterr().out
    assert "| base |" in said and json.loads(said.splitlines()[-1])["output"] == str(tmp_path / "evaluation.json")


def test_a_dry_run_tells_the_time_and_writes_nothing(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(files, tmp_path, "--dry-run", "--scenes=500") == 0
    said = capsys.readouterr().err
    assert "evaluation: one step of 3 pictures takes base" in said and "all take about" in said and not list(tmp_path.iterdir())
