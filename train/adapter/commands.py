"""The command of stage 3: python -m train adapter."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tyro.conf import arg

from kbdm_core.adapter import SECTIONS, KBDMAdapter, fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import AdapterInfo, load_adapter, save_adapter
from kbdm_core.errors import KBDMError, MismatchError
from kbdm_core.knowledge_base import KnowledgeBase, load_knowledge_base
from train.adapter.conditions import KBAnswers
from train.adapter.objective import AdapterObjective
from train.adapter.table import AdapterTable, ValidationTable
from train.adapter.training import AdapterTraining
from train.adapter.validation import Validation
from train.adapter.workflow import Files
from train.base.checkpoint import BaseFile, autoencoder_of, controlnet_of, read_base, require_sd15, text_projections, unet_of
from train.base.diffusion import LATENT_SCALE, SNRWeight
from train.base.table import BaseTable
from train.base.text import TextEncoder, text_encoder
from train.data.records import DataTable
from train.data.sources import open_dataset
from train.data.split import split
from train.examples.encoding import ExamplesTable
from train.examples.examples import open_examples
from train.examples.sources import DatasetSource, Source
from train.examples.variants import AugmentTable
from train.run.loop import Run, RunTable
from train.run.order import fingerprint
from train.run.recipe import Command, resolved
from train.run.start import begin, open_run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTOCAST = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
KB_CACHE = Path(".cache/kb")


@dataclass(frozen=True)
class AdapterTables(Command):
    """What is the same for every source of pictures."""

    output: Path = Path("adapter.safetensors")
    """The file to write; ComfyUI finds it in models/kbdm_adapters/."""
    base: BaseTable = BaseTable()
    adapter: Annotated[AdapterTable, arg(name="")] = AdapterTable()
    validation: ValidationTable = ValidationTable()
    examples: ExamplesTable = ExamplesTable()
    augment: AugmentTable = AugmentTable()
    run: RunTable = RunTable()


@dataclass(frozen=True)
class AdapterCommand(AdapterTables):
    """Stage 3: the adapter, from pictures, captions and poses, on a frozen SD1.5."""

    data: DataTable = DataTable()


def adapter(recipe: AdapterCommand) -> None:
    """`python -m train adapter`."""
    if recipe.data.root is None:
        raise KBDMError("no pictures were given: name their folder with --data.root, or use a recipe (--config train/recipes/paper.toml).")
    train_adapter(recipe, lambda run: DatasetSource(open_dataset(recipe.data)), recipe.data.held_out)


def train_adapter(recipe: AdapterTables, open_source: Callable[[Run], Source], held_out: float) -> None:
    """Stage 3 on any source of pictures."""
    start = time.monotonic()
    if recipe.base.checkpoint is None:
        raise KBDMError("no base was given: name a single-file SD1.5 checkpoint with --base.checkpoint FILE.safetensors.")
    inputs = (recipe.base.checkpoint, recipe.adapter.knowledge_base, recipe.adapter.init)
    if any(path is not None and path.resolve() == recipe.output.resolve() for path in inputs):
        raise KBDMError(f"{recipe.output} is to be read and to be written; name another file with --output.")
    with open_run(recipe) as run:
        table, file = recipe.adapter, read_base(recipe.base.checkpoint)
        require_sd15(file)
        dtype = _dtype(recipe)
        knowledge_base = _knowledge_base(table)
        made = _adapter(recipe, file, knowledge_base)  # first what may be refused
        text = text_encoder(file, recipe.base.text_encoder)
        controlnet = controlnet_of(table.controlnet, file) if table.controlnet else None
        autoencoder = autoencoder_of(file).to(run.device)
        encoder_key = f"{fingerprint(*autoencoder.state_dict().values())} {LATENT_SCALE}"  # bases with the same VAE share latents
        examples = open_examples(run, open_source(run), recipe.examples, recipe.augment, encoder(autoencoder, run.device), encoder_key)
        items, held = split(examples.keys, held_out)
        text.model.to(run.device)  # in float32 for the knowledge base's questions, as in the node
        answers = None if knowledge_base is None else _answers(run, knowledge_base, text, examples.captions, table.decompose)
        unet = unet_of(file)
        if dtype != torch.float32:
            unet.to(dtype)
        if recipe.base.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        text.model.to(dtype)
        objective = AdapterObjective(
            made, unet, table.alpha, SNRWeight(table.snr, table.snr_plus), controlnet.to(dtype) if controlnet else None
        )
        info = AdapterInfo(recipe.output.stem, file.base, file.sha256, knowledge_base.codebook_sha256 if knowledge_base else "")
        files = _files(recipe, file)
        file.tensors.clear()  # gigabytes that the models no longer need
        weights = sum(value.numel() for value in made.parameters())
        sections = ", ".join(made.sections)
        run.say(f"adapter: {sections}, {weights / 1e6:.2f} M weights, on {file.path.name} ({info.base}); {len(items)} pictures to learn from")
        validation = Validation(
            run, recipe.validation, examples, (held if len(held) else items).tolist()[: recipe.validation.pictures], text, answers, autoencoder,
            LATENT_SCALE, files, objective.controlnet,
        )  # fmt: skip
        begin(run, recipe)
        stage = AdapterTraining(run, table, objective, text, examples, items, answers, validation)
        run.train(stage)
        if run.dry:
            return
        exported = stage.result
        if run.is_main:
            summary = {"recipe": resolved(recipe), "steps": stage.steps, "pictures": len(items), "seconds": round(time.monotonic() - start, 1)}
            save_adapter(recipe.output, stage.result, replace(info, training=summary), DTYPES[table.export])
            exported = load_adapter(recipe.output)[0].float().to(run.device)  # what ComfyUI will load, rounded as it is there
        validation.draw(stage.optimisation.plain.guided, exported, stage.steps)
        if run.is_main:
            print(json.dumps({"output": str(recipe.output), "weights": weights, **{key: summary[key] for key in ("steps", "pictures", "seconds")}}))


def _answers(run: Run, knowledge_base: KnowledgeBase, text: TextEncoder, captions: Sequence[str], decomposition: str) -> KBAnswers:
    """What the knowledge base answers to the captions; each process asks for itself, and a dry run keeps nothing."""
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory())) if run.dry else KB_CACHE
        return KBAnswers(knowledge_base, text, captions, decomposition, cache, run.signals.check, not run.is_main, str(run.rank))


def encoder(autoencoder: AutoencoderKL, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pictures [B,3,H,W] in -1..1 -> mean and deviation of their latents as the UNet sees them [B,8,H/8,W/8]."""

    @torch.no_grad()
    def encode(pictures: Tensor) -> Tensor:
        latents = autoencoder.encode(pictures.to(device)).latent_dist
        return LATENT_SCALE * torch.cat([latents.mean, latents.std], dim=1)

    return encode


