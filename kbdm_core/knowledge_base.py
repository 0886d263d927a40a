"""The knowledge base: one file of a codebook and a classifier that answers text with visual tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .classifier import HIDDEN_CHANNELS, PREFIX, Classifier, FactorisedClassifier, classifier_from_tensors
from .errors import KBDMError, MismatchError
from .safetensors_file import FLOAT_DTYPES, TensorFile, read, tensor_sha256, write

FORMAT = "kbdm.knowledge_base"
FORMAT_VERSION = 1
COMPOSITIONS = ("mean", "confidence")


@dataclass(frozen=True, eq=False)
class Answer:
    """What the knowledge base answers to P phrases: fused [1,N,C] tokens; per phrase the entries' indices [P,N] and confidence [P,N]."""

    fused: Tensor
    indices: Tensor
    confidence: Tensor


@dataclass(frozen=True, eq=False)
class KBTokens:
    """KBDM_TOKENS: the tokens [1,N,C], float32, of the prompt and of the negative prompt, and where they come from.

    indices [P,N] int64 and confidence [P,N] belong to the positive `phrases`. `codebook_sha256` is what an adapter compares;
    `knowledge_base` is the name that its error messages show.
    """

    positive: Tensor
    negative: Tensor
    codebook_sha256: str
    knowledge_base: str
    grid: tuple[int, int]
    phrases: tuple[str, ...]
    indices: Tensor
    confidence: Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """Where a knowledge base comes from: the CLIP and its token space (Eq. 2), and a summary of its training."""

    clip_model: str = "ViT-L-14-quickgelu"
    clip_pretrained: str = "openai"
    space: str = "joint"
    training: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class KnowledgeBase:
    """Codebook [K,C], classifier z_t -> [N,K] and text_projection [C_text,C_z], float32 on the CPU; N tokens lie on grid (h,w).

    In the joint space of the paper C_z = C. `codebook_sha256` is the hash of the codebook as it was trained, in float32.
    """

    codebook: Tensor
    classifier: Classifier
    text_projection: Tensor
    grid: tuple[int, int]
    codebook_sha256: str
    name: str
    source: Source = Source()

    def project(self, pooled: Tensor) -> Tensor:
        """The text embedding z_t = pooled @ text_projection, float32. pooled [P,C_text] is CLIP's unprojected EOS state -> [P,C_z].

        Raises MismatchError if the pooled text has another width.
        """
        width = self.text_projection.shape[0]
        if pooled.shape[-1] != width:
            raise MismatchError(
                f"The connected CLIP gives pooled text of width {pooled.shape[-1]}, but knowledge base '{self.name}' was built with the "
                f"text encoder of {self.source.clip_model}, which gives width {width}. Connect the CLIP of "
                f"{'an SD1.5 checkpoint (CLIP-L)' if width == 768 else 'the checkpoint that the knowledge base was made for'}; "
                "SDXL, SD2 and SD3 checkpoints have other text encoders."
            )
        return pooled.to(self.text_projection) @ self.text_projection

    @torch.no_grad()
    def query(self, z_t: Tensor, compose: str = "mean", temperature: float = 0.0) -> Answer:
        """Retrieve tokens for each phrase (Eq. 7) and fuse them per position. z_t [P,C_z] -> Answer with fused [1,N,C].

        Temperature 0 takes the most probable entry, z_q = e[a]; T > 0 the mean entry under softmax(y / T). Confidence is the
        probability of the most probable entry at T = 1. Phrases are fused by their mean, or weighted by confidence per position.
        """
        if compose not in COMPOSITIONS:
            raise KBDMError(f"compose is '{compose}'; expected one of {', '.join(COMPOSITIONS)}.")
        if not temperature >= 0:
            raise KBDMError(f"temperature is {temperature}; expected 0 (the most probable entry) or a positive number.")
        y = self.classifier(z_t)  # [P, N, K]
        highest, indices = y.max(-1)  # [P, N]
        confidence = (highest - y.logsumexp(-1)).exp()  # [P, N]
        weights = confidence if compose == "confidence" else torch.ones_like(confidence)
        weights = weights / weights.sum(0)  # [P, N]
        if temperature == 0:  # gather and weighted sum in one, without a [P, N, C] in between
            fused = nn.functional.embedding_bag(indices.T, self.codebook, per_sample_weights=weights.T, mode="sum")  # [N, C]
        else:
            probability = ((y - highest[..., None]) / temperature).softmax(-1)  # [P, N, K]
            fused = (weights[..., None] * probability).sum(0) @ self.codebook  # [N, C], by linearity one product for all phrases
        return Answer(fused[None], indices, confidence)


