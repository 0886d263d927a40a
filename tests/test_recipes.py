"""Recipes: what is wrong is told in one line, what is right is kept, and all shipped ones run."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest

from testbed.sample_data import write_folder, write_humanart, write_humansd
from testbed.tiny_base import write_tiny_base, write_tiny_knowledge_base
from testbed.tiny_clip import write_tiny_clip
from testbed.training import listing, metrics, product, run, small_run, start, write_tokens
from train.__main__ import COMMANDS, TABLES, main, table
from train.adapter.commands import AdapterCommand
from train.data.commands import ValidateDataCommand
from train.knowledge.commands import ClassifierCommand, CodebookCommand, KnowledgeBaseCommand
from train.mini.build import BuildCommand, MiniAdapterCommand
from train.run.recipe import RESOLVED, RecipeError, parse_recipe, refuse_other_recipe, resolved, save_resolved

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = sorted((Path(__file__).parent.parent / "train/recipes").glob("*.toml"))
KINDS = (KnowledgeBaseCommand, CodebookCommand, ClassifierCommand, ValidateDataCommand, AdapterCommand)
OF_THE_MINIATURE = (MiniAdapterCommand, BuildCommand)
PICTURES = 80  # of 16 tokens: enough for 1,024 entries, with 5 % of the pictures held out


def parsed(*arguments: object, kind: type = KnowledgeBaseCommand):
    return parse_recipe(kind, [str(argument) for argument in arguments], table, "train", "")


def recipe_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "own.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fields_of(kind: type) -> dict[str, type]:
    return {field.name: field.type for field in dataclasses.fields(kind)}


WRONG = {
    "unknown key": ("[codebook]\nentires = 5", "codebook.entires: there is no such key"),
    "unknown key in a table of another command": ("[run]\nsead = 5", "run.sead: there is no such key"),
    "unknown key outside of tables": ("outptu = 'x'", "outptu: there is no such key"),
    "unknown table": ("[codebok]\nentries = 5", "codebok: there is no such key"),
    "table instead of a value": ("[codebook.entries]\nx = 5", "codebook.entries: "),
    "value instead of a table": ("codebook = 5", "codebook: "),
    "text instead of a number": ("[codebook]\nentries = 'many'", "codebook.entries: "),
    "fraction instead of a whole number": ("[codebook]\nentries = 64.5", "codebook.entries: "),
    "list instead of a number": ("[codebook]\nentries = [64]", "codebook.entries: "),
    "text instead of a switch": ("[run]\nresume = 'perhaps'", "run.resume: "),
    "value below its range": ("[codebook]\nentries = 1", "(found 1)"),
    "value above its range": ("[data]\nheld_out = 1.5", "(found 1.5)"),
    "value that is none of the choices": ("[data]\nformat = 'zip'", "data.format: Input should be 'folder', 'coco' or 'humansd' (found 'zip')"),
    "range that the table checks itself": ("[clip]\nbatch = 0", "batch is 0"),
    "dry run in a recipe": ("dry_run = true", "'dry_run' belongs on the command line"),
    "config in a recipe": ("config = 'x.toml'", "'config' belongs on the command line"),
    "no TOML": ("[codebook\nentries = 5", "is not a readable TOML file"),
    "key twice": ("[codebook]\nentries = 5\nentries = 6", "is not a readable TOML file"),
    "no UTF-8": (b"output = '\xff'", "is not a readable TOML file"),
    "NUL": (b"\x00" * 100, "is not a readable TOML file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_told_in_one_line_that_names_it(tmp_path, capfd, case):
    text, words = WRONG[case]
    path = recipe_file(tmp_path, text)
    assert main(["knowledge-base", "--config", str(path)]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("train knowledge-base: ") and str(path) in said.err and words in said.err
    assert [each.name for each in tmp_path.iterdir()] == ["own.toml"]


@pytest.mark.parametrize("name", ["absent.toml", "", "."])
def test_a_recipe_that_is_no_file_is_told_in_one_line(tmp_path, capfd, name):
    assert main(["codebook", f"--config={tmp_path / name}"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path) in said


@pytest.mark.parametrize("option", [["--codebook.entries", "1"], ["--data.held-out", "-0.1"], ["--run.keep=0"]])
def test_a_value_out_of_range_on_the_command_line_is_told_in_one_line(capfd, option):
    assert main(["knowledge-base", *option]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "the command line" in said


@pytest.mark.parametrize("option", [["--codebook.entires", "5"], ["--codebook.entries", "many"], ["--config"], ["--data.format", "zip"]])
def test_an_option_that_does_not_exist_ends_with_status_2(capfd, option):
    with pytest.raises(SystemExit) as stop:
        main(["knowledge-base", *option])
    assert stop.value.code == 2 and "Traceback" not in capfd.readouterr().err


def test_an_unknown_command_lists_those_that_exist(capfd):
    assert main(["knowlege-base"]) == 2
    said = capfd.readouterr().err
    assert all(command in said for command in COMMANDS)


def test_the_command_line_overrules_the_recipe_which_overrules_the_defaults(tmp_path):
    text = "output = 'a.safetensors'\n[codebook]\nentries = 64\nepochs = 5\n[run]\nresume = false\n[data]\nannotations = ['x', 'y']"
    path = recipe_file(tmp_path, text)
    found = parsed("--codebook.entries", 128, "--config", path, "--run.resume")
    assert (found.codebook.entries, found.codebook.epochs, found.codebook.batch_tokens) == (128, 5, 4096)
    assert (found.output, found.run.resume, found.run.seed) == (Path("a.safetensors"), True, 0)
    assert found.data.annotations == (Path("x"), Path("y"))
    assert parsed("--config", path, "--data.annotations", "z").data.annotations == (Path("z"),)
    assert parsed("--config", path, "--output", "b.safetensors").output == Path("b.safetensors")


def test_a_recipe_serves_every_command_and_is_checked_in_full(tmp_path):
    path = recipe_file(tmp_path, "output = 'x'\n[codebook]\nentries = 64\n[classifier]\nepochs = 5\n[data]\nroot = 'pictures'\n[run]\nseed = 3")
    for kind in KINDS:
        found = parsed("--config", path, kind=kind)
        assert found.data.root == Path("pictures")
        assert not hasattr(found, "run") or found.run.seed == 3
    path = recipe_file(tmp_path, "[classifier]\nepocs = 5")
    for kind in KINDS:
        with pytest.raises(RecipeError, match="epocs: there is no such key"):
            parsed("--config", path, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_lies_in_its_own_range(tmp_path, kind):
    path = recipe_file(tmp_path, "")
    assert parsed("--config", path, kind=kind) == dataclasses.replace(parsed(kind=kind), config=path)


def test_the_resolved_recipe_loads_as_the_same_recipe(tmp_path):
    options = ["--data.root", "my pictures", "--data.annotations", "a", "b", "--codebook.learning-rate", 3e-7, "--run.folder", 'x"y']
    recipe = parsed(
        *options, "--clip.pretrained=", "--run.seed", 2**40, "--run.no-tensorboard", "--run.precision", "bf16", "--classifier.kind", "mlp"
    )
    save_resolved(recipe, tmp_path)
    again = parsed("--config", tmp_path / RESOLVED)
    assert dataclasses.replace(again, config=None) == recipe
    assert resolved(again) == resolved(recipe)
    own = {field.name for field in dataclasses.fields(recipe)}
    assert {key for key in tomllib.loads((tmp_path / RESOLVED).read_text()) if key in TABLES} == TABLES.keys() & own


def test_going_on_under_another_recipe_is_refused_and_the_difference_named(tmp_path):
    save_resolved(parsed("--codebook.entries", 64), tmp_path)
    with pytest.raises(RecipeError, match=r"codebook\.entries was 64, now 65; data\.root was None, now 'x'\. Choose another --run\.folder"):
        refuse_other_recipe(parsed("--codebook.entries", 65, "--data.root", "x"), tmp_path)
    refuse_other_recipe(parsed("--codebook.entries", 64, "--run.log-every", 3, "--run.device", "cpu"), tmp_path)
    with pytest.raises(RecipeError, match=r"run\.seed was 0, now 9"):
        refuse_other_recipe(parsed("--codebook.entries", 64, "--run.seed", 9), tmp_path)
    refuse_other_recipe(parsed("--codebook.entries", 65, "--run.no-resume"), tmp_path)
    refuse_other_recipe(parsed("--codebook.entries", 65), tmp_path / "another")


def test_a_saved_recipe_that_is_damaged_is_told(tmp_path):
    (tmp_path / RESOLVED).write_text("[codebook")
    with pytest.raises(RecipeError, match="is not a readable TOML file"):
        refuse_other_recipe(parsed(), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="commands are forked")
def test_a_run_goes_on_or_starts_anew_as_the_recipe_says(tmp_path):
    features = write_tokens(tmp_path / "tokens.npy", 2000)
    command = ["codebook", "--features", features, "--entries", 16, "--output", tmp_path / "c.safetensors", "--run.no-tensorboard"]
    command += ["--run.device", "cpu"]
    log, folder = tmp_path / "log", tmp_path / "c.run"
    run(command, log)
    first, lines = product(tmp_path / "c.safetensors"), metrics(folder)
    refused = start([*command, "--learning-rate", 0.1], log)
    assert refused.status() == 2 and "codebook.learning_rate was 0.001, now 0.1" in refused.said and refused.said.count("\n") == 1
    assert metrics(folder) == lines
    assert "going on from step" in run([*command, "--run.keep", 1], log)
    said = run([*command, "--learning-rate", 0.1, "--run.no-resume"], log)
    assert "going on from step" not in said
    again = product(tmp_path / "c.safetensors")
    assert again["training"]["recipe"]["learning_rate"] == 0.1 and first["training"]["recipe"]["learning_rate"] == 0.001
    stages = [(line["stage"], line["step"]) for line in metrics(folder)]
    assert len(set(stages)) == len(stages)


def test_starting_anew_forgets_all_stages_at_once(tmp_path):
    """Else a run of another recipe, stopped in its first stage, would go on from the old checkpoints of the second."""
    for stage in ("first", "second"):
        (tmp_path / stage).mkdir(parents=True)
        (tmp_path / stage / "step-000000005.safetensors").write_bytes(b"of the old recipe")
    (tmp_path / "metrics.jsonl").write_text('{"stage": "second", "step": 5}\n')
    (tmp_path / "mine.txt").write_text("to be kept")
    before = listing(tmp_path)
    for changes in ({"resume": True}, {"resume": False, "dry": True}):
        with small_run(tmp_path, **changes) as run:
            run.begin()
        assert set(listing(tmp_path)) >= set(before)
    with small_run(tmp_path, resume=False) as run:
        assert set(listing(tmp_path)) >= set(before), "the inputs may yet be found wrong"
        run.begin()
    assert sorted(listing(tmp_path)) == ["first", "mine.txt", "second"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Small data in every format: the arguments that put it into a recipe, by [data] format."""
    root = tmp_path_factory.mktemp("samples")
    clip = write_tiny_clip(root / "clip")
    common = ["--clip.model", clip, "--clip.pretrained=", "--clip.workers", 1, "--run.device", "cpu"]
    return {
        "folder": [*common, "--data.root", write_folder(root / "folder", PICTURES)],
        "coco": [*common, "--data.annotations", write_humanart(root / "coco", PICTURES), "--data.root", root / "coco"],
        "humansd": [*common, "--data.annotations", write_humansd(root / "humansd", PICTURES), "--data.root", root / "humansd"],
    }


