"""What the classifier reads: captions, phrases of them as KB Text Query will ask, and the empty prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kbdm_core.phrases import decompose

MOST_SAMPLED = 16384


@dataclass(frozen=True, eq=False)
class Captions:
    """Text embeddings by row, and the rows of each item: its caption first, then its phrases. `empty` is the row of the empty prompt."""

    z_t: np.ndarray  # [T, C_z], or anything that is indexed like it
    rows: tuple[tuple[int, ...], ...]
    empty: int

    def only(self, items: Tensor) -> Captions:
        """The captions of some items, in their order."""
        return replace(self, rows=tuple(self.rows[item] for item in items.tolist()))

    def of(self, items: Sequence[int]) -> Tensor:
        """z_t of the items' captions [n,C_z], float32."""
        return self._read([self.rows[item][0] for item in items])

    def drawn(self, items: Sequence[int], phrase_share: float, empty_share: float, random: torch.Generator) -> Tensor:
        """z_t [n,C_z] of each item's caption; or, with probability phrase_share, of one of its phrases; or, with empty_share, of ""."""
        draws = torch.rand(len(items), 2, generator=random).tolist()
        chosen = []
        for item, (kind, which) in zip(items, draws):
            rows = self.rows[item]
            if kind < empty_share:
                chosen.append(self.empty)
            elif kind < empty_share + phrase_share and len(rows) > 1:
                chosen.append(rows[1 + int(which * (len(rows) - 1))])
            else:
                chosen.append(rows[0])
        return self._read(chosen)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the captions' z_t per channel, both [C_z], from at most 16,384 of them, spread evenly."""
        z_t = self.of(range(0, len(self.rows), -(-len(self.rows) // MOST_SAMPLED))).double()
        deviation = z_t.std(0, correction=0)
        return z_t.mean(0).float(), deviation.clamp_min(1e-3 * deviation.mean().clamp_min(1e-6)).float()

    def _read(self, rows: list[int]) -> Tensor:
        return torch.from_numpy(self.z_t[np.array(rows, dtype=np.int64)]).float()


def texts_of(captions: Sequence[str], with_phrases: bool) -> list[tuple[str, ...]]:
    """Each caption, followed by its phrases if wanted and if it has more than one."""
    texts = []
    for caption in captions:
        phrases = decompose(caption) if with_phrases else ()
        texts.append((caption, *phrases) if len(phrases) > 1 else (caption,))
    return texts


def embedded(texts: Sequence[tuple[str, ...]], embed: Callable[[Sequence[str]], np.ndarray]) -> Captions:
    """Captions whose z_t rows `embed` gives for all different texts [T,C_z]."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(["", *(text for group in texts for text in group)]))}
    return Captions(embed(list(rows)), tuple(tuple(rows[text] for text in group) for group in texts), rows[""])
