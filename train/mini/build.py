"""The whole miniature by one command: every stage in its order, each resumable, from drawn scenes to the adapter."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge
from tyro.conf import arg

from kbdm_core.errors import KBDMError
from train.adapter.commands import AdapterTables, train_adapter
from train.adapter.table import AdapterTable, ValidationTable
from train.base.table import BaseTable
from train.data.records import DataTable
from train.examples.encoding import ExamplesTable
from train.examples.sources import mini_source
from train.examples.variants import AugmentTable
from train.features.table import ClipTable
from train.knowledge.classifier import ClassifierTable
from train.knowledge.codebook import CodebookTable
from train.knowledge.commands import KnowledgeBaseCommand, knowledge_base
from train.mini import commands
from train.mini.autoencoder import AutoencoderTable
from train.mini.clip import MiniClipTable
from train.mini.estimator_training import EstimatorTable
from train.mini.scenes import WorldTable
from train.mini.unet import UNetTable
from train.mini.world.dataset import SPLITS, write_folder
from train.run.loop import RunTable
from train.run.recipe import Command

ASSETS = commands.ASSETS
KNOWLEDGE_BASE = Path("knowledge_bases/mini/knowledge_base.safetensors")  # below the miniature's folder, as the loaders list it
ADAPTER = Path("adapters/mini/adapter.safetensors")
CLIP, CHECKPOINT, ESTIMATOR = Path("clip"), Path("checkpoint.safetensors"), Path("estimator.safetensors")
STAGES = ("clip", "autoencoder", "unet", "knowledge-base", "estimator", "adapter")
DRY_PICTURES = 512


def mini_clip_table(folder: Path) -> ClipTable:
    """[clip] for the miniature's own CLIP."""
    return ClipTable(model=f"local-dir:{folder}", pretrained="")


def mini_base_table(folder: Path) -> BaseTable:
    """[base] for the miniature: small enough for float32, in which its pictures are those of a host without a GPU."""
    return BaseTable(checkpoint=folder / CHECKPOINT, text_encoder=f"local-dir:{folder / CLIP}", dtype="float32")


MINI_ADAPTER = AdapterTable(knowledge_base=ASSETS / KNOWLEDGE_BASE, pose_width=256, pose_stem=(128, 128, 128, 128))
MINI_EXAMPLES = ExamplesTable(resolution=128, batch=32, cache=Path(".cache/mini/latents"))


@dataclass(frozen=True)
class MiniAdapterCommand(AdapterTables):
    """Stage 3 on the miniature, from drawn scenes."""

    output: Path = ASSETS / ADAPTER
    """The file to write."""
    base: BaseTable = mini_base_table(ASSETS)
    adapter: Annotated[AdapterTable, arg(name="")] = MINI_ADAPTER
    examples: ExamplesTable = MINI_EXAMPLES
    world: WorldTable = WorldTable()


def mini_adapter(recipe: MiniAdapterCommand) -> None:
    """`python -m train mini adapter`."""
    train_adapter(recipe, lambda run: mini_source(recipe.world, run.signals.check, DRY_PICTURES if run.dry else 0), held_out=0.01)


@dataclass(frozen=True)
class BuildCommand(Command):
    """All stages of the miniature: CLIP, autoencoder, UNet, knowledge base, estimator, adapter."""

    output: Path = ASSETS
    """The folder to write. The recipe for the shipped one is train/recipes/mini.toml."""
    world: WorldTable = WorldTable()
    mini_clip: MiniClipTable = MiniClipTable()
    autoencoder: AutoencoderTable = AutoencoderTable()
    unet: UNetTable = UNetTable()
    codebook: CodebookTable = CodebookTable()
    classifier: ClassifierTable = ClassifierTable()
    estimator: EstimatorTable = EstimatorTable()
    adapter: AdapterTable = MINI_ADAPTER
    validation: ValidationTable = ValidationTable()
    examples: ExamplesTable = MINI_EXAMPLES
    augment: AugmentTable = AugmentTable()
    pictures: Annotated[int, Ge(1)] = 8000
    """Scenes that the knowledge base is made from."""
    stages: tuple[Literal[STAGES], ...] = STAGES
    """Which stages to go through; each needs what those before it have made."""
    run: RunTable = field(default_factory=lambda: RunTable(precision="bf16"))


def build(recipe: BuildCommand) -> None:
    """`python -m train mini build`. A stage that was stopped goes on, one that has ended is not trained again. Raises KBDMError for a dry run."""
    if recipe.dry_run:
        raise KBDMError("each stage needs what the one before it has made; try a dry run of one stage, such as `train mini unet --dry-run`.")
    for stage in STAGES:
        if stage in recipe.stages:
            print(f"== {stage}", file=sys.stderr)
            _STAGES[stage](recipe, recipe.output, replace(recipe.run, folder=recipe.world.cache / "build" / f"{stage}.run"))


def _clip(recipe: BuildCommand, folder: Path, run: RunTable) -> None:
    commands.clip(commands.ClipCommand(output=folder / CLIP, mini_clip=recipe.mini_clip, world=recipe.world, run=run))


def _autoencoder(recipe: BuildCommand, folder: Path, run: RunTable) -> None:
    commands.autoencoder(
        commands.AutoencoderCommand(output=_own_file(recipe), autoencoder=recipe.autoencoder, world=recipe.world, run=run)
    )


def _unet(recipe: BuildCommand, folder: Path, run: RunTable) -> None:
    files = {"output": folder / CHECKPOINT, "autoencoder_file": _own_file(recipe), "clip_folder": folder / CLIP}
    commands.unet(commands.UNetCommand(**files, unet=recipe.unet, world=recipe.world, run=run))


def _estimator(recipe: BuildCommand, folder: Path, run: RunTable) -> None:
    world = replace(recipe.world, first=SPLITS["estimator"].start)
    commands.estimator(commands.EstimatorCommand(output=folder / ESTIMATOR, estimator=recipe.estimator, world=world, run=run))


def _adapter(recipe: BuildCommand, folder: Path, run: RunTable) -> None:
    table = replace(recipe.adapter, knowledge_base=folder / KNOWLEDGE_BASE)
    files = {"output": folder / ADAPTER, "base": mini_base_table(folder)}
    tables = {"validation": recipe.validation, "examples": recipe.examples, "augment": recipe.augment, "world": recipe.world}
    mini_adapter(MiniAdapterCommand(**files, adapter=table, **tables, run=run))


def _own_file(recipe: BuildCommand) -> Path:
    """The autoencoder by itself, which is in the checkpoint later."""
    return recipe.world.cache / "build" / "autoencoder.safetensors"


def _knowledge_base(recipe: BuildCommand, folder: Path, run: RunTable) -> None:
    """Stages 1 and 2 by part B's own command, on scenes written as a folder of pictures with captions."""
    pictures = recipe.world.cache / f"pictures-{recipe.world.first}-{recipe.pictures}"
    if not pictures.exists():
        unfinished = pictures.with_name(pictures.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_folder(unfinished, "training", range(recipe.world.first, recipe.world.first + recipe.pictures))
        unfinished.rename(pictures)
    knowledge_base(
        KnowledgeBaseCommand(
            output=folder / KNOWLEDGE_BASE,
            data=DataTable(root=pictures),
            clip=mini_clip_table(folder / CLIP),
            codebook=recipe.codebook,
            classifier=recipe.classifier,
            run=run,
        )
    )


_STAGES = {
    "clip": _clip,
    "autoencoder": _autoencoder,
    "unet": _unet,
    "knowledge-base": _knowledge_base,
    "estimator": _estimator,
    "adapter": _adapter,
}
