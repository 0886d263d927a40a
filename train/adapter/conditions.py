"""What prompts say to the UNet: hidden states of the text encoder, and the knowledge base's tokens by their cached indices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kbdm_core.errors import MismatchError
from kbdm_core.knowledge_base import KnowledgeBase
from kbdm_core.phrases import decompose
from train.base.text import TextEncoder
from train.features.store import FeatureStore

BATCH = 64  # phrases at a time
MOST_ENTRIES = 1 << 24  # an index is kept as float32, which is exact up to here


class KBAnswers:
    """The knowledge base's tokens of captions (Eq. 7): each phrase is asked once, and only its N indices are kept.

    The same as KB Text Query with compose = mean and temperature 0. Raises MismatchError if text encoder and knowledge base do not fit.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        text: TextEncoder,
        captions: Sequence[str],
        decomposition: str,
        cache: Path,
        check: Callable[[], None] = lambda: None,
        quiet: bool = False,
        shard: str = "0",
    ):
        width = knowledge_base.text_projection.shape[0]
        if text.width != width:
            raise MismatchError(
                f"The base's text encoder is {text.width} wide, but {knowledge_base.name} was made with one of width {width}; "
                "use the knowledge base that was made with this base's CLIP."
            )
        self.knowledge_base, self.decomposition = knowledge_base, decomposition
        groups = [decompose(caption, decomposition) for caption in ("", *captions)]  # the empty prompt first
        phrases = list(dict.fromkeys(phrase for group in groups for phrase in group))
        number = {phrase: i for i, phrase in enumerate(phrases)}
        self._phrases = [np.array([number[phrase] for phrase in group]) for group in groups]
        self._rows = _asked(knowledge_base, text, phrases, cache, check, quiet, shard)

    def tokens(self, items: Sequence[int], dropped: Sequence[bool]) -> Tensor:
        """Fused tokens of captions by number, or of "" where dropped -> [B,N,C], float32."""
        groups = [self._phrases[0 if drop else 1 + item] for item, drop in zip(items, dropped)]
        indices = torch.from_numpy(self._rows[np.concatenate(groups)].astype(np.int64))  # [P, N]
        tokens = self.knowledge_base.codebook[indices]  # [P, N, C]
        return torch.stack([part.mean(0) for part in tokens.split([len(group) for group in groups])])


def _asked(
    knowledge_base: KnowledgeBase, text: TextEncoder, phrases: Sequence[str], cache: Path, check: Callable[[], None], quiet: bool, shard: str
) -> np.ndarray:
    """Indices [phrases,N] of the most probable entries; what is in the cache is not asked again."""
    entries, tokens = len(knowledge_base.codebook), knowledge_base.grid[0] * knowledge_base.grid[1]
    if entries > MOST_ENTRIES:
        raise MismatchError(f"{knowledge_base.name} has {entries} entries; at most {MOST_ENTRIES} can be kept.")
    digest = hashlib.sha256(text.fingerprint.encode() + knowledge_base.codebook_sha256.encode())
    for value in (knowledge_base.text_projection, *knowledge_base.classifier.state_dict().values()):
        digest.update(value.float().contiguous().numpy().tobytes())
    of = digest.hexdigest()
    store = FeatureStore.open(cache / f"indices-{of[:12]}", (tokens,), "float32", {"holds": "indices", "of": of})
    keys = {phrase: hashlib.sha256(f"{of}\0{phrase}".encode("utf-8", "surrogatepass")).hexdigest() for phrase in phrases}
    new = iter([phrase for phrase in phrases if keys[phrase] not in store])
    with store.writer(shard) as writer, tqdm(desc="phrases", unit="phrases", disable=quiet) as bar:
        while batch := list(islice(new, BATCH)):
            check()
            answer = knowledge_base.query(knowledge_base.project(text.pooled(batch).cpu()))
            writer.append([keys[phrase] for phrase in batch], answer.indices.float().numpy())
            bar.update(len(batch))
    store.refresh()
    return store.rows([keys[phrase] for phrase in phrases])[:].astype(np.int32)
