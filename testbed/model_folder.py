"""A model folder of the host with nothing in it but what a test puts there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.pack import load_node_module

model_folders = load_node_module("model_folders")


@contextmanager
def only_folder(name: str, place: Path, patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """place/name as the only folder that the host knows under this name, beside the miniature's: place/mini, which does not exist."""
    host, folder = model_folders.folder_paths, place / name
    folder.mkdir()
    patch.setattr(host, "models_dir", str(place))
    patch.setattr(model_folders, "MINI", place / "mini")
    model_folders.register()  # the name is known from now on
    known = host.folder_names_and_paths[name][0]
    kept, known[:] = list(known), []
    yield folder
    known[:] = kept