def test_recipes_are_shipped():
    assert {"own_images.toml", "human_art.toml", "humansd.toml", "paper.toml", "12gb.toml", "mini.toml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_for_every_command_that_it_serves(path):
    text = path.read_text()
    for kind in (*KINDS, *OF_THE_MINIATURE):
        parsed("--config", path, kind=kind)
    for named in re.findall(r"-m train ((?:mini )?\S+) --config (\S+)", text):
        assert named[0] in COMMANDS and named[1] in [f"train/recipes/{shipped.name}" for shipped in SHIPPED]
    assert text.startswith("# ") and tomllib.loads(text).keys() - TABLES.keys() <= {"output"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.skipif(os.name == "nt", reason="commands are forked")
def test_a_shipped_recipe_dry_runs_and_writes_nothing(tmp_path, samples, path):
    recipe = parsed("--config", path)
    data = samples[recipe.data.format]
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "PWD")}
    for folder in places.values():
        folder.mkdir()
    root = Path(data[data.index("--data.root") + 1])
    before = listing(tmp_path), listing(root), listing(path.parent)
    environment = {name: str(folder) for name, folder in places.items()}
    log = tmp_path.parent / f"{path.stem}.log"
    said = run(["knowledge-base", "--config", path, *data, "--dry-run"], log, folder=places["PWD"], **environment)
    assert (listing(tmp_path), listing(root), listing(path.parent)) == before
    stages = (["kmeans"] if recipe.codebook.init == "kmeans" else []) + ["codebook", "classifier"]
    for stage in stages:
        assert re.search(rf"{stage}: one step took .* steps take about .* of RAM", said), said
    assert f"{PICTURES} pictures" in said


