"""Decomposition of prompts: the paper's example, ComfyUI's notation, and text that must merely survive."""

from __future__ import annotations

import random

import pytest

from kbdm_core.errors import KBDMError
from kbdm_core.phrases import MAX_PHRASES, decompose, plain_text


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("digital art, a person watching a fighter jet", ("digital art", "a person", "a fighter jet")),
        ("oil painting, a woman in a red shirt waving in a park", ("oil painting", "a woman", "a red shirt", "a park")),
        ("a young smiling woman wearing glasses and a hat", ("a young smiling woman", "glasses", "a hat")),
        ("a portrait of an old man, surrounded by flowers", ("a portrait", "an old man", "flowers")),
        ("black and white photo of a dog in front of a house", ("black and white photo", "a dog", "a house")),
        ("a group of people dancing", ("a group of people",)),
        ("a man walks his dog on the beach. He is happy.", ("a man", "his dog", "the beach", "happy")),
        ("a wooden building next to a painting", ("a wooden building", "a painting")),
        ("1girl, dancing, long hair BREAK forest; night", ("1girl", "dancing", "long hair", "forest", "night")),
        ("a red scarf a pink sweater", ("a red scarf", "a pink sweater")),
        ("1,000 birds, 50mm f/1.8", ("1,000 birds", "50mm f/1.8")),
        ("一个女孩，红色的裙子", ("一个女孩", "红色的裙子")),
        ("Una mujer 🎉, ein Haus", ("Una mujer 🎉", "ein Haus")),
        ("Женщина в красном, ciudad de noche", ("Женщина в красном", "ciudad de noche")),
        ("on a tidy, cozy home table, with soft, warm light, trees", ("a tidy cozy home table", "soft warm light", "trees")),
        ("a red dress, blue eyes", ("a red dress", "blue eyes")),
        ("natural, moody, smooth skin", ("natural", "moody", "smooth skin")),
        ("the sky is calm, cinematic", ("the sky", "calm", "cinematic")),
        ("creating a gentle and sweet atmosphere", ("a gentle and sweet atmosphere",)),
        ("a romantic, soft, and nostalgic mood", ("a romantic soft and nostalgic mood",)),
        ("a happy, and a sad clown", ("a happy", "a sad clown")),
        ("warm and cheerful illustration, hats and scarves", ("warm and cheerful illustration", "hats", "scarves")),
        ("He wears round glasses. She has a scarf that covers her hair", ("round glasses", "a scarf", "her hair")),
        ("a lamp casts its light slowly, floating softly", ("a lamp", "its light", "floating softly")),
        ("soft lighting casting long shadows, neon lighting the street", ("soft lighting", "long shadows", "neon", "the street")),
        ("gentle color grading, a wooden building", ("gentle color grading", "a wooden building")),
        ("a company building the future", ("a company", "the future")),
        ("delicate facial features, dynamic poses", ("delicate facial features", "dynamic poses")),
        ("a man dressed neatly, hair tied in a bun", ("a man", "hair", "a bun")),
        ("replace the cat to show a dog", ("the cat", "a dog")),
        ('a sign that says "OPEN." behind it a cat', ("a sign", "OPEN", "a cat")),
        ("a cup of hot, strong tea", ("a cup of hot strong tea",)),
    ],
)
def test_noun_phrases(prompt, phrases):
    assert decompose(prompt) == phrases


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("(a cat:1.2)", "a cat"),
        ("((a (big:1.3) cat))", "a big cat"),
        ("[a cat] and [a dog:0.5]", "a cat and a dog"),
        ("a cat:1.2), ((b", "a cat, b"),
        ("rem \\(re:zero\\)", "rem (re:zero)"),
        ("embedding:bad-hands_v2 a cat, embedding:x", "a cat,"),
        ("(embedding:bad:1.2) <lora:style:0.8> a cat <LoRA:x>", "a cat"),
        ("at 10:30, 16:9", "at 10:30, 16:9"),
        ("3 < 4 > 2", "3 < 4 > 2"),
        ("(masterpiece) ((best quality:1.2)) a sky", "masterpiece, best quality, a sky"),
    ],
)
def test_notation_of_comfyui_is_stripped(prompt, plain):
    assert " ".join(plain_text(prompt).split()).replace(" ,", ",") == plain


@pytest.mark.parametrize("prompt", ["", "   ", "\n", "()", "((:1.2))", "[]", "<lora:x:1>", "embedding:x", ",,, ;", "(((((", ")))", "\x00"])
@pytest.mark.parametrize("mode", ["phrases", "lines", "off"])
def test_a_prompt_without_text_is_one_empty_phrase(prompt, mode):
    assert decompose(prompt, mode) == ("",)


def test_adjacent_weighted_groups_are_phrases_of_their_own():
    assert decompose("(sky) (stars:1.2)") == ("sky", "stars")


def test_a_prompt_of_small_words_stays_as_it_is():
    assert decompose("the and with") == ("the and with",)


def test_lines_and_off_do_not_cut():
    text = "a man, (a dog:1.2)\r\n\r\na man, a dog\na park and trees"
    assert decompose(text, "lines") == ("a man, a dog", "a park and trees")
    assert decompose("a man and\na dog", "off") == ("a man and a dog",)


def test_unknown_mode_is_an_error():
    with pytest.raises(KBDMError, match="phrases, lines, off"):
        decompose("a", "llm")


def test_repeated_phrases_are_asked_once_in_the_order_of_the_first():
    assert decompose("A cat, a dog, a Cat, a dog, a bird") == ("A cat", "a dog", "a bird")


def test_phrases_beyond_the_bound_share_the_last_one():
    phrases = decompose(", ".join(f"thing{i}" for i in range(40)))
    assert len(phrases) == MAX_PHRASES
    assert phrases[:2] == ("thing0", "thing1")
    assert phrases[-1] == ", ".join(f"thing{i}" for i in range(15, 40))


@pytest.mark.parametrize(
    "unit",
    [
        "a ",
        "(",
        ")",
        "a,",
        "word-",
        "<lora:",
        ":1",
        "embedding:",
        " - ",
        "in the middle ",
        "🎉",
        "\\(",
        "x",
        ": ",
        "walking ",
        "[a:1.2](",
        "的",
        "softly ",
        "cat softly ",
        "a soft, ",
        "soft and ",
        "a cup of ",
    ],
)
def test_ten_thousand_characters_survive(unit):
    """A backtracking rule would hang here."""
    assert 1 <= len(decompose(unit * (10_000 // len(unit)))) <= MAX_PHRASES


def test_random_text_always_gives_plain_different_phrases():
    letters = list("ab ,.;:()[]<>\\\n\t|'\"-1.2🎉é的\x00") + [
        " and ",
        " of ",
        " a ",
        "ing ",
        "BREAK",
        "embedding:",
        "<lora:",
        " in front of ",
    ]
    generator = random.Random(0)
    for _ in range(500):
        prompt = "".join(generator.choices(letters, k=generator.randrange(60)))
        phrases = decompose(prompt)
        assert 1 <= len(phrases) <= MAX_PHRASES
        assert len({each.casefold() for each in phrases}) == len(phrases)
        assert all(each == each.strip() and "\n" not in each for each in phrases)
        assert phrases == ("",) or all(phrases)
        assert decompose(prompt) == phrases
