"""What the miniature's self-attention looks at while it draws, with and without the dynamic mask: measured in diffusers' UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kbdm_core.adapter import KBDMAdapter
from kbdm_core.adapter_file import load_adapter
from kbdm_core.errors import MismatchError
from kbdm_core.guidance import Guidance, adapter_guidance
from kbdm_core.knowledge_base import KnowledgeBase, load_knowledge_base
from kbdm_core.phrases import decompose
from kbdm_core.sd15 import BLOCK_BY_NAME, Block, level_size
from kbdm_core.skeleton import render_openpose
from kbdm_core.soft_mask import pool_mask
from train.adapter.sampling import Drawing, decode, draw_latents
from train.base.checkpoint import autoencoder_of, read_base, unet_of
from train.base.diffusion import LATENT_SCALE
from train.base.text import TextEncoder, text_encoder
from train.host import GuidedUNet, MaskedSelfAttention

from . import miniature
from .rows import Row

BLOCKS = tuple(BLOCK_BY_NAME[f"{kind}_blocks.{n}"] for kind, n in (("input", 1), ("input", 2), ("output", 9), ("output", 10), ("output", 11)))
WITHOUT, WITH = "without DM", "with DM"
MODES = (WITHOUT, WITH)


def probabilities(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) per head. q and k [B,N,c], c split into `heads` -> [B,heads,N,N]; with keys scaled by m~ these are Eq. 11's."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))  # [B, heads, N, d]
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)


class WatchedSelfAttention(MaskedSelfAttention):
    """attn1 processor that also says what it pays attention to; what it computes is unchanged."""

    def __init__(self, guided: GuidedUNet, block: Block, tell: Callable[[Block, Tensor], None]):
        super().__init__(guided, block)
        self.tell = tell

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        ports, latent = self.guided().forward_state
        q_in, k_in = ports.scale_tokens(self.block.patch_key, hidden_states, hidden_states, level_size(*latent, self.block.level))
        self.tell(self.block, probabilities(attn.to_q(q_in), attn.to_k(k_in), attn.heads))
        return super().__call__(attn, hidden_states)


class AttentionWatch(nn.Module):
    """Stands for a GuidedUNet while a picture is drawn, and notes in every step what the blocks' keys receive.

    Each forward runs twice on the same latent: without the dynamic mask, whose prediction is thrown away, and with it. The two differ by
    the mask alone, not by the pictures that they would lead to.
    """

    def __init__(self, guided: GuidedUNet, blocks: Sequence[Block] = BLOCKS):
        super().__init__()
        self.guided, self.blocks = guided, tuple(blocks)
        self.timesteps: list[int] = []
        self.received: dict[str, list[Tensor]] = {mode: [] for mode in MODES}
        self._found: dict[Block, Tensor] = {}
        processors = dict(guided.unet.attn_processors)
        for block in self.blocks:
            processors[f"{block.diffusers}.transformer_blocks.0.attn1.processor"] = WatchedSelfAttention(guided, block, self._hear)
        guided.unet.set_attn_processor(processors)

    def _hear(self, block: Block, found: Tensor) -> None:
        """Keep what each key receives in the first image of the batch, the positive one: mean over heads and queries [N], sum 1."""
        self._found[block] = found[0].mean(dim=(0, 1))

    def forward(self, sample: Tensor, timestep: Tensor, states: Tensor, guidance: Guidance, roles: tuple[str, ...]) -> Tensor:
        """The prediction with the dynamic mask, see `GuidedUNet.forward`."""
        self.timesteps.append(int(timestep[0]))
        for mode, steering in zip(MODES, (replace(guidance, mask=None), guidance)):
            prediction = self.guided(sample, timestep, states, steering, roles)
            self.received[mode].append(torch.stack([self._found[block] for block in self.blocks]))
        return prediction


@dataclass(frozen=True, eq=False)
class Attention:
    """How much attention the keys received: one picture, T steps, P blocks of h x w tokens.

    received: mode -> [T,P,h,w], sum 1 over h x w; pose [h,w] in {0,1}: the mask on the tokens; picture uint8 [H,W,3]; pose_picture
    [H,W,3] in 0..1.
    """

    prompt: str
    timesteps: list[int]
    blocks: tuple[str, ...]
    received: dict[str, Tensor]
    pose: Tensor
    picture: Tensor
    pose_picture: Tensor

    def on_pose(self, mode: str) -> Tensor:
        """Share of all attention that the pose's tokens receive [T,P]."""
        return (self.received[mode] * self.pose).sum(dim=(-2, -1))

    @property
    def pose_share(self) -> float:
        """Share of the tokens that are the pose's: what they would receive if attention were even."""
        return float(self.pose.mean())


def watch(folder: Path, row: Row, steps: int, scale: float, check: Callable[[], None] = lambda: None) -> Attention:
    """Draw a row's picture with the full adapter of the miniature in `folder`, and watch. `check` is called before every step and may raise.

    Raises FileFormatError if a file is no such file, MismatchError if the adapter has no section `dm`.
    """
    base = read_base(folder / miniature.CHECKPOINT_FILE)
    text = text_encoder(base, f"local-dir:{folder / miniature.CLIP_FOLDER}")
    adapter, info = load_adapter(folder / miniature.ADAPTER_FILE)
    if "dm" not in adapter.sections:
        raise MismatchError(f"adapter '{info.name}' has no section dm; expected one, for what the dynamic mask does is to be seen.")
    knowledge_base = load_knowledge_base(folder / miniature.KNOWLEDGE_BASE_FILE)
    guidance, pose_picture = row_guidance(adapter.float(), knowledge_base, text, row)
    watcher = AttentionWatch(GuidedUNet(unet_of(base)))
    states = [text.states(text.tokens([prompt])).float() for prompt in (row.prompt, "")]
    size = (row.pose.height // 8, row.pose.width // 8)
    with torch.no_grad():
        latents = draw_latents(watcher, Drawing(guidance, *states, [row.seed], size), steps, scale, check=check)
        picture = decode(autoencoder_of(base), latents, LATENT_SCALE)[0]
    tokens = level_size(*size, BLOCKS[0].level)
    received = {mode: torch.stack(found).unflatten(-1, tokens) for mode, found in watcher.received.items()}
    pose = pool_mask(guidance.mask.mask, tokens)[0].reshape(tokens)
    return Attention(row.prompt, watcher.timesteps, tuple(block.name for block in BLOCKS), received, pose, picture, pose_picture[0])


def row_guidance(adapter: KBDMAdapter, knowledge_base: KnowledgeBase, text: TextEncoder, row: Row) -> tuple[Guidance, Tensor]:
    """The whole adapter on a row's prompt and pose, as KB Text Query, Render Pose and KB-DM Adapter Apply bind it -> also the pose picture."""
    tokens = tuple(knowledge_base.query(knowledge_base.project(text.pooled(decompose(prompt, "phrases")))).fused for prompt in (row.prompt, ""))
    pose_picture = render_openpose(row.pose, row.pose.width, row.pose.height)[None]
    return adapter_guidance(adapter, tokens, pose_picture), pose_picture
