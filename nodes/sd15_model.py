"""What is connected to a `model` input: is it SD1.5's UNet, and how wide are its blocks?"""

from __future__ import annotations

from ..kbdm_core.errors import MismatchError
from ..kbdm_core.sd15 import BLOCKS, LEVELS


def describe(model) -> str:
    """The connected model in words: its class in the host, and the family the host detected."""
    base = model.model
    family = type(getattr(base, "model_config", base)).__name__
    return f"{family} ({type(base).__name__})"


def has_maskable_attention(model) -> bool:
    """Whether the model is a UNet with self-attention whose to_k has no bias (SD1.5, SD2, SDXL ...)."""
    unet = getattr(model.model, "diffusion_model", None)
    if not hasattr(unet, "input_blocks"):
        return False
    keys = [m.attn1.to_k for m in unet.modules() if hasattr(m, "attn1") and hasattr(m.attn1, "to_k")]
    return bool(keys) and all(getattr(key, "bias", None) is None for key in keys)


def block_widths(model) -> tuple[int, ...] | None:
    """Widths of the four levels if the model has SD1.5's 16 transformer blocks at SD1.5's places, else None."""
    unet = getattr(model.model, "diffusion_model", None)
    widths: dict[int, set[int]] = {level: set() for level in range(LEVELS)}
    for block in BLOCKS:
        try:
            transformer = unet.get_submodule(f"{block.name}.1")
            depth = transformer.transformer_blocks
            widths[block.level].add(depth[0].attn2.to_q.weight.shape[0])
        except (AttributeError, IndexError):
            return None
        if len(depth) != 1 or getattr(transformer, "use_linear", False):  # SD2 has the same blocks but for their linear projections
            return None
    found = sum(hasattr(module, "attn1") for module in unet.modules())
    if found != len(BLOCKS) or any(len(level) != 1 for level in widths.values()):
        return None
    return tuple(level.pop() for level in widths.values())


def require_base(model, widths: tuple[int, ...], base: str, adapter_name: str) -> None:
    """MismatchError unless the model has SD1.5's 16 blocks, with the adapter's widths where the adapter has any."""
    found = block_widths(model)
    if found is None:
        raise MismatchError(
            f"KB-DM Adapter '{adapter_name}' was made for {base} (SD1.5's UNet with its 16 transformer blocks), but the connected model "
            f"is {describe(model)}. Load an SD1.5 checkpoint or fine-tune, or an adapter for this model."
        )
    if widths and found != tuple(widths):
        raise MismatchError(
            f"KB-DM Adapter '{adapter_name}' was made for {base} with block widths {list(widths)}, but the connected model "
            f"{describe(model)} has {list(found)}. Load the base that the adapter names."
        )
