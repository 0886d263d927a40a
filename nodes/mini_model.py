"""Load Mini Model: the miniature of SD1.5 that comes with the pack, trained on drawn people."""

from __future__ import annotations

from ..kbdm_core.errors import FileFormatError
from ..kbdm_core.mini_checkpoint import load_mini_checkpoint, load_text_tower
from . import host_models
from .model_folders import MINI

CHECKPOINT, CLIP = "checkpoint.safetensors", "clip"


class KBDMLoadMini:
    """ComfyUI node: MODEL, CLIP and VAE of the miniature, as Load Checkpoint gives those of SD1.5."""

    CATEGORY = "KB-DM"
    DESCRIPTION = (
        "Loads the miniature that comes with the pack: a whole SD1.5 in small, trained on drawn people. It runs without a GPU, "
        "at 128 x 128 pixels, with the miniature's own knowledge base and adapter (mini/...)."
    )
    SEARCH_ALIASES = ("kb-dmgen", "kbdm", "miniature", "demo model", "load checkpoint")
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    RETURN_NAMES = ("model", "clip", "vae")
    OUTPUT_TOOLTIPS = ("The UNet, for KSampler and KB-DM Adapter Apply.", "The text encoder.", "The autoencoder; 8 pixels a latent.")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> str:
        files = (MINI / CHECKPOINT, *sorted((MINI / CLIP).glob("*")))
        return repr([(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()])

    def load(self) -> tuple:
        try:
            checkpoint, tower = load_mini_checkpoint(MINI / CHECKPOINT), load_text_tower(MINI / CLIP)
            if checkpoint.unet.text_width != tower.width:
                expected = f"the width {tower.width} of the text encoder in {MINI / CLIP}"
                raise checkpoint.file.fail("text states of the UNet", expected, checkpoint.unet.text_width)
            return host_models.unet_patcher(checkpoint), host_models.text_encoder(tower), host_models.autoencoder(checkpoint)
        except FileFormatError as error:
            raise FileFormatError(
                f"{error} The miniature's files come with the pack, in assets/mini: install the pack anew, "
                "or train them with python -m train mini."
            ) from error
