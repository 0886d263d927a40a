"""The command validate-data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from train.data.records import DataTable
from train.data.sources import open_dataset
from train.data.validate import validate
from train.run.recipe import Command
from train.run.signals import Signals


@dataclass(frozen=True)
class ValidateDataCommand(Command):
    """Decode every picture and read every pose. Prints counts; the list of problems goes to a file."""

    data: Annotated[DataTable, arg(name="")] = DataTable()
    report: Path = Path("data_report.json")
    """The machine-readable list to write."""


def validate_data(recipe: ValidateDataCommand) -> None:
    """`python -m train validate-data`: one JSON line with records, usable and counts per kind of problem."""
    with Signals() as signals:
        report = validate(open_dataset(recipe.data), None if recipe.dry_run else recipe.report, signals.check)
    summary = asdict(report)
    del summary["problems"]
    print(json.dumps({**summary, **({} if recipe.dry_run else {"report": str(recipe.report)})}))