def load_knowledge_base(path: str | os.PathLike) -> KnowledgeBase:
    """Read a knowledge base stored in float32, float16 or bfloat16; its name is the file's.

    Raises FileFormatError, naming file, key, expected and found, for everything that is not a whole and sound knowledge base.
    """
    file = read(path, FORMAT, FORMAT_VERSION)
    for key, tensor in file.tensors.items():
        if tensor.numel() == 0:
            raise file.fail(f"tensor '{key}'", "at least one number", f"shape {list(tensor.shape)}")
        if tensor.dtype in FLOAT_DTYPES and not tensor.isfinite().all():
            raise file.fail(f"tensor '{key}'", "finite numbers", f"{int((~tensor.isfinite()).sum())} NaN or infinite ones")
    grid = _grid(file)
    codebook = file.tensor("codebook.weight", (None, None))
    text_projection = file.tensor("text_projection", (None, None))
    kind = _table(file, "classifier").get("kind")
    classifier = classifier_from_tensors(kind, file, text_projection.shape[1], grid[0] * grid[1], codebook.shape[0])
    return KnowledgeBase(
        codebook=codebook.float(),
        classifier=classifier,
        text_projection=text_projection.float(),
        grid=grid,
        codebook_sha256=_codebook_sha256(file, codebook),
        name=file.path.name,
        source=Source(_text(file, "clip_model"), _text(file, "clip_pretrained"), _text(file, "space"), _table(file, "training")),
    )


def save_knowledge_base(path: str | os.PathLike, knowledge_base: KnowledgeBase, dtype: torch.dtype = torch.float32) -> None:
    """Write a knowledge base in float32, float16 or bfloat16; the codebook's hash stays that of its float32 training result."""
    classifier = knowledge_base.classifier
    tensors = {"codebook.weight": knowledge_base.codebook, "text_projection": knowledge_base.text_projection}
    tensors |= {PREFIX + key: value for key, value in classifier.state_dict().items()}
    source = knowledge_base.source
    config = {
        "clip_model": source.clip_model,
        "clip_pretrained": source.clip_pretrained,
        "space": source.space,
        "grid": list(knowledge_base.grid),
        "classifier": {
            "kind": classifier.kind,
            "channels": classifier.input.in_features,
            "hidden": classifier.input.out_features,
            "tokens": knowledge_base.grid[0] * knowledge_base.grid[1],
            "entries": len(knowledge_base.codebook),
        },
        "training": source.training,
    }
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "codebook_sha256": knowledge_base.codebook_sha256}
    write(path, {key: tensor.to(dtype) for key, tensor in tensors.items()}, metadata, config)


def fresh_knowledge_base(
    entries: int = 1024,
    grid: tuple[int, int] = (16, 16),
    width: int = 768,
    text_width: int = 768,
    seed: int = 0,
    classifier: type[Classifier] = FactorisedClassifier,
    hidden: int = HIDDEN_CHANNELS,
) -> KnowledgeBase:
    """An untrained knowledge base, the same for the same seed: what the trainer starts from and tests ask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codebook = torch.randn(entries, width)
        text_projection = torch.randn(text_width, width) * text_width**-0.5
        head = classifier(width, grid[0] * grid[1], entries, hidden).requires_grad_(False).eval()
    return KnowledgeBase(codebook, head, text_projection, grid, tensor_sha256(codebook), "fresh", Source(training={"stage": "untrained"}))


def _grid(file: TensorFile) -> tuple[int, int]:
    grid = file.config.get("grid")
    if not (isinstance(grid, list) and len(grid) == 2 and all(type(side) is int and 0 < side <= 1024 for side in grid)):
        raise file.fail("config 'grid'", "[height, width] of the tokens, two integers from 1 to 1024", repr(grid))
    return grid[0], grid[1]


def _text(file: TensorFile, key: str) -> str:
    value = file.config.get(key)
    if not isinstance(value, str):
        raise file.fail(f"config '{key}'", "text", repr(value))
    return value


def _table(file: TensorFile, key: str) -> dict:
    value = file.config.get(key)
    if not isinstance(value, dict):
        raise file.fail(f"config '{key}'", "a JSON object", repr(value))
    return value


def _codebook_sha256(file: TensorFile, codebook: Tensor) -> str:
    """The hash that the file states; where the codebook is still float32, it must be right."""
    stated = file.metadata.get("codebook_sha256", "")
    if len(stated) != 64 or not set(stated) <= set("0123456789abcdef"):
        raise file.fail("metadata 'codebook_sha256'", "64 hexadecimal digits", repr(stated))
    if codebook.dtype == torch.float32 and (actual := tensor_sha256(codebook)) != stated:
        raise file.fail("tensor 'codebook.weight'", f"values of SHA-256 {stated}", f"{actual}; the file is damaged")
    return stated
