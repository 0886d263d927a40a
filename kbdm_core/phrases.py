"""Decomposition of a prompt into the phrases that query the knowledge base (the D&C of KB-DMGen), by rules.

"digital art, a person watching a fighter jet" -> ("digital art", "a person", "a fighter jet"), as in the paper's overview figure,
where a language model does it. `lines` takes the phrases of any other splitter, one a line.
"""

from __future__ import annotations

import re

from .errors import KBDMError

DECOMPOSITIONS = ("phrases", "lines", "off")
MAX_PHRASES = 16

_TAG = re.compile(r"<(?:lora|lyco|lycoris|hypernet)\b[^<>\n]{0,300}>|\bembedding:[^\s,()\[\]]+", re.IGNORECASE)
_WEIGHT = re.compile(r":\s?[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s?(?=[)\]])|(?<=[^\W\d]):\d\.\d{1,3}\b")
_BETWEEN_GROUPS = re.compile(r"[)\]]\s?[(\[]")  # "(sky) (stars:1.2)" are two tags
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_ESCAPES = {r"\(": "\ue000", r"\)": "\ue001", r"\[": "\ue002", r"\]": "\ue003"}
_LITERALS = str.maketrans("\ue000\ue001\ue002\ue003", "()[]")
_CLAUSE = re.compile(r"[;|\n，、；。！？—]|(?<!\d),|,(?!\d)|[.!?:](?=\s|$)|\s[-–]+\s|\bBREAK\b")
_EDGES = "\"'“”‘’`.,;!?:*~_ \t"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this these those his her their its my your our some any each every both another several many few one two three four"
)
_ARTICLES = _words("a an the")
_PRONOUNS = _words("it he she they them him himself herself themselves itself i you we us me there here everything something")
_CONJUNCTIONS = _words("and or but while with without who whom whose which that where when as then plus & + nor whereas because if so")
_AUXILIARIES = _words("is are was were be being been am has have had does do did can will would should must")
_PREPOSITIONS = _words(
    "in on at by near under over above below behind beside besides between among amongst amid amidst through throughout across into "
    "onto inside outside within from to toward towards against along alongside around during before after beneath underneath upon "
    "atop via for about like beyond past"
)
_PREPOSITION_PHRASES = re.compile(
    r"\b(?:(?:in|to|at|from|on) the (?:middle|center|centre|edge|top|back|front|side|left|right|bottom|foreground|background) of"
    r"|in front of|on top of|on either side of|because of|in between|as well as|next to|close to|out of|full of|each other|one another)\b",
    re.IGNORECASE,
)
_ADVERBS = _words("up down away back forward forwards backwards together around off out over alone still there")
_COLOURS = _words(
    "red orange yellow green blue purple violet pink brown black white grey gray gold silver golden beige cyan teal turquoise magenta"
)
_DEPICTIONS = _words(
    "portrait photo photograph photography picture image painting drawing illustration sketch render rendering shot close-up closeup "
    "up view depiction engraving watercolor watercolour art artwork poster scene still print mosaic statue sculpture figurine cartoon "
    "selfie silhouette"
)
_NOUNS_IN_ING = _words(
    "painting drawing building wedding evening morning clothing lighting ceiling string spring swing railing earring sling lightning "
    "sibling duckling viking boxing thing something anything nothing everything king ring wing sting being rendering engraving "
    "shading stocking legging dressing pudding darling feeling meeting fencing wrestling surfing skiing crossing landing opening "
    "setting etching styling outing piercing coloring housing parking"
)
_TRANSITIVE = _words(
    "wearing holding riding watching playing carrying eating drinking reading using making doing having showing throwing catching "
    "chasing hugging kissing pushing pulling feeding driving taking facing crossing featuring depicting surrounding covering "
    "overlooking hitting kicking touching reflecting"
)
_FINITE = _words(
    "holds wears rides sits eats drinks reads carries throws catches stands walks runs plays looks watches jumps dances poses leans "
    "gets shows"
)
_PARTICIPLES = _words("made seen worn held taken lit drawn set shown sat hung built written strewn")
_NOT_PARTICIPLES = _words("hundred sacred naked wicked breed creed greed speed steed tweed biped")
_CUTS = _CONJUNCTIONS | _AUXILIARIES | _PREPOSITIONS | {"|"}
_AFTER_VERB = _CUTS | _DETERMINERS | _PRONOUNS | _ADVERBS | {"", "of"}


