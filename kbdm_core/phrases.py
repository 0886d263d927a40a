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
_BETWEEN_GROUPS = re.compile(r"[)\]]\s?[(\[]|(?<=\bquality)[)\]]+\s|(?<=\bmasterpiece)[)\]]+\s")  # "(sky) (stars)", "(best quality) sky"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_ESCAPES = {r"\(": "\ue000", r"\)": "\ue001", r"\[": "\ue002", r"\]": "\ue003"}
_LITERALS = str.maketrans("\ue000\ue001\ue002\ue003", "()[]")
_CLAUSE = re.compile(r"([;|\n，、；。！？—]|(?<!\d),|,(?!\d)|[.!?:][\"”’]?(?=\s|$)|\s[-–]+\s|\bBREAK\b)")
_EDGES = "\"'“”‘’`.,;!?:*~_ \t"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words("a an the this these those his her their its my your our some any each every both another several many few one two three four")
_ARTICLES = _words("a an the")
_PRONOUNS = _words("it he she they them him himself herself themselves itself i you we us me there here everything something")
_CONJUNCTIONS = _words("and or but while with without who whom whose which that where when as then plus & + nor whereas because if so not also")
_SUBJECTS = _words("it he she they i you we who which that")
_AUXILIARIES = _words(
    "is are was were be being been am has have had does do did can will would should must may might could cannot "
    "don't don’t it's it’s she's she’s he's he’s they're they’re"
)
_PREPOSITIONS = _words(
    "in on at by near under over above below behind beside besides between among amongst amid amidst through throughout across into onto inside "
    "outside within from to toward towards against along alongside around during before after beneath underneath upon atop via for about like beyond "
    "past despite off per"
)
_PREPOSITION_PHRASES = re.compile(
    r"\b(?:(?:in|to|at|from|on) the (?:middle|center|centre|edge|top|back|front|side|left|right|bottom|foreground|background) of"
    r"|in front of|on top of|on either side of|because of|in between|as well as|next to|close to|out of|full of|due to|such as|instead of|rather than"
    r"|each other|one another)\b",
    re.IGNORECASE,
)
_ADVERBS = _words(
    "up down away back forward forwards backwards upward upwards downward downwards outward inward sideways ahead together around off out over alone "
    "still there everywhere"
)
_NO_ADVERBS = _words(  # in -ly
    "lovely lively friendly elderly curly early family butterfly dragonfly firefly lily jelly belly holy ugly silly fly daily anomaly assembly "
    "wrinkly ghostly painterly woolly bubbly smelly italy july lonely deadly heavenly"
)
_ADJECTIVES = _words(  # those that their ending does not betray
    "young old big large small little long short tall huge tiny wide narrow deep thick thin high low soft hard warm cool cold hot dark bright pale "
    "clear clean crisp sharp smooth rough rich lush calm quiet bold strong gentle subtle simple serene delicate intricate elegant ornate vintage "
    "vibrant radiant distant brilliant abundant ancient mature muted vivid lavish sheer matte sleek cute sweet fresh pure slim slender flat loose "
    "tight stark intense dense diffuse tidy cozy cosy shiny fluffy rocky hazy dreamy moody wavy messy fuzzy flaky creamy sunny cloudy foggy misty "
    "rainy windy dusty rusty glossy heavy happy pretty airy rosy stormy icy snowy mossy leafy velvety silky smoky sandy muddy dirty curly lovely "
    "lively friendly ugly painterly luminous minimalist modern futuristic"
)
_ADJECTIVE = re.compile(r"(?:ful|ous|ive|ish|less|able|ible|escent|lucent|sparent|ic|al|ed|ese|ing)$")
_NO_ADJECTIVES = _words(
    "animal crystal metal medal portal festival carnival petal coral mural cathedral hospital pedestal signal music fabric mosaic attic magic comic "
    "graphic aesthetic plastic ceramic acrylic traffic tunic relic olive archive perspective fish dish polish handful table vegetable cable stable "
    "cheese"
)
_COLOURS = _words("red orange yellow green blue purple violet pink brown black white grey gray gold silver golden beige cyan teal turquoise magenta")
_DEPICTIONS = _words(
    "portrait photo photograph photography picture image painting drawing illustration sketch render rendering shot close-up closeup up view "
    "depiction engraving watercolor watercolour art artwork poster scene still print mosaic statue sculpture figurine cartoon selfie silhouette"
)
_NOUNS_IN_ING = _words(
    "painting drawing building wedding evening morning clothing lighting ceiling string spring swing railing earring sling lightning sibling "
    "duckling viking boxing thing something anything nothing everything king ring wing sting being rendering engraving shading stocking legging "
    "dressing pudding darling feeling meeting fencing wrestling surfing skiing crossing landing opening setting etching styling outing piercing "
    "coloring housing parking grading blending layering storytelling framing raytracing tracing mapping stitching knitting flooring seating bedding "
    "awning writing lining smocking modeling advertising engineering texturing branding"
)
_TRANSITIVE = _words(
    "wearing holding riding watching playing carrying eating drinking reading using making doing having showing throwing catching chasing hugging "
    "kissing pushing pulling feeding driving taking facing crossing featuring depicting surrounding covering overlooking hitting kicking touching "
    "reflecting casting creating illuminating emphasizing emphasising revealing giving adding highlighting evoking enhancing capturing forming "
    "placing containing preserving maintaining preventing ensuring"
)
_FINITE = _words(
    "holds wears rides sits eats drinks reads carries throws catches stands walks runs plays looks watches jumps dances poses leans gets shows rests "
    "features casts fills fits hangs flows falls floats rises shines sparkles moves turns"
)
_VERBS = _words(  # hardly ever nouns
    "create creates include includes contain contains enhance enhances emphasize emphasizes evoke evokes convey conveys exude exudes give gives "
    "bring brings become becomes appear appears seem seems remain remains illuminate illuminates amplifies mimics suggests reveals surrounds "
    "captures wears makes ensures maintains says begin begins"
)
_IMPERATIVES = _words("add change create generate keep let make put remove replace rotate turn use")
_PARTICIPLES = _words("made seen worn held taken lit drawn set shown sat hung built written strewn tied woven")
_NOT_PARTICIPLES = _words("hundred sacred naked wicked breed creed greed speed steed tweed biped")
_CUTS = _CONJUNCTIONS | _AUXILIARIES | _PREPOSITIONS | {"|"}
_AFTER_FINITE = _PREPOSITIONS | _DETERMINERS | _PRONOUNS | _ADVERBS | {"with", "as", "|"}
_AFTER_COMMA = _CUTS - {"and", "or", "but"} | _DETERMINERS | _PRONOUNS | {""}  # no adjective's noun comes after them
_AFTER_VERB = _CUTS | _DETERMINERS | _PRONOUNS | _ADVERBS | {"", "of"}


