"""The miniature that comes with the pack: its files, as ComfyUI's loaders list them and as the demo itself reads them."""

from __future__ import annotations

from pathlib import Path

from kbdm_core.errors import FileFormatError
from train.adapter.workflow import Files

from .files import File, file_entry

SIDE = 128  # px of its pictures
KNOWLEDGE_BASE, ADAPTER = "mini/knowledge_base.safetensors", "mini/adapter.safetensors"
LISTED = Files(checkpoint=None, adapter=ADAPTER, knowledge_base=KNOWLEDGE_BASE)
CHECKPOINT_FILE, ESTIMATOR_FILE, CLIP_FOLDER = "checkpoint.safetensors", "estimator.safetensors", "clip"
KNOWLEDGE_BASE_FILE, ADAPTER_FILE = f"knowledge_bases/{KNOWLEDGE_BASE}", f"adapters/{ADAPTER}"
CONTENTS = {
    CHECKPOINT_FILE: "UNet and autoencoder of the miniature: SD1.5's topology at small width, trained on Mini-Human (drawn people)",
    f"{CLIP_FOLDER}/open_clip_model.safetensors": "the miniature's CLIP, trained on Mini-Human",
    KNOWLEDGE_BASE_FILE: "the miniature's knowledge base, made from Mini-Human with that CLIP",
    ADAPTER_FILE: "the miniature's adapter, trained on Mini-Human with base and knowledge base frozen",
    ESTIMATOR_FILE: "the pose estimator that judges the pictures, trained on scenes of Mini-Human that nothing else has seen",
}


def mini_files(folder: Path) -> list[File]:
    """All files of the miniature, as the report lists them. Raises FileFormatError that names those that are not there."""
    missing = [name for name in CONTENTS if not (folder / name).is_file()]
    if missing:
        raise FileFormatError(
            f"the miniature is not whole: {', '.join(missing)} not found in {folder}. Its files come with the repository: check it out anew, "
            "or train them with python -m train mini build --config train/recipes/mini.toml."
        )
    return [file_entry(folder / name, content) for name, content in CONTENTS.items()]
