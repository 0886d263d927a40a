"""The commands of the miniature: python -m train mini STAGE."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from train.mini.autoencoder import AutoencoderTable, AutoencoderTraining, folded, save_autoencoder
from train.mini.clip import ClipTraining, MiniClipTable, save_clip, tokenised
from train.mini.scenes import WorldTable, captions, rendered
from train.run.loop import Run, RunTable
from train.run.recipe import Command, refuse_other_recipe, resolved, save_resolved

ASSETS = Path("assets/mini")


@dataclass(frozen=True)
class AutoencoderCommand(Command):
    """The miniature's autoencoder, from drawn scenes."""

    output: Path = ASSETS / "autoencoder.safetensors"
    """The file to write."""
    autoencoder: Annotated[AutoencoderTable, arg(name="")] = AutoencoderTable()
    world: WorldTable = WorldTable()
    run: RunTable = RunTable()


@dataclass(frozen=True)
class ClipCommand(Command):
    """The miniature's CLIP, from drawn scenes and their captions."""

    output: Path = ASSETS / "clip"
    """The folder to write."""
    mini_clip: Annotated[MiniClipTable, arg(name="")] = MiniClipTable()
    world: WorldTable = WorldTable()
    run: RunTable = RunTable()


def autoencoder(recipe: AutoencoderCommand) -> None:
    """`python -m train mini autoencoder`."""
    with _run(recipe) as run:
        pictures = rendered(recipe.world, run.signals.check)
        _begin(run, recipe)
        stage = AutoencoderTraining(run, recipe.autoencoder, pictures)
        run.train(stage)
        if run.is_main and not run.dry:
            result, deviation = folded(stage.average.module.cpu().eval(), pictures)
            save_autoencoder(recipe.output, result, resolved(recipe))
            print(json.dumps({"output": str(recipe.output), "latent_deviation": deviation}))


def clip(recipe: ClipCommand) -> None:
    """`python -m train mini clip`."""
    with _run(recipe) as run:
        pictures = rendered(recipe.world, run.signals.check)
        _begin(run, recipe)
        stage = ClipTraining(run, recipe.mini_clip, pictures, tokenised(captions(recipe.world)))
        run.train(stage)
        if run.is_main and not run.dry:
            save_clip(recipe.output, stage.optimisation.plain.clip)
            print(json.dumps({"output": str(recipe.output)}))


def _run(recipe: AutoencoderCommand | ClipCommand) -> Run:
    folder = recipe.run.folder or recipe.output.with_suffix(".run")
    if not recipe.dry_run:
        refuse_other_recipe(recipe, folder)
    return Run(recipe.run, folder, recipe.dry_run)


def _begin(run: Run, recipe: AutoencoderCommand | ClipCommand) -> None:
    run.begin()
    if run.is_main and not run.dry:
        save_resolved(recipe, run.folder)
