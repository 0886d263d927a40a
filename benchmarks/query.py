"""Time of a KB Text Query beyond the text encoder, with both classifiers: python benchmarks/query.py (from the repository root)."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kbdm_core.classifier import CLASSIFIERS
from kbdm_core.knowledge_base import KnowledgeBase, fresh_knowledge_base
from kbdm_core.phrases import decompose

PROMPT = "digital art, a person in a red coat watching a fighter jet"
RUNS = 50


def milliseconds(knowledge_base: KnowledgeBase, compose: str, temperature: float) -> float:
    """Median time of splitting the prompt, projecting, and querying its 4 phrases and the empty negative prompt."""
    times = []
    for _ in range(RUNS):
        pooled = torch.randn(len(decompose(PROMPT)), knowledge_base.text_projection.shape[0])
        start = time.perf_counter()
        decompose(PROMPT)
        for each in (pooled, pooled[:1]):
            knowledge_base.query(knowledge_base.project(each), compose, temperature)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main() -> None:
    print(
        f"{len(decompose(PROMPT))} phrases and a negative prompt, K=1024, N=256, C=768, {torch.get_num_threads()} threads, median of {RUNS}"
    )
    for kind, classifier in CLASSIFIERS.items():
        knowledge_base = fresh_knowledge_base(classifier=classifier)
        weights = sum(parameter.numel() for parameter in knowledge_base.classifier.parameters())
        for compose, temperature in (("mean", 0.0), ("confidence", 0.0), ("mean", 1.0)):
            time_ms = milliseconds(knowledge_base, compose, temperature)
            print(f"{kind:10s} {weights / 1e6:6.1f} M weights  {compose:10s} temperature {temperature}: {time_ms:7.2f} ms")


if __name__ == "__main__":
    main()