def decompose(prompt: str, mode: str = "phrases") -> tuple[str, ...]:
    """Split a prompt into 1 to 16 different phrases, in its order: plain text without weights, embeddings and LoRA tags.

    `phrases` cuts it into noun phrases, `lines` takes each line as a phrase, `off` the whole prompt as one. What goes beyond
    16 phrases is joined by commas into the last one. A prompt without text gives ("",). Takes time linear in its length.
    """
    if mode not in DECOMPOSITIONS:
        raise KBDMError(f"decompose is '{mode}'; expected one of {', '.join(DECOMPOSITIONS)}.")
    plain = plain_text(prompt)
    found = _noun_phrases(plain) if mode == "phrases" else plain.split("\n") if mode == "lines" else [plain]
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


def _noun_phrases(text: str) -> list[str]:
    """The noun phrases of all clauses. "a tidy, cozy table" goes on over its comma, and the comma is dropped."""
    phrases: list[str] = []
    piece = _Piece()
    parts = [*_CLAUSE.split(text), "", ""]
    for clause, mark, after in zip(parts[::2], parts[1::2], parts[2::2]):
        first = _key(after.split(maxsplit=1)[0]) if after.strip() else ""
        piece = _clause_phrases(clause, piece, mark == "," and first not in _AFTER_COMMA, phrases)
    return phrases


def _clause_phrases(clause: str, piece: _Piece, goes_on: bool, phrases: list[str]) -> _Piece:
    """Append the noun phrases of a clause, cut at conjunctions, prepositions and verbs, which are dropped; the clause if nothing else is left.

    `piece` was begun before the clause. Returns what is begun for the next one.
    """
    words = _PREPOSITION_PHRASES.sub(" | ", clause).split()
    keys = [_key(word) for word in words]
    before = len(phrases)
    after_verb = False
    for word, key, previous, following in zip(words, keys, ["", *keys], [*keys[1:], ""]):
        verb = _is_verb(key, previous, following, piece)
        if key in _ARTICLES and piece.named and piece.last != "of":
            phrases += piece.phrase()
            piece = _Piece(asks_noun=True)
            piece.add(word, key)
        elif verb or (after_verb and (key in _ADVERBS or _is_adverb(key))) or _is_cut(key, following, piece):
            phrases += piece.phrase()
            piece = _Piece(asks_noun=verb or key == "of" or key in _PREPOSITIONS or key in ("with", "without", "|"))
        else:
            piece.add(word, key)
        after_verb = verb
    if goes_on and piece.asks_noun and piece.adjectives and piece.named:
        return piece
    phrases += piece.phrase()
    if len(phrases) == before:
        phrases.append(clause)
    return _Piece()


