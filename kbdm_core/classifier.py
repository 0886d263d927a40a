"""The token classifier: from one text vector to a distribution over the codebook at every position (Eq. 7-8)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .safetensors_file import TensorFile

HIDDEN_CHANNELS = 256
PREFIX = "classifier."
LOSS_CHUNK = 64  # positions a time: 16 MiB of float32 logits for 64 captions at K = 1024


class FactorisedClassifier(nn.Module):
    """y[b,n] = W_out gelu(W_in z_t[b] + p_n), p_n a learned position (Eq. 7). z_t [B,C] -> y [B,N,K] logits, or [B,n,K] of n positions.

    The positions share W_in and W_out: C=768, N=256, K=1024 needs 0.5 M weights, where a single Linear(C, N K) has 201 M.
    """

    kind = "factorised"

    def __init__(self, channels: int, tokens: int, entries: int, hidden: int = HIDDEN_CHANNELS):
        super().__init__()
        self.input = nn.Linear(channels, hidden, bias=False)  # p_n holds the bias
        self.position = nn.Parameter(torch.randn(tokens, hidden))  # as large as W_in z_t: positions must be able to gate it
        self.output = nn.Linear(hidden, entries)

    def forward(self, z_t: Tensor, positions: slice = slice(None)) -> Tensor:
        hidden = nn.functional.gelu(self.input(z_t)[:, None] + self.position[positions])  # [B, n, hidden]
        return self.output(hidden)  # [B, n, K]


class MLPClassifier(nn.Module):
    """The literal MLP of Eq. 7: Linear, GELU, Linear to all N K logits. z_t [B,C] -> y [B,N,K] logits, or [B,n,K] of n positions."""

    kind = "mlp"

    def __init__(self, channels: int, tokens: int, entries: int, hidden: int = HIDDEN_CHANNELS):
        super().__init__()
        self.shape = (tokens, entries)
        self.input = nn.Linear(channels, hidden)
        self.output = nn.Linear(hidden, tokens * entries)

    def forward(self, z_t: Tensor, positions: slice = slice(None)) -> Tensor:
        weight = self.output.weight.unflatten(0, self.shape)[positions]  # [n, K, hidden]
        bias = self.output.bias.unflatten(0, self.shape)[positions]  # [n, K]
        hidden = nn.functional.gelu(self.input(z_t))  # [B, hidden]
        return nn.functional.linear(hidden, weight.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape)  # [B, n, K]


Classifier = FactorisedClassifier | MLPClassifier
CLASSIFIERS: dict[str, type[Classifier]] = {each.kind: each for each in (FactorisedClassifier, MLPClassifier)}


def classifier_loss(classifier: Callable[..., Tensor], z_t: Tensor, a: Tensor, chunk: int = LOSS_CHUNK) -> Tensor:
    """Cross-entropy of the logits with the true entries (Eq. 8), mean over batch and positions. z_t [B,C], a int64 [B,N] -> scalar, float32.

    Runs over `chunk` positions at a time and computes each chunk again in the backward pass: of the [B,N,K] logits, only
    [B,chunk,K] exist at a time.
    """

    def part(positions: slice) -> Tensor:
        y = classifier(z_t, positions)  # [B, chunk, K]
        y = y.to(torch.promote_types(y.dtype, torch.float32))  # a sum over thousands of positions is too much for half precision
        return nn.functional.cross_entropy(y.flatten(0, 1), a[:, positions].flatten(), reduction="sum")

    slices = [slice(start, start + chunk) for start in range(0, a.shape[1], chunk)]
    return sum(checkpoint(part, positions, use_reentrant=False) for positions in slices) / a.numel()


def classifier_from_tensors(kind: object, file: TensorFile, channels: int, tokens: int, entries: int) -> Classifier:
    """The classifier stored under `classifier.*`, in float32, for inference; its hidden width comes from the tensors.

    channels is the width of z_t, tokens N, entries K. Raises FileFormatError for an unknown kind and for a missing, misshapen
    or unknown tensor.
    """
    if not isinstance(kind, str) or kind not in CLASSIFIERS:
        raise file.fail("config 'classifier.kind'", " or ".join(repr(each) for each in CLASSIFIERS), repr(kind))
    hidden = file.tensor(f"{PREFIX}input.weight", (None, channels)).shape[0]
    with torch.device("meta"):
        classifier = CLASSIFIERS[kind](channels, tokens, entries, hidden)
    shapes = {key: tuple(value.shape) for key, value in classifier.state_dict().items()}
    unknown = {key for key in file.tensors if key.startswith(PREFIX)} - {PREFIX + key for key in shapes}
    if unknown:
        raise file.fail(f"tensors of the {kind} classifier", sorted(PREFIX + key for key in shapes), f"also {sorted(unknown)}")
    tensors = {key: file.tensor(PREFIX + key, shape).float() for key, shape in shapes.items()}
    classifier.load_state_dict(tensors, assign=True)
    return classifier.requires_grad_(False).eval()
