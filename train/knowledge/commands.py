"""The commands of stages 1 and 2: codebook, classifier, knowledge-base."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor
from tyro.conf import arg

from kbdm_core.errors import KBDMError, MismatchError
from kbdm_core.knowledge_base import KnowledgeBase, Source, save_knowledge_base
from kbdm_core.safetensors_file import tensor_sha256
from train.data.records import DataTable
from train.features.table import ClipTable
from train.knowledge.classifier import ClassifierTable, ClassifierTraining, entries_of, evaluate
from train.knowledge.codebook import CodebookTable, codebook_figures, refuse_too_few, train_codebook
from train.knowledge.codebook_file import CodebookFile, load_codebook, save_codebook
from train.knowledge.tokens import TokenRows, tokens_file
from train.run.loop import Run, RunTable
from train.run.recipe import Command
from train.run.start import begin, open_run

if TYPE_CHECKING:
    from train.knowledge.pictures import Pictures


@dataclass(frozen=True)
class CodebookCommand(Command):
    """Stage 1 alone: from tokens to a codebook. Prints one JSON line with mse, perplexity, used and seconds."""

    features: Path | None = None
    """Tokens as a .npy file, [N,C] or [pictures,N,C] in float16 or float32, instead of pictures."""
    output: Path = Path("codebook.safetensors")
    """The file to write."""
    codebook: Annotated[CodebookTable, arg(name="")] = CodebookTable()
    data: DataTable = DataTable()
    clip: ClipTable = ClipTable()
    run: RunTable = RunTable()


@dataclass(frozen=True)
class ClassifierCommand(Command):
    """Stage 2 alone: from a codebook, pictures and captions to a knowledge base."""

    codebook_file: Path | None = None
    """A codebook that `codebook` has written, or a knowledge base whose codebook is to be kept: adapters then still fit."""
    output: Path = Path("knowledge_base.safetensors")
    """The file to write; ComfyUI finds it in models/kbdm_knowledge_bases/."""
    classifier: Annotated[ClassifierTable, arg(name="")] = ClassifierTable()
    data: DataTable = DataTable()
    clip: ClipTable = ClipTable()
    run: RunTable = RunTable()


@dataclass(frozen=True)
class KnowledgeBaseCommand(Command):
    """Stages 1 and 2: from pictures and captions to a knowledge base."""

    output: Path = Path("knowledge_base.safetensors")
    """The file to write; ComfyUI finds it in models/kbdm_knowledge_bases/."""
    data: DataTable = DataTable()
    clip: ClipTable = ClipTable()
    codebook: CodebookTable = CodebookTable()
    classifier: ClassifierTable = ClassifierTable()
    run: RunTable = RunTable()


KnowledgeCommand = CodebookCommand | ClassifierCommand | KnowledgeBaseCommand


def codebook(recipe: CodebookCommand) -> None:
    """`python -m train codebook`."""
    start = time.monotonic()
    with open_run(recipe) as run:
        if recipe.features is not None:
            rows, clip = tokens_file(recipe.features), {}
        else:
            pictures = _pictures(run, recipe, with_phrases=False)
            rows, clip = pictures.train_rows, pictures.clip
        refuse_too_few(recipe.codebook, rows)
        begin(run, recipe)
        found, figures = _codebook(run, recipe.codebook, rows)
        if run.dry:
            return
        figures["seconds"] = round(time.monotonic() - start, 3)
        if run.is_main:
            save_codebook(recipe.output, CodebookFile(found, clip, {**figures, "recipe": asdict(recipe.codebook), "seed": recipe.run.seed}))
            print(json.dumps({**figures, "output": str(recipe.output)}))


def classifier(recipe: ClassifierCommand) -> None:
    """`python -m train classifier`."""
    if recipe.codebook_file is None:
        raise KBDMError("no codebook was given: name the file that `python -m train codebook` wrote with --codebook-file FILE.")
    start = time.monotonic()
    with open_run(recipe) as run:
        file = load_codebook(recipe.codebook_file)
        pictures = _pictures(run, recipe, recipe.classifier.phrase_share > 0)
        if any(file.clip.get(key, value) != value for key, value in pictures.clip.items()):
            raise MismatchError(
                f"{recipe.codebook_file.name} was trained on tokens of {_named(file.clip)}, but [clip] is {_named(pictures.clip)} with "
                "other weights or another space; use the same [clip] for both stages."
            )
        if file.codebook.shape[1] != pictures.rows.shape[2]:
            raise MismatchError(
                f"{recipe.codebook_file.name} has entries of width {file.codebook.shape[1]}, but {_named(pictures.clip)} gives tokens of "
                f"width {pictures.rows.shape[2]}."
            )
        begin(run, recipe)
        _finish(run, recipe, pictures, file.codebook, file.training, start)


def knowledge_base(recipe: KnowledgeBaseCommand) -> None:
    """`python -m train knowledge-base`."""
    start = time.monotonic()
    with open_run(recipe) as run:
        pictures = _pictures(run, recipe, recipe.classifier.phrase_share > 0)
        refuse_too_few(recipe.codebook, pictures.train_rows)
        begin(run, recipe)
        found, figures = _codebook(run, recipe.codebook, pictures.train_rows)
        _finish(run, recipe, pictures, found, {**figures, "recipe": asdict(recipe.codebook)}, start)


def _pictures(run: Run, recipe: KnowledgeCommand, with_phrases: bool) -> Pictures:
    from train.knowledge.pictures import read_pictures  # OpenCLIP imports slowly, and a features file needs none

    return read_pictures(run, recipe.data, recipe.clip, with_phrases)


def _named(clip: dict) -> str:
    return f"{clip.get('model')} ({clip.get('pretrained') or 'its own weights'}, {clip.get('space')})"


def _codebook(run: Run, table: CodebookTable, rows: TokenRows) -> tuple[Tensor, dict]:
    run.say(f"codebook: {rows.shape[0] * rows.shape[1]} tokens of width {rows.shape[2]} for {table.entries} entries")
    codebook = train_codebook(run, table, rows)
    figures = {} if run.dry else codebook_figures(run, rows, codebook)
    if figures:
        run.log("codebook_figures", 0, figures)
        run.say(f"codebook: mse {figures['mse']:.5f}, perplexity {figures['perplexity']:.0f}, {figures['used']} of {table.entries} entries used")
    return codebook, figures


def _finish(run: Run, recipe: ClassifierCommand | KnowledgeBaseCommand, pictures: Pictures, codebook: Tensor, stage1: dict, start: float) -> None:
    """Stage 2 on a codebook, the report, and the knowledge base."""
    items, tokens, _ = pictures.rows.shape
    a = torch.zeros(items, tokens, dtype=torch.int32) if run.dry else entries_of(run, pictures.rows, codebook)
    stage = ClassifierTraining(run, recipe.classifier, pictures.captions.only(pictures.train), a[pictures.train], len(codebook))
    run.train(stage)
    if run.dry:
        return
    head = stage.classifier
    retrieval = evaluate(run, head, pictures, a, codebook)
    for way, figures in retrieval.items():
        run.log(f"held_out_{way}", stage.steps, figures)
        run.say(f"held out, {way}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    summary = {
        "pictures": len(pictures.train),
        "held_out_pictures": len(pictures.held_out),
        "codebook": stage1,
        "classifier": {"steps": stage.steps, "recipe": asdict(recipe.classifier), "held_out": retrieval},
        "seed": recipe.run.seed,
        "seconds": round(time.monotonic() - start, 1),
    }
    if run.is_main:
        clip = pictures.clip
        source = Source(clip["model"], clip["pretrained"], clip["space"], summary)
        made = KnowledgeBase(codebook, head.cpu(), pictures.text_projection, pictures.grid, tensor_sha256(codebook), recipe.output.name, source)
        save_knowledge_base(recipe.output, made)
        print(json.dumps({"output": str(recipe.output), **summary}))