def _dtype(recipe: AdapterTables) -> torch.dtype:
    """Of the frozen weights. Raises KBDMError for half weights without autocast."""
    wanted, precision = recipe.base.dtype, recipe.run.precision
    if precision == "no" and wanted in ("bfloat16", "float16"):
        raise KBDMError(f"base.dtype is {wanted}, but run.precision is no; half weights need autocast: choose --run.precision bf16 or fp16.")
    return DTYPES[AUTOCAST[precision] if wanted == "auto" else wanted]


def _knowledge_base(table: AdapterTable) -> KnowledgeBase | None:
    """That of the section kb. Raises KBDMError for sections that cannot be."""
    if not table.sections or len(set(table.sections)) != len(table.sections):
        raise KBDMError(f"[adapter] sections is {list(table.sections)}; expected one or more of {', '.join(SECTIONS)}, each once.")
    if "kb" not in table.sections:
        return None
    if table.knowledge_base is None:
        raise KBDMError("[adapter] sections has kb, but no knowledge_base is named; make one with `train knowledge-base`, or leave kb out.")
    return load_knowledge_base(table.knowledge_base)


def _adapter(recipe: AdapterTables, file: BaseFile, knowledge_base: KnowledgeBase | None) -> KBDMAdapter:
    """A fresh adapter, or the one to go on from. Raises MismatchError if that does not fit."""
    table = recipe.adapter
    sections = tuple(table.sections)
    tokens = knowledge_base.grid[0] * knowledge_base.grid[1] if knowledge_base else 0
    width = knowledge_base.codebook.shape[1] if knowledge_base else 0
    sizes = sd15_sizes(file.widths, sections, tokens, width, table.gate_outputs, table.pose_width, table.pose_stem)
    if table.init is None:
        return fresh_adapter(sizes, table.options, text_projections(file), recipe.run.seed)
    found, info = load_adapter(table.init)
    if set(found.sections) != set(sections):
        raise MismatchError(f"{table.init} has the sections {', '.join(found.sections)}, but [adapter] sections is {', '.join(sections)}.")
    if found.sizes.widths and found.sizes.widths != file.widths:
        raise MismatchError(f"{table.init} was made for {info.base}, but {file.path.name} has blocks of widths {list(file.widths)}.")
    if knowledge_base and info.codebook_sha256 != knowledge_base.codebook_sha256:
        raise MismatchError(
            f"{table.init} was trained with the codebook {info.codebook_sha256[:12]}…, but that of {knowledge_base.name} is "
            f"{knowledge_base.codebook_sha256[:12]}…; an adapter goes on with its own codebook."
        )
    return found.float().train().requires_grad_(True)


def _files(recipe: AdapterTables, file: BaseFile) -> Files:
    """Names as ComfyUI will list them once the files lie in its folders."""
    mini = file.base == "sd15-mini"
    prefix = "mini/" if mini else ""
    table, control = recipe.adapter, recipe.adapter.controlnet
    knowledge_base = f"{prefix}{table.knowledge_base.name}" if "kb" in table.sections else None
    return Files(None if mini else file.path.name, f"{prefix}{recipe.output.name}", knowledge_base, control.name if control else None)
