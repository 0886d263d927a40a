"""KB Text Query: what the knowledge base answers to a prompt, phrase by phrase."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from ..kbdm_core import phrases as splitter
from ..kbdm_core.errors import MismatchError
from ..kbdm_core.knowledge_base import COMPOSITIONS, KBTokens, KnowledgeBase

CACHED_PHRASES = 512


class PhraseCache:
    """CLIP's unprojected pooled text of the phrases asked last, by CLIP (its weights' patches_uuid) and phrase."""

    def __init__(self, size: int = CACHED_PHRASES):
        self.size = size
        self._pooled: OrderedDict[tuple[Any, str], Tensor] = OrderedDict()

    def pooled(self, clip: Any, phrases: tuple[str, ...]) -> Tensor:
        """The pooled text [P,C_text], float32 on the CPU, of each phrase; encodes only those that are new to this CLIP."""
        return torch.cat([self._one(clip, phrase) for phrase in phrases])

    def _one(self, clip: Any, phrase: str) -> Tensor:
        key = (clip.patcher.patches_uuid, phrase)
        if key not in self._pooled:
            self._pooled[key] = encode(clip, phrase)
        self._pooled.move_to_end(key)
        pooled = self._pooled[key]
        while len(self._pooled) > self.size:
            self._pooled.popitem(last=False)
        return pooled


def encode(clip: Any, phrase: str) -> Tensor:
    """CLIP's pooled text before its projection [1,C_text], float32 on the CPU. Raises MismatchError if it gives none.

    Brackets of the phrase are text, not weights. Pooled text is that of the first 75 tokens: later chunks are not encoded.
    """
    tokens = clip.tokenize(phrase.replace("(", r"\(").replace(")", r"\)"))
    if isinstance(tokens, dict):
        tokens = {encoder: chunks[:1] for encoder, chunks in tokens.items()}
    _, pooled = clip.encode_from_tokens(tokens, return_pooled="unprojected")
    if pooled is None:
        raise MismatchError(
            "The connected CLIP gives no pooled text (as T5 and other language models). KB Text Query needs the CLIP-L text encoder "
            "of an SD1.5 checkpoint: connect the CLIP of Load Checkpoint."
        )
    return pooled.detach().to("cpu", torch.float32)


class KBDMTextQuery:
    """ComfyUI node: decomposes a prompt, queries the knowledge base (Eq. 7) and fuses the answers."""

    CATEGORY = "KB-DM"
    DESCRIPTION = (
        "Splits the prompt into phrases, asks the knowledge base for visual tokens of each and fuses the answers. "
        "Connect kb_tokens to KB-DM Adapter Apply, and look at them with Preview KB Tokens."
    )
    SEARCH_ALIASES = ("kb-dmgen", "kbdm", "knowledge base query", "prompt decomposition", "visual tokens")
    RETURN_TYPES = ("KBDM_TOKENS", "STRING")
    RETURN_NAMES = ("kb_tokens", "phrases")
    OUTPUT_TOOLTIPS = ("The tokens of the prompt and of the negative prompt.", "The phrases of the prompt that were asked, a line each.")
    FUNCTION = "query"

    _cache = PhraseCache()

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "knowledge_base": ("KBDM_KNOWLEDGE_BASE", {"tooltip": "From Load Knowledge Base."}),
                "clip": ("CLIP", {"tooltip": "The text encoder of the SD1.5 checkpoint, also with LoRAs. CLIP skip has no effect here."}),
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "The prompt, usually the same as that of CLIP Text Encode. Weights and embeddings are ignored.",
                    },
                ),
                "negative_text": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "The prompt whose tokens the negative conditioning gets. Adapters are trained with an empty one.",
                    },
                ),
                "decompose": (
                    list(splitter.DECOMPOSITIONS),
                    {
                        "default": "phrases",
                        "tooltip": "phrases: split into noun phrases by rules. lines: each line is a phrase, for LLM nodes that split. "
                        "off: the whole prompt is one phrase. At most 16 phrases; the last takes the rest.",
                    },
                ),
                "compose": (
                    list(COMPOSITIONS),
                    {
                        "default": "mean",
                        "tooltip": "mean: all phrases weigh the same. confidence: at each position, the surer phrases weigh more.",
                    },
                ),
                "temperature": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "0: the most probable entry of the codebook, as in the paper. Above: entries blended by probability; "
                        "1 is the classifier's own, higher is softer.",
                    },
                ),
            }
        }

    def query(
        self,
        knowledge_base: KnowledgeBase,
        clip: Any,
        text: str,
        negative_text: str,
        decompose: str,
        compose: str,
        temperature: float,
    ) -> tuple[KBTokens, str]:
        if clip is None:
            raise MismatchError(
                "The clip input of KB Text Query is empty: this checkpoint has no text encoder. Use an SD1.5 checkpoint that has one, "
                "or connect Load CLIP with a CLIP-L file."
            )
        phrases = splitter.decompose(text, decompose)
        positive, negative = (
            knowledge_base.query(knowledge_base.project(self._cache.pooled(clip, each)), compose, temperature)
            for each in (phrases, splitter.decompose(negative_text, decompose))
        )
        tokens = KBTokens(
            positive=positive.fused,
            negative=negative.fused,
            codebook_sha256=knowledge_base.codebook_sha256,
            knowledge_base=knowledge_base.name,
            grid=knowledge_base.grid,
            phrases=phrases,
            indices=positive.indices,
            confidence=positive.confidence,
        )
        return tokens, "\n".join(phrases)
