"""The codebook of the knowledge base: nearest entry, quantisation and its loss (Eq. 2-6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEAREST_CHUNK = 2048  # tokens a time: 8 MiB of float32 distances at K = 1024


@torch.no_grad()
def nearest_entries(z_e: Tensor, codebook: Tensor, chunk: int = NEAREST_CHUNK) -> Tensor:
    """Index of the nearest entry, a = argmin_j ||e_j||^2 - 2 z_e e_j^T (Eq. 2-3). z_e [...,C], codebook [K,C] -> int64 [...].

    ||z_e||^2 is the same for all j and left out. At most `chunk` x K distances exist at a time, in float32 or better; of
    equally near entries one is taken. Runs on the device of its inputs.
    """
    dtype = torch.promote_types(torch.promote_types(z_e.dtype, codebook.dtype), torch.float32)
    entries = codebook.to(dtype)
    squares = entries.square().sum(-1)  # [K]
    tokens = z_e.reshape(-1, z_e.shape[-1])  # [N, C]
    indices = torch.empty(len(tokens), dtype=torch.int64, device=z_e.device)
    for start in range(0, len(tokens), chunk):
        block = tokens[start : start + chunk].to(dtype)
        indices[start : start + chunk] = torch.addmm(squares, block, entries.T, alpha=-2).argmin(-1)
    return indices.reshape(z_e.shape[:-1])


def quantise(z_e: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Replace each token by its nearest entry, z_q = e[a] (Eq. 4-5). z_e [...,C], codebook [K,C] -> (z_q [...,C], a int64 [...]).

    The gather is the product of the paper's one-hot matrix with the codebook, which is never built. z_q has a gradient
    with respect to the codebook and none with respect to z_e, whose encoder is frozen.
    """
    indices = nearest_entries(z_e, codebook)
    return nn.functional.embedding(indices, codebook), indices


def codebook_loss(z_q: Tensor, z_e: Tensor) -> Tensor:
    """Mean squared error of z_q to z_e (Eq. 6), both [...,C] -> scalar."""
    return nn.functional.mse_loss(z_q, z_e)


def usage_entropy(z_e: Tensor, codebook: Tensor, temperature: float = 0.1) -> Tensor:
    """Entropy, in nats, of how z_e [P,C] uses the entries of the codebook [K,C]: 0 if all tokens want one entry, log K if all are used alike.

    A token's soft choice is softmax(-d_j / (T mean_j d_j)), d_j how much further entry j is than the nearest one, in squared distance:
    a choice that does not depend on the scale of tokens or entries. Its negative, weighted, is the optional term against collapse.
    Has a gradient on the codebook.
    """
    distances = torch.addmm(codebook.square().sum(-1), z_e, codebook.T, alpha=-2)  # [P, K], without ||z_e||^2, the same for all j
    further = distances - distances.amin(-1, keepdim=True)
    scale = further.mean(-1, keepdim=True).clamp_min(1e-12)
    usage = (-further / (temperature * scale)).softmax(-1).mean(0)  # [K]
    return -(usage * usage.clamp_min(1e-12).log()).sum()
