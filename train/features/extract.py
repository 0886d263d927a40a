"""Pictures and captions through the frozen CLIP into a feature store: what is there is not computed again, what cannot be read is reported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from train.data.ahead import ahead
from train.data.image_keys import ImageKeys
from train.data.pictures import refuse_elongated
from train.data.records import DataError, Problem, Record, load_image
from train.features.clip import VisionTextCLIP
from train.features.store import FeatureStore


def token_store(clip: VisionTextCLIP) -> FeatureStore:
    """The store of this CLIP's tokens [N,C], in the folder of its table."""
    table, (height, width) = clip.table, clip.grid
    folder = table.cache / f"tokens-{table.space}-{table.dtype}-{clip.fingerprint[:12]}"
    description = {"holds": "tokens", "clip": clip.fingerprint, "space": table.space, "grid": [height, width]}
    return FeatureStore.open(folder, (height * width, clip.width), table.dtype, description)


def text_store(clip: VisionTextCLIP) -> FeatureStore:
    """The store of this CLIP's text embeddings z_t [C_z], in the folder of its table; they are small and stay float32."""
    description = {"holds": "texts", "clip": clip.fingerprint}
    return FeatureStore.open(clip.table.cache / f"texts-{clip.fingerprint[:12]}", clip.text_projection.shape[1:], "float32", description)


def extract_tokens(
    records: Sequence[Record], clip: VisionTextCLIP, store: FeatureStore, rank: int = 0, world: int = 1, check: Callable[[], None] = lambda: None
) -> tuple[list[tuple[Record, str]], list[Problem]]:
    """Tokens of this rank's pictures (records[rank::world]) into the store: each record with its key, in order, and what could not be read.

    `check` is called before every picture and may raise to end the run; what was computed until then stays. A key hashes the file's bytes
    and everything that decides the tokens' values, so the same picture under two names is computed once. Rank r writes the shard r.
    """
    own = records[rank::world]
    keys = ImageKeys(store.folder, str(rank), f"{clip.fingerprint} {clip.table.space} {store.dtype.name} {clip.autocast}")

    def prepare(record: Record) -> tuple[str, Tensor | None]:  # in a thread: Pillow decodes and resizes without the interpreter's lock
        key = keys.of(record.image)
        return (key, None) if key in store else (key, _pixels(record, clip))

    def compute(batch: list[tuple[str, Tensor]]) -> None:
        if batch:
            tokens = clip.tokens(torch.stack([pixels for _, pixels in batch]))  # [B, N, C]
            writer.append([key for key, _ in batch], tokens.cpu().numpy())

    store.refresh()
    keyed, problems, scheduled, batch = [], [], set(), []
    with (
        tqdm(total=len(own), desc="tokens", unit="pictures", disable=rank != 0) as progress,
        store.writer(str(rank)) as writer,
        keys,
        ThreadPoolExecutor(clip.table.workers) as pool,
        closing(ahead(pool, prepare, own, 2 * clip.table.batch + clip.table.workers)) as prepared,
    ):
        for record, future in prepared:
            check()
            try:
                key, pixels = future.result()
            except DataError as error:
                problems.append(Problem("unreadable_image" if record.image.is_file() else "missing_image", record.name, str(error)))
            else:
                keyed.append((record, key))
                if pixels is not None and key not in scheduled:
                    scheduled.add(key)
                    batch.append((key, pixels))
                if len(batch) == clip.table.batch:
                    compute(batch)
                    batch = []
            progress.update()
        compute(batch)
    store.refresh()
    return keyed, problems


def extract_texts(
    texts: Iterable[str], clip: VisionTextCLIP, store: FeatureStore, rank: int = 0, world: int = 1, check: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """The key of every text. The embeddings z_t of this rank's share of the new ones go into the store; `check` as in `extract_tokens`.

    Keys hash the text and the CLIP. With several ranks the rows are complete when all have returned: then refresh the store.
    """
    keys = {text: hashlib.sha256(f"{clip.fingerprint} {store.dtype.name}\0{text}".encode("utf-8", "surrogatepass")).hexdigest() for text in texts}
    store.refresh()
    own = [text for text in list(keys)[rank::world] if keys[text] not in store]
    with store.writer(str(rank)) as writer, tqdm(total=len(own), desc="captions", unit="captions", disable=rank != 0 or not own) as progress:
        remaining = iter(own)
        while batch := list(islice(remaining, clip.table.batch)):
            check()
            writer.append([keys[text] for text in batch], clip.texts(batch).cpu().numpy())
            progress.update(len(batch))
    store.refresh()
    return keys


def _pixels(record: Record, clip: VisionTextCLIP) -> Tensor:
    """The picture as the model wants it, [3,H,W]."""
    image = load_image(record)
    refuse_elongated(record.name, image.size)
    return clip.preprocess(image)
