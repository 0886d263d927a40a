"""The commands of the miniature: python -m train mini STAGE."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
from tyro.conf import arg

from kbdm_core.errors import KBDMError
from train.base.checkpoint import autoencoder_of, read_base
from train.base.text_tower import filled_up, text_model
from train.mini.autoencoder import AutoencoderTable, AutoencoderTraining, folded, load_autoencoder, save_autoencoder
from train.mini.checkpoint import write_checkpoint
from train.mini.clip import ClipTraining, MiniClipTable, retrieval, save_clip, tokenised
from train.mini.estimator import save_estimator
from train.mini.estimator_training import EstimatorTable, EstimatorTraining, own_error
from train.mini.scenes import WorldTable, captions, drawn, poses, rendered
from train.mini.unet import UNetTable, UNetTraining, kept_latents
from train.mini.world.dataset import SPLITS
from train.run.loop import Run, RunTable
from train.run.recipe import Command, resolved
from train.run.start import begin, open_run

ASSETS = Path("assets/mini")
DRY_SCENES = 64  # that stand for all in a dry run
UNSEEN = 256  # held-out scenes on which a stage is judged
JUDGED = 512  # scenes of each of two splits on which the estimator is judged


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


@dataclass(frozen=True)
class UNetCommand(Command):
    """The miniature's UNet, from drawn scenes, their captions, the autoencoder and the CLIP. It writes the checkpoint."""

    output: Path = ASSETS / "checkpoint.safetensors"
    """The file to write: UNet and autoencoder in the layout of SD1.5's checkpoints."""
    autoencoder_file: Path = ASSETS / "autoencoder.safetensors"
    """What `mini autoencoder` has written."""
    clip_folder: Path = ASSETS / "clip"
    """What `mini clip` has written."""
    unet: Annotated[UNetTable, arg(name="")] = UNetTable()
    world: WorldTable = WorldTable()
    run: RunTable = RunTable()


@dataclass(frozen=True)
class EstimatorCommand(Command):
    """The pose estimator that the miniature's pictures are judged by, from drawn scenes of its own split and their poses."""

    output: Path = ASSETS / "estimator.safetensors"
    """The file to write."""
    estimator: Annotated[EstimatorTable, arg(name="")] = EstimatorTable()
    world: WorldTable = WorldTable(first=SPLITS["estimator"].start)
    run: RunTable = RunTable()


def autoencoder(recipe: AutoencoderCommand) -> None:
    """`python -m train mini autoencoder`."""
    with open_run(recipe) as run:
        pictures, _ = _scenes(run, recipe.world)
        begin(run, recipe)
        stage = AutoencoderTraining(run, recipe.autoencoder, pictures)
        run.train(stage)
        if run.is_main and not run.dry:
            result, deviation = folded(stage.average.module.cpu().eval(), pictures)
            save_autoencoder(recipe.output, result, resolved(recipe))
            print(json.dumps({"output": str(recipe.output), "latent_deviation": deviation}))


def clip(recipe: ClipCommand) -> None:
    """`python -m train mini clip`."""
    with open_run(recipe) as run:
        pictures, texts = _scenes(run, recipe.world)
        begin(run, recipe)
        stage = ClipTraining(run, recipe.mini_clip, pictures, tokenised(texts))
        run.train(stage)
        if run.is_main and not run.dry:
            result = stage.optimisation.plain.clip.cpu().eval()
            save_clip(recipe.output, result)
            unseen = replace(recipe.world, first=SPLITS["held-out"].start, scenes=UNSEEN)
            figures = retrieval(result, rendered(unseen, run.signals.check), tokenised(captions(unseen)))
            print(json.dumps({"output": str(recipe.output), "held_out_pairs": UNSEEN, **figures}))


def unet(recipe: UNetCommand) -> None:
    """`python -m train mini unet`."""
    with open_run(recipe) as run:
        goes_on = recipe.unet.init is not None
        frozen = autoencoder_of(read_base(recipe.unet.init)) if goes_on else load_autoencoder(recipe.autoencoder_file)
        tower = open_clip.create_model(f"local-dir:{recipe.clip_folder}").eval()
        pictures, texts = _scenes(run, recipe.world)
        latents = kept_latents(recipe.world.cache, frozen, pictures, run.signals.check)
        begin(run, recipe)
        tokens, empty = filled_up(tokenised(texts)), filled_up(tokenised([""]))[0]
        stage = UNetTraining(run, recipe.unet, latents, tokens, empty, text_model(tower))
        run.train(stage)
        if run.is_main and not run.dry:
            write_checkpoint(recipe.output, stage.average.module.cpu().eval(), frozen, resolved(recipe))
            print(json.dumps({"output": str(recipe.output)}))


def estimator(recipe: EstimatorCommand) -> None:
    """`python -m train mini estimator`. Raises KBDMError for scenes of another split, or for those on which it will be judged."""
    own, world = SPLITS["estimator"], recipe.world
    unseen = range(own.stop - JUDGED, own.stop)
    if world.first not in own or world.first + world.scenes > unseen.start:
        raise KBDMError(
            f"[world] asks for the scenes {world.first} to {world.first + world.scenes - 1}; the estimator learns from {own.start} to "
            f"{unseen.start - 1} alone: those above are kept to judge it, and all others are for the pictures that it will judge. "
            f"Set first = {own.start}."
        )
    with open_run(recipe) as run:
        pictures, truth = _scenes(run, world, poses)
        begin(run, recipe)
        stage = EstimatorTraining(run, recipe.estimator, pictures, truth)
        run.train(stage)
        if run.is_main and not run.dry:
            result, judged = stage.average.module.cpu().eval().half().float(), {}  # as it will be loaded
            for name, first in (("unseen", unseen.start), ("held_out", SPLITS["held-out"].start)):
                judging = replace(world, first=first, scenes=JUDGED)
                judged[name] = own_error(result, rendered(judging, run.signals.check), poses(judging))
            save_estimator(recipe.output, result, resolved(recipe), judged)
            print(json.dumps({"output": str(recipe.output), **judged}))


def _scenes(run: Run, world: WorldTable, told: Callable[[WorldTable], Any] = captions) -> tuple[np.ndarray, Any]:
    """Pictures of the table's scenes and what is told of them; in a dry run those of a few, which are not kept."""
    if run.dry:
        world = replace(world, scenes=DRY_SCENES)
        return drawn(world.first, DRY_SCENES), told(world)
    return rendered(world, run.signals.check), told(world)