def _key(word: str) -> str:
    return word.strip(_EDGES).casefold() if word != "|" else word


class _Piece:
    """The noun phrase that grows: its words and its last word's key.

    `named`: it has more than determiners; `noun`: more than pronouns and adverbs, too; `adjectives`: it, or what follows "of" in it, has no noun yet;
    `asks_noun`: that part began with a determiner or after a preposition or verb, so that a noun is to come.
    """

    def __init__(self, asks_noun: bool = False) -> None:
        self.words: list[str] = []
        self.last = ""
        self.named = False
        self.noun = False
        self.adjectives = True
        self.asks_noun = asks_noun

    def add(self, word: str, key: str) -> None:
        determiner, first = key in _DETERMINERS, not self.words
        if key == "of" or (first and determiner):
            self.asks_noun = self.adjectives = True
        else:
            self.adjectives &= determiner or _is_adverb(key) or _is_adjective(key) or (not first and key in _COLOURS)
        self.words.append(word)
        self.last = key
        self.named |= not determiner
        self.noun |= bool(key) and not determiner and key not in _PRONOUNS and not _is_adverb(key)

    def phrase(self) -> list[str]:
        """The phrase without adverbs at its end, or none where the piece names nothing ("the", "it", "softly")."""
        while self.noun and _is_adverb(_key(self.words[-1])):
            self.words.pop()
        return [" ".join(self.words)] if self.noun else []


def _is_adverb(key: str) -> bool:
    return key.endswith("ly") and len(key) > 4 and key not in _NO_ADVERBS


def _is_adjective(key: str) -> bool:
    """Whether the word, or its part after the last hyphen, is an adjective rather than a noun, by list or ending."""
    key = key[key.rfind("-") + 1 :]
    return key in _ADJECTIVES or bool(_ADJECTIVE.search(key) and len(key) > 4 and key not in _NO_ADJECTIVES and not _is_noun_in_ing(key))


def _is_noun_in_ing(key: str) -> bool:
    return key in _NOUNS_IN_ING or key.endswith(("lighting", "painting", "building"))  # "backlighting"


def _is_cut(key: str, following: str, piece: _Piece) -> bool:
    """Whether the word stands between two phrases. "of" does after "a photo" only, "and" not in "a gentle and sweet smile"."""
    if key == "of":
        return not piece.words or piece.last in _DEPICTIONS
    if key in ("and", "or", "but"):
        colours = piece.last in _COLOURS and following in _COLOURS
        adjectives = piece.adjectives and piece.named and following not in _AFTER_VERB and (piece.asks_noun or _is_adjective(following))
        return not (colours or adjectives)
    return key in _CUTS


def _is_verb(key: str, previous: str, following: str, piece: _Piece) -> bool:
    """Whether the word is the verb after the noun phrase `piece` ("a person watching a ..."), not a part of it ("a smiling woman")."""
    if key in _VERBS or (previous in _SUBJECTS and key not in _CUTS and key.endswith("s") and not key.endswith("ss")):
        return True
    if piece.words and not piece.named:
        return False
    if not piece.words and (key in _IMPERATIVES or previous == "to"):
        return following in _DETERMINERS
    after_noun = piece.noun and not piece.adjectives
    if _is_noun_in_ing(key):
        return after_noun and following in _DETERMINERS and key not in _DEPICTIONS
    if key.endswith("ing") and len(key) > 4:
        return following in _AFTER_VERB or _is_adverb(following) or key in _TRANSITIVE
    if key in _PARTICIPLES or (key.endswith("ed") and len(key) > 4 and key not in _NOT_PARTICIPLES):
        return following in _PREPOSITIONS or following in ("of", "with", "|") or (after_noun and (following in _ADVERBS or _is_adverb(following)))
    return after_noun and key in _FINITE and (_is_adverb(following) or following in _AFTER_FINITE)
