"""The command that judges the miniature: python -m train mini evaluate."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
from tyro.conf import arg

from kbdm_core.adapter import KBDMAdapter
from kbdm_core.adapter_file import load_adapter
from kbdm_core.errors import KBDMError, MismatchError
from kbdm_core.knowledge_base import KnowledgeBase, load_knowledge_base
from train.adapter.commands import AUTOCAST, DTYPES, KB_CACHE
from train.adapter.conditions import KBAnswers
from train.base.checkpoint import BaseFile, autoencoder_of, read_base, unet_of
from train.base.text import LOCAL, text_encoder
from train.files import write_text
from train.host import GuidedUNet
from train.mini.commands import ASSETS
from train.mini.estimator import read_estimator
from train.mini.evaluation import COLUMNS, ColumnDrawing, EvaluationTable, reconstructed
from train.mini.evaluation_report import markdown, summary
from train.mini.judge import LATENTS, Judge, judged
from train.mini.scenes import WorldTable, captions, poses, rendered
from train.mini.world.dataset import SPLITS
from train.run.loop import Run, RunTable, duration
from train.run.recipe import Command, save_resolved

SPLIT = "held-out"


@dataclass(frozen=True)
class EvaluateCommand(Command):
    """Pose accuracy on held-out scenes, drawn with some of the adapter's sections on, column by column. Of [world] only cache and workers count."""

    output: Path = ASSETS / "evaluation.json"
    """The figures. What they come from stays in the run's folder: latents, people found (COCO results) and the first pictures."""
    checkpoint_file: Path = ASSETS / "checkpoint.safetensors"
    """UNet and autoencoder."""
    clip_folder: Path = ASSETS / "clip"
    """OpenCLIP folder with the text encoder."""
    knowledge_base_file: Path = ASSETS / "knowledge_bases/mini/knowledge_base.safetensors"
    """The knowledge base that the adapter was trained with."""
    adapter_file: Path = ASSETS / "adapters/mini/adapter.safetensors"
    """The adapter that is judged."""
    estimator_file: Path = ASSETS / "estimator.safetensors"
    """The estimator that judges, trained before any adapter."""
    evaluation: Annotated[EvaluationTable, arg(name="")] = EvaluationTable()
    world: WorldTable = WorldTable()
    run: RunTable = RunTable()


def evaluate(recipe: EvaluateCommand) -> None:
    """`python -m train mini evaluate`.

    Latents are kept by content: it goes on where it was stopped, and with other settings or files draws only the pictures that they change.
    """
    folder = recipe.run.folder or recipe.output.with_suffix(".run")
    table = replace(recipe.evaluation, columns=tuple(dict.fromkeys(recipe.evaluation.columns)))
    with Run(recipe.run, folder, recipe.dry_run) as run, TemporaryDirectory() as passing:
        if run.world > 1:
            raise KBDMError(f"mini evaluate was started in {run.world} processes; it runs in one: leave accelerate launch out.")
        if run.dry:
            table = replace(table, scenes=min(table.batch, table.scenes))
        file = read_base(recipe.checkpoint_file)
        estimator, of_estimator = read_estimator(recipe.estimator_file)
        autoencoder = autoencoder_of(file).to(run.device)
        held_out = replace(recipe.world, first=SPLITS[SPLIT].start, scenes=table.scenes)
        drawing = _drawing(recipe, run, table, file, held_out, Path(passing) if run.dry else KB_CACHE)
        if run.dry:
            return _try(run, drawing, recipe.evaluation.scenes)
        if not recipe.run.resume:
            shutil.rmtree(folder / LATENTS, ignore_errors=True)
        save_resolved(recipe, folder)
        pictures = rendered(held_out, run.signals.check)
        images = range(held_out.first, held_out.first + held_out.scenes)
        judge = Judge(estimator.to(run.device), drawing.poses, images, folder)
        true = judge.score("true_pictures", torch.from_numpy(np.array(pictures)))
        best = judge.score("reconstructions", reconstructed(autoencoder, pictures))
        seeds = range(recipe.run.seed, recipe.run.seed + table.seeds)
        columns = judged(run, drawing, autoencoder, judge, seeds)
        figures = {
            "split": SPLIT,
            "first_scene": held_out.first,
            "scenes": table.scenes,
            "sampling_seeds": list(seeds),
            "steps": table.steps,
            "scale": table.scale,
            "negative_strength": table.negative_strength,
            "made_with": dict(drawing.made_with),
            "estimator": {"sha256": _sha256(recipe.estimator_file), "own_error": of_estimator.get("judged", {})},
            **summary(columns, true, best),
        }
        write_text(recipe.output, json.dumps(figures, indent=1))
        print(markdown(figures))
        print(json.dumps({"output": str(recipe.output), "kept": str(folder)}))


