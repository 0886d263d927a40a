"""Opening a data set of any format."""

from __future__ import annotations

from train.data.coco import open_coco
from train.data.errors import DataError
from train.data.folder import open_folder
from train.data.humansd import open_humansd
from train.data.records import Dataset, DataTable


def open_dataset(table: DataTable) -> Dataset:
    """The records of the source. Raises DataError if it cannot be used as a whole: no such folder or file, broken JSON, nothing in it."""
    if table.root is None or not table.root.is_dir():
        raise DataError(f"data.root is {table.root}; expected the folder of the pictures.")
    if bool(table.annotations) == (table.format == "folder"):
        expected = "none: captions lie beside the pictures" if table.format == "folder" else "at least one JSON file"
        raise DataError(f"data.annotations names {len(table.annotations)} files; the format '{table.format}' takes {expected}.")
    if table.format == "folder":
        dataset = open_folder(table.root)
    else:
        dataset = (open_coco if table.format == "coco" else open_humansd)(table.root, table.annotations)
    if not dataset.records and not dataset.problems:
        raise DataError(f"{table.root} holds no picture that the format '{table.format}' lists.")
    return dataset