@pytest.mark.parametrize("path", [path for path in SHIPPED if "[adapter]" in path.read_text()], ids=lambda path: path.stem)
@pytest.mark.skipif(os.name == "nt", reason="commands are forked")
def test_a_shipped_recipe_for_the_adapter_dry_runs_on_a_small_base(tmp_path, samples, path):
    """Its own widths, optimiser, precision and augmentation on small random weights; only the pictures are smaller."""
    recipe = parsed("--config", path, kind=AdapterCommand)
    base, knowledge_base = write_tiny_base(tmp_path / "base.safetensors"), write_tiny_knowledge_base(tmp_path / "kb.safetensors")
    data = [argument for argument in samples[recipe.data.format] if not str(argument).startswith("--clip")]
    data = data[data.index("--run.device") :]
    files = ["--base.checkpoint", base, "--base.text-encoder=", "--knowledge-base", knowledge_base, "--output", tmp_path / "out.safetensors"]
    said = run(["adapter", "--config", path, *data, *files, "--examples.resolution", 64, "--batch", 2, "--dry-run"], tmp_path / "log")
    assert re.search(r"adapter: one step took .* steps take about .* of RAM", said), said
    assert {each.name for each in tmp_path.iterdir()} == {"base.safetensors", "kb.safetensors", "log"}
