"""From pictures and captions to what both stages learn from: tokens and text embeddings by item, in training and held-out parts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from kbdm_core.errors import KBDMError
from train.data.records import Dataset, DataTable
from train.data.sources import open_dataset
from train.data.split import split
from train.data.validate import report_of, save_report
from train.features.clip import VisionTextCLIP
from train.features.extract import extract_texts, extract_tokens, text_store, token_store
from train.features.table import ClipTable
from train.knowledge.captions import Captions, embedded, texts_of
from train.knowledge.tokens import RepeatedRows, TokenRows
from train.run.loop import Run

DRY_PICTURES = 8
PROBLEMS = "problems.json"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Items with tokens z_e [items,N,C] and captions. `train` and `held_out` are item numbers; `clip` says whose features these are."""

    rows: TokenRows
    captions: Captions
    train: Tensor
    held_out: Tensor
    train_rows: TokenRows
    clip: dict
    text_projection: Tensor
    grid: tuple[int, int]


def read_pictures(run: Run, data: DataTable, table: ClipTable, with_phrases: bool) -> Pictures:
    """Run the frozen CLIP over the data, as far as its features are not in the cache, and read them from there.

    Pictures that cannot be used are listed in problems.json in the run's folder. In a dry run a few pictures stand for all.
    Raises DataError and KBDMError if nothing can be used.
    """
    dataset = open_dataset(data)
    count = len(dataset.records)
    if not count:
        first = dataset.problems[0]
        raise KBDMError(f"none of the {len(dataset.problems)} entries of {data.root} can be used (first: {first.name}: {first.message}).")
    run.say(f"data: {count} pictures with captions; loading {table.model}")
    with ExitStack() as stack:
        if run.dry:
            dataset = Dataset(dataset.records[:DRY_PICTURES], ())
            table = replace(table, cache=Path(stack.enter_context(tempfile.TemporaryDirectory())))
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.table.precision)
        clip = VisionTextCLIP(table, run.device, autocast)
        pictures = _extracted(run, clip, dataset, data.held_out, with_phrases)
        return _repeated(pictures, count, data.held_out) if run.dry else pictures


def _extracted(run: Run, clip: VisionTextCLIP, dataset: Dataset, held_out: float, with_phrases: bool) -> Pictures:
    tokens, texts = token_store(clip), text_store(clip)
    keyed, problems = extract_tokens(dataset.records, clip, tokens, run.rank, run.world, run.signals.check)
    if run.world > 1:
        place = {record.name: number for number, record in enumerate(dataset.records)}
        named = gather_object([(record.name, key) for record, key in keyed])
        keyed = [(dataset.records[place[name]], key) for name, key in sorted(named, key=lambda pair: place[pair[0]])]
        problems = gather_object(problems)
    report = report_of(len(dataset.records), dataset.problems, problems)
    if report.problems and not run.dry:
        counts = ", ".join(f"{number} {kind}" for kind, number in report.counts.items())
        run.say(f"data: {report.usable} of {report.records} pictures can be used; {counts}; listed in {run.folder / PROBLEMS}")
        if run.is_main:
            save_report(report, run.folder / PROBLEMS)
    if not keyed:
        raise KBDMError(f"none of the {report.records} pictures can be read (first: {report.problems[0].message}).")
    groups = texts_of([record.caption for record, _ in keyed], with_phrases)

    def embed(all_texts: Sequence[str]) -> np.ndarray:
        keys = extract_texts(all_texts, clip, texts, run.rank, run.world, run.signals.check)
        run.accelerator.wait_for_everyone()
        texts.refresh()
        return texts.rows([keys[text] for text in all_texts])

    captions = embedded(groups, embed)
    tokens.refresh()
    keys = [key for _, key in keyed]
    train, held = split(keys, held_out)
    source = {"model": clip.table.model, "pretrained": clip.table.pretrained, "space": clip.table.space, "fingerprint": clip.fingerprint}
    train_rows = tokens.rows([keys[item] for item in train.tolist()])
    return Pictures(tokens.rows(keys), captions, train, held, train_rows, source, clip.text_projection, clip.grid)


def _repeated(few: Pictures, items: int, held_out: float) -> Pictures:
    """The few pictures as if they were `items`: a dry run has the sizes of the real one."""
    count = len(few.captions.rows)
    rows = RepeatedRows(few.rows[np.arange(count)], items)
    captions = Captions(few.captions.z_t[np.arange(len(few.captions.z_t))], few.captions.rows * -(-items // count), few.captions.empty)
    held = torch.arange(int(items * held_out))
    train = torch.arange(len(held), items)
    return replace(few, rows=rows, captions=captions, train=train, held_out=held, train_rows=RepeatedRows(rows.rows, len(train)))