def _drawing(recipe: EvaluateCommand, run: Run, table: EvaluationTable, file: BaseFile, held_out: WorldTable, cache: Path) -> ColumnDrawing:
    """All that the columns are drawn with. Raises MismatchError if the files do not belong together."""
    adapter, base_sha256, knowledge_base = _adapter(recipe, table.columns, file)
    text = text_encoder(file, f"{LOCAL}{recipe.clip_folder}")
    asked = captions(held_out)
    made_with = {"checkpoint": file.sha256, "text": text.fingerprint, "precision": recipe.run.precision, "device": run.device.type}
    answers = None
    if adapter is not None:
        adapter.to(run.device)
        made_with["adapter"] = _sha256(recipe.adapter_file)
        if base_sha256 not in ("", file.sha256):
            run.say(f"{recipe.adapter_file.name} was trained on another checkpoint than {file.path.name}: on that of SHA-256 {base_sha256[:12]}….")
    if knowledge_base is not None:
        answers = KBAnswers(knowledge_base, text, asked, table.decompose, cache, run.signals.check)
        made_with["knowledge_base"] = _sha256(recipe.knowledge_base_file)
    text.model.to(run.device)
    guided = GuidedUNet(unet_of(file).to(run.device, DTYPES[AUTOCAST[recipe.run.precision]]))
    return ColumnDrawing(table, asked, poses(held_out), guided, text, adapter, answers, made_with, run.accelerator.autocast)


def _adapter(recipe: EvaluateCommand, columns: tuple[str, ...], file: BaseFile) -> tuple[KBDMAdapter | None, str, KnowledgeBase | None]:
    """The adapter in float32, the hash of its base and its knowledge base, None where no column needs them. Raises MismatchError."""
    if not any(COLUMNS[column] for column in columns):
        return None, "", None
    adapter, info = load_adapter(recipe.adapter_file)
    sections, sizes = adapter.sections, adapter.sizes
    for column in columns:
        lacking = [name for name in COLUMNS[column] if name not in sections]
        if lacking and column != "full":
            raise MismatchError(
                f"The column '{column}' needs the section {lacking[0]}, but KB-DM Adapter '{info.name}' has {', '.join(sections)} alone. "
                "Leave the column out with --columns, or name another --adapter-file."
            )
    if sizes.widths and sizes.widths != file.widths:
        raise MismatchError(f"KB-DM Adapter '{info.name}' was made for {info.base}, but {file.path.name} has blocks of widths {list(file.widths)}.")
    if "kb" not in sections or not any("kb" in COLUMNS[column] for column in columns):
        return adapter.float(), info.base_sha256, None
    knowledge_base = load_knowledge_base(recipe.knowledge_base_file)
    trained, given = info.codebook_sha256, knowledge_base.codebook_sha256
    if trained != given:
        raise MismatchError(
            f"KB-DM Adapter '{info.name}' was trained with the knowledge base whose codebook is {trained[:12]}…, but that of "
            f"'{knowledge_base.name}' is {given[:12]}…. Name the knowledge base that belongs to the adapter: --knowledge-base-file."
        )
    found = [knowledge_base.grid[0] * knowledge_base.grid[1], knowledge_base.codebook.shape[1]]
    if found != [sizes.kb_tokens, sizes.kb_width]:
        raise MismatchError(
            f"KB-DM Adapter '{info.name}' reads {sizes.kb_tokens} tokens of width {sizes.kb_width}, but those of '{knowledge_base.name}' are "
            f"{found[0]} of width {found[1]}. Name the knowledge base that belongs to the adapter: --knowledge-base-file."
        )
    return adapter.float(), info.base_sha256, knowledge_base


def _try(run: Run, drawing: ColumnDrawing, scenes: int) -> None:
    """One step of one batch of each column: tells how long all of them take."""
    table, seconds = drawing.table, {}
    for column in (*table.columns[:1], *table.columns):  # the first one twice: the first step of all is slower
        start = time.monotonic()
        drawing.latents(column, run.table.seed, range(table.scenes), steps=1, check=run.signals.check)
        seconds[column] = time.monotonic() - start
    told = ", ".join(f"{column} {each:.2f} s" for column, each in seconds.items())
    whole = sum(seconds.values()) * table.steps * table.seeds * scenes / table.scenes
    run.say(f"evaluation: one step of {table.scenes} pictures takes {told}; all take about {duration(whole)}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
