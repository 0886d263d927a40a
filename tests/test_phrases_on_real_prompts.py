"""Decomposition of more than 200 prompts that people wrote, beside a parser's noun phrases. Needs the wheels of testbed/real_prompts.py and spaCy."""

from __future__ import annotations

import re

import pytest

from benchmarks.phrases import compare, our_phrases, parser
from kbdm_core import phrases as rules
from kbdm_core.phrases import MAX_PHRASES, decompose, plain_text
from testbed.real_prompts import KINDS, real_prompts

NOTATION = re.compile(r"[()\[\]\n]|:\s?\d+\.\d|<lora|embedding:", re.IGNORECASE)
SMALL_WORDS = rules._CUTS | rules._DETERMINERS | rules._PRONOUNS | rules._ADVERBS | {"of"}
SMALL_WORDS |= set(re.findall(r"\w+", rules._PREPOSITION_PHRASES.pattern))  # "in the middle of"
VERBS = rules._VERBS | rules._FINITE | rules._IMPERATIVES | rules._PARTICIPLES
MORE_VERBS = re.compile(r"\b(?:(?:it|he|she|they|i|you|we|who|which|that) (\w+s)|to (\w+))\b")  # "who smiles", "to open"


def words(text: str) -> list[str]:
    """Words of a text in lower case, without the marks around them."""
    return [word for word in (word.strip(rules._EDGES).casefold() for word in re.split(r"[\s,;|，、；。！？—]+", text)) if word]


@pytest.fixture(scope="module")
def prompts():
    return real_prompts()


def test_there_are_two_hundred_prompts_of_every_kind(prompts):
    assert len(prompts) >= 200
    assert {each.kind for each in prompts} == set(KINDS)
    assert sum(bool(re.search(r":\d\.\d+\)", each.text)) for each in prompts) >= 15  # with weights


def test_every_prompt_gives_one_to_sixteen_phrases_of_plain_text(prompts):
    for prompt in prompts:
        phrases = decompose(prompt.text)
        assert 1 <= len(phrases) <= MAX_PHRASES
        assert our_phrases(prompt.text)
        assert all(phrase.strip() and not NOTATION.search(phrase) for phrase in phrases), prompt.text
        assert decompose(prompt.text, "lines") and len(decompose(prompt.text, "off")) == 1


def test_only_small_words_verbs_and_adverbs_get_lost(prompts):
    for prompt in prompts:
        text = plain_text(prompt.text)
        kept = {word for phrase in decompose(prompt.text) for word in words(phrase)}
        verbs = VERBS | {verb for pair in MORE_VERBS.findall(text.casefold()) for verb in pair}
        lost = [
            word
            for word in words(text)
            if word not in kept | SMALL_WORDS | verbs and not word.endswith(("ing", "ed", "ly")) and any(map(str.isalnum, word))
        ]
        assert not lost, (prompt.text, lost)


def test_other_languages_keep_every_letter(prompts):
    for prompt in prompts:
        letters = {letter for letter in prompt.text if letter.isalpha() and not letter.isascii()}
        assert letters <= set("".join(decompose(prompt.text))), prompt.text


def test_what_the_parser_calls_nouns_and_adjectives_stays(prompts):
    """An independent view of the same: 0.9 % of them are missing, among them "the middle of", "in front of", "8K"."""
    lost = total = 0
    for prompt in (each for each in prompts if each.kind in ("sentences", "tags")):
        kept = {part for phrase in decompose(prompt.text) for part in re.split(r"\W+", phrase.casefold())}
        for line in plain_text(prompt.text).split("\n"):
            named = [token.text.casefold() for token in parser()(" ".join(line.split())) if token.pos_ in ("NOUN", "PROPN", "ADJ")]
            total += len(named)
            lost += sum(word.isalpha() and word not in kept for word in named)
    assert total > 2000
    assert lost <= 0.015 * total


def test_phrases_of_english_sentences_are_those_of_the_parser(prompts):
    """`python -m benchmarks.phrases` says F1 0.84, equal phrases 0.79; the rules before this comparison had 0.75 and 0.63."""
    agreement = compare(each for each in prompts if each.kind == "sentences")
    assert agreement.prompts >= 75
    assert agreement.failed == 0
    assert agreement.f1() >= 0.81
    assert agreement.f1(exact=True) >= 0.75


def test_phrases_of_tag_lists_are_those_of_the_parser(prompts):
    agreement = compare(each for each in prompts if each.kind == "tags")
    assert agreement.failed == 0
    assert agreement.f1() >= 0.81
