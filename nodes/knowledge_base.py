"""Load Knowledge Base: a file of models/kbdm_knowledge_bases."""

from __future__ import annotations

import os
from functools import lru_cache

from ..kbdm_core.knowledge_base import KnowledgeBase, load_knowledge_base
from . import model_folders


class KBDMLoadKnowledgeBase:
    """ComfyUI node: reads a knowledge base once per version of the file."""

    CATEGORY = "KB-DM"
    DESCRIPTION = "Loads a knowledge base: a codebook of visual tokens and the classifier that finds them by text."
    SEARCH_ALIASES = ("kb-dmgen", "kbdm", "codebook", "knowledge base", "visual tokens")
    RETURN_TYPES = ("KBDM_KNOWLEDGE_BASE",)
    RETURN_NAMES = ("knowledge_base",)
    OUTPUT_TOOLTIPS = ("The knowledge base, for KB Text Query.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        tooltip = "A .safetensors file in models/kbdm_knowledge_bases. An adapter works with the knowledge base it was trained with."
        return {"required": {"knowledge_base_name": (model_folders.names(model_folders.KNOWLEDGE_BASES), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, knowledge_base_name: str) -> str:
        return repr(_identity(knowledge_base_name))

    def load(self, knowledge_base_name: str) -> tuple[KnowledgeBase]:
        return (_load(*_identity(knowledge_base_name)),)


def _identity(name: str) -> tuple[str, int, int]:
    """Path, modification time in ns and size: what changes when the file does."""
    path = model_folders.full_path(model_folders.KNOWLEDGE_BASES, name)
    stat = os.stat(path)
    return path, stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=1)
def _load(path: str, modified: int, size: int) -> KnowledgeBase:
    return load_knowledge_base(path)