def decompose(prompt: str, mode: str = "phrases") -> tuple[str, ...]:
    """Split a prompt into 1 to 16 different phrases, in its order: plain text without weights, embeddings and LoRA tags.

    `phrases` cuts it into noun phrases, `lines` takes each line as a phrase, `off` the whole prompt as one. What goes beyond
    16 phrases is joined by commas into the last one. A prompt without text gives ("",). Takes time linear in its length.
    """
    if mode not in DECOMPOSITIONS:
        raise KBDMError(f"decompose is '{mode}'; expected one of {', '.join(DECOMPOSITIONS)}.")
    plain = plain_text(prompt)
    if mode == "phrases":
        found = [phrase for clause in _CLAUSE.split(plain) for phrase in _noun_phrases(clause)]
    else:
        found = plain.split("\n") if mode == "lines" else [plain]
    different: dict[str, str] = {}
    for phrase in (" ".join(each.split()).strip(_EDGES) for each in found):
        if phrase:
            different.setdefault(phrase.casefold(), phrase)
    phrases = tuple(different.values())
    if len(phrases) > MAX_PHRASES:
        phrases = (*phrases[: MAX_PHRASES - 1], ", ".join(phrases[MAX_PHRASES - 1 :]))
    return phrases or ("",)


def plain_text(prompt: str) -> str:
    r"""The prompt without ComfyUI's notation: `(x:1.2)`, `[x]`, brackets nested or unbalanced, `embedding:name`, `<lora:name:1>`.

    Escaped brackets `\(` `\)` become literal ones. Line breaks stay.
    """
    text = _CONTROL.sub(" ", prompt.replace("\r\n", "\n").replace("\r", "\n"))
    for escaped, literal in _ESCAPES.items():
        text = text.replace(escaped, literal)
    text = _WEIGHT.sub("", _TAG.sub(" ", text))
    text = _BETWEEN_GROUPS.sub(", ", text)
    return re.sub(r"[()\[\]]", " ", text).translate(_LITERALS).strip()


def _noun_phrases(clause: str) -> list[str]:
    """The noun phrases of a clause, cut at conjunctions, prepositions and verbs, which are dropped; the clause if nothing else is left."""
    words = _PREPOSITION_PHRASES.sub(" | ", clause).split()
    keys = [word.strip(_EDGES).casefold() if word != "|" else word for word in words]
    phrases: list[str] = []
    piece = _Piece()
    after_verb = False
    for word, key, following in zip(words, keys, [*keys[1:], ""]):
        verb = _is_verb(key, following, piece)
        if key in _ARTICLES and piece.named and piece.last != "of":
            phrases += piece.phrase()
            piece = _Piece()
            piece.add(word, key)
        elif verb or (after_verb and (key in _ADVERBS or key.endswith("ly"))) or _is_cut(key, following, piece):
            phrases += piece.phrase()
            piece = _Piece()
        else:
            piece.add(word, key)
        after_verb = verb
    return phrases + piece.phrase() or [clause]


class _Piece:
    """The noun phrase that grows: its words, its last word, and whether it has more than determiners, or more than pronouns."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.last = ""
        self.named = False
        self.noun = False

    def add(self, word: str, key: str) -> None:
        self.words.append(word)
        self.last = key
        self.named |= key not in _DETERMINERS
        self.noun |= bool(key) and key not in _DETERMINERS and key not in _PRONOUNS

    def phrase(self) -> list[str]:
        """The phrase, or none where the piece names nothing ("the", "it")."""
        return [" ".join(self.words)] if self.noun else []


def _is_cut(key: str, following: str, piece: _Piece) -> bool:
    """Whether the word stands between two phrases. "of" only does after "a photo", and "and" does not in "black and white"."""
    if key == "of":
        return not piece.words or piece.last in _DEPICTIONS
    if key in ("and", "or"):
        return not (piece.last in _COLOURS and following in _COLOURS)
    return key in _CUTS


def _is_verb(key: str, following: str, piece: _Piece) -> bool:
    """Whether the word is the verb after the noun phrase `piece` ("a person watching a ..."), not a part of it ("a smiling woman")."""
    if piece.words and not piece.named:
        return False
    if key.endswith("ing") and len(key) > 4 and key not in _NOUNS_IN_ING:
        return following in _AFTER_VERB or following.endswith("ly") or key in _TRANSITIVE
    if key in _PARTICIPLES or (key.endswith("ed") and len(key) > 4 and key not in _NOT_PARTICIPLES):
        return following in _PREPOSITIONS or following in ("of", "with", "|")
    return piece.named and key in _FINITE and following in _AFTER_VERB
