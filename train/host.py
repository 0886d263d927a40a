"""Binds a guidance to diffusers' UNet2DConditionModel: the same three ports as in ComfyUI, differentiable."""

from __future__ import annotations

import weakref

from torch import Tensor, nn

from kbdm_core.attention import attend
from kbdm_core.guidance import Guidance, Ports
from kbdm_core.roles import POSITIVE
from kbdm_core.sd15 import BLOCKS, Block, level_size


class GuidedUNet(nn.Module):
    """A UNet2DConditionModel of SD1.5's topology whose attention processors obey a guidance.

    The guidance of the latest call stays in place until the next one, so that gradient checkpointing recomputes with it.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet
        self.forward_state: tuple[Ports, tuple[int, int]] | None = None
        processors = dict(unet.attn_processors)
        for block in BLOCKS:
            prefix = f"{block.diffusers}.transformer_blocks.0"
            processors[f"{prefix}.attn1.processor"] = MaskedSelfAttention(self, block)
            processors[f"{prefix}.attn2.processor"] = KBCrossAttention(self, block)
        unet.set_attn_processor(processors)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, guidance: Guidance, roles: tuple[str, ...] = (POSITIVE,), **kwargs
    ) -> Tensor:
        """Noise prediction. sample [B,4,h,w] with B = len(roles) * I, timestep [B] -> [B,4,h,w].

        kwargs go to the UNet (ControlNet residuals, for example).
        """
        images = sample.shape[0] // len(roles)
        ports = guidance.begin(timestep[:images], roles, images, self.unet.conv_in(sample))
        self.forward_state = ports, tuple(sample.shape[-2:])
        if ports.residuals is not None:  # a fresh list: the UNet pops its entries
            kwargs["down_intrablock_additional_residuals"] = list(ports.residuals)
        return self.unet(sample, timestep, encoder_hidden_states, **kwargs).sample


class MaskedSelfAttention:
    """attn1 processor: port 1 on the inputs of to_q and to_k."""

    def __init__(self, guided: GuidedUNet, block: Block):
        self.guided, self.block = weakref.ref(guided), block

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        ports, latent = self.guided().forward_state
        size = level_size(*latent, self.block.level)
        q_in, k_in = ports.scale_tokens(self.block.patch_key, hidden_states, hidden_states, size)
        out = attend(attn.to_q(q_in), attn.to_k(k_in), attn.to_v(hidden_states), attn.heads)
        return attn.to_out[1](attn.to_out[0](out))


class KBCrossAttention:
    """attn2 processor: text attention plus port 2, before to_out."""

    def __init__(self, guided: GuidedUNet, block: Block):
        self.guided, self.block = weakref.ref(guided), block

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask=None, temb=None) -> Tensor:
        ports, _ = self.guided().forward_state
        q = attn.to_q(hidden_states)
        out = attend(q, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states), attn.heads)
        if ports.kb is not None:
            out = out + ports.extra_attention(self.block, q, attn.heads)
        return attn.to_out[1](attn.to_out[0](out))


def text_projections(unet: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights of the base's text to_k and to_v per block name, from which a fresh `kb` section starts."""
    found = {}
    for block in BLOCKS:
        attn2 = unet.get_submodule(f"{block.diffusers}.transformer_blocks.0.attn2")
        found[block.name] = (attn2.to_k.weight.detach(), attn2.to_v.weight.detach())
    return found
