"""Attention with a soft mask on its logits (Eq. 11) without an N x N tensor: products with the mask move into queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .soft_mask import soft_mask

AXES = ("key", "query", "both")
BRANCH_AXES = ("union", "key")
SMALL_LOGITS = 1 << 25  # numbers, below which writing the logits out costs little memory


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Plain multi-head attention. q [B,N,c], k and v [B,M,c] -> [B,N,c]; c is split into `heads`."""
    split = [x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v)]  # [B, heads, N, c/heads]
    if q.device.type == "cpu" and q.dtype != torch.float32 and heads * q.shape[0] * q.shape[1] * k.shape[1] <= SMALL_LOGITS:
        q, k, v = split  # PyTorch's fused kernels take twice as long here
        return (torch.softmax(q * q.shape[-1] ** -0.5 @ k.mT, dim=-1) @ v).transpose(1, 2).flatten(2)
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def scale_tokens(q: Tensor, k: Tensor, soft: Tensor, axis: str) -> tuple[Tensor, Tensor]:
    """Queries and keys (or the inputs of bias-free to_q and to_k) such that their logits are those of Eq. 11. soft [B,N].

    `key`: logits_ij m~_j; `query`: logits_ij m~_i; `both`: logits_ij m~_i m~_j.
    Exact: softmax((Q K^T / sqrt(d)) .* m~) = softmax(Q (m~ .* K)^T / sqrt(d)) for m~ constant along the query axis.
    """
    scale = soft.unsqueeze(-1)
    return (q if axis == "key" else q * scale.to(q.dtype)), (k if axis == "query" else k * scale.to(k.dtype))


def union_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor, gate: Tensor, background: str = "zero") -> Tensor:
    """Eq. 11 where a pair counts as pose when its query **or** its key is (the rule of Stable-Pose). Exact, O(N) memory.

    q, k, v [B,N,c]; mask [B,N] in {0,1}; gate [B,1] -> [B,N,c]. The row of a pose query is scaled by 1+g throughout;
    any other row is scaled by the key's own m~: two plain attentions, picked per row.
    """
    is_pose = mask[..., None].bool()  # [B, N, 1]
    pose_rows = attend(q * (1.0 + gate)[..., None].to(q.dtype), k, v, heads)
    other_rows = attend(q, k * soft_mask(mask, gate, background)[..., None].to(k.dtype), v, heads)
    return torch.where(is_pose, pose_rows, other_rows)
