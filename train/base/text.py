"""The frozen text encoder: prompts as SD1.5's hosts read them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import open_clip
import torch
from torch import Tensor
from transformers import CLIPTextModel

from kbdm_core.errors import KBDMError, MismatchError
from train.base.checkpoint import BaseFile, text_encoder_of
from train.base.text_tower import END, filled_up, text_model

LOCAL = "local-dir:"
MOST_TOKENS = 75  # of a prompt, between the first token and the last


class TextEncoder:
    """Tokens, hidden states and pooled states of prompts. A prompt is cut at 75 tokens.

    fingerprint: hash of the weights, for caches of what it says.
    """

    def __init__(self, model: CLIPTextModel):
        self.model = model
        self.tokenise = open_clip.SimpleTokenizer()  # SD1.5's, whose vocabulary comes with the package

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> [B,77] int64, filled up by the end token as SD1.5's hosts do."""
        return filled_up(self.tokenise(list(prompts)))

    def fitting(self, prompt: str) -> str:
        """The prompt, or of one of more than 75 tokens what is read of it: hosts would read all, and in their own way."""
        tokens, kept = self.tokenise.encode(prompt), MOST_TOKENS
        while len(tokens) > MOST_TOKENS:
            prompt = self.tokenise.decode(tokens[:kept]).strip()  # half a word at its end may come to be more tokens
            tokens, kept = self.tokenise.encode(prompt), kept - 1
        return prompt

    @torch.no_grad()
    def states(self, tokens: Tensor) -> Tensor:
        """What the UNet attends to: tokens [B,77] -> [B,77,C], after the final norm."""
        return self.model(tokens.to(self.device)).last_hidden_state

    @torch.no_grad()
    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """The unprojected state of the end token, float32. B prompts -> [B,C]."""
        tokens = self.tokens(prompts)
        states = self.states(tokens).float()
        return states[torch.arange(len(tokens)), (tokens == END).int().argmax(-1)]

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def text_encoder(file: BaseFile, place: str) -> TextEncoder:
    """The checkpoint's own text encoder, or that of an OpenCLIP model saved as local-dir:FOLDER.

    Raises KBDMError if it is not there, MismatchError if it is not the UNet's.
    """
    found = TextEncoder(text_encoder_of(file) if not place else _open_clip(place))
    if found.width != file.text_width:
        of = f"base.text_encoder {place}" if place else "its text encoder"
        raise MismatchError(
            f"The UNet of {file.path.name} attends to text states of width {file.text_width}, but {of} gives {found.width}; "
            "choose the text encoder that it was trained with."
        )
    return found


def _open_clip(place: str) -> CLIPTextModel:
    if not place.startswith(LOCAL):
        raise KBDMError(f"base.text_encoder is '{place}'; expected nothing (the checkpoint's own), or {LOCAL}FOLDER with an OpenCLIP model.")
    try:
        clip = open_clip.create_model(place).eval()
    except Exception as error:  # whatever OpenCLIP meets in a folder
        raise KBDMError(f"base.text_encoder {place} cannot be loaded ({error}); expected open_clip_config.json and weights there.") from error
    return text_model(clip)
