"""Recipes: a TOML file with one table per stage, overridden on the command line, into frozen dataclasses that are checked once."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w
import tyro
from pydantic import ConfigDict, TypeAdapter, ValidationError

from kbdm_core.errors import KBDMError
from train.files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESOLVED = "recipe.toml"
DECISIVE = ("seed", "precision")  # keys of [run] that a run must not change when it goes on


class RecipeError(KBDMError):
    """A recipe file or an override cannot be understood."""


@dataclass(frozen=True)
class Command:
    """What every command takes besides its tables."""

    config: Path | None = None
    """Recipe file (train/recipes/*.toml). What is given on the command line overrules it."""
    dry_run: bool = False
    """Build everything, take one step, tell memory and time, write nothing."""


Recipe = TypeVar("Recipe", bound=Command)


def parse_recipe(kind: type[Recipe], arguments: Sequence[str], table: Callable[[str], type], prog: str, description: str) -> Recipe:
    """Arguments of a command, over the recipe file that --config names, over the defaults -> the checked recipe.

    `table` gives the dataclass of a table of any command, or raises KeyError: a recipe may serve several commands, and tables that
    this one does not use are checked and left out. Raises RecipeError for an unknown key, a value of another type or range, or a file
    that is not TOML; --help and misspelt options end the program.
    """
    config = _config_of(arguments)
    default = kind() if config is None else _from_file(kind, config, table)
    given = tyro.cli(kind, args=list(arguments), default=default, prog=prog, description=description)
    return _checked(kind, dataclasses.asdict(given), "the command line")


def resolved(recipe: Command) -> dict[str, Any]:
    """The recipe as TOML can hold it: without unset values, --config and --dry-run."""
    plain = TypeAdapter(type(recipe)).dump_python(recipe, mode="json", exclude={"config", "dry_run"}, exclude_none=True)
    return {key: value for key, value in plain.items() if value != {}}


def refuse_other_recipe(recipe: Command, folder: Path) -> None:
    """Raise RecipeError, naming the differences, if the folder holds a run of another recipe that would be gone on with."""
    path = folder / RESOLVED
    if path.exists() and recipe.run.resume:
        differences = _differences(_read(path), resolved(recipe))
        if differences:
            raise RecipeError(
                f"{folder} holds a run of another recipe: {'; '.join(differences)}. Choose another --run.folder, or start anew in this "
                "one with --run.no-resume."
            )


def save_resolved(recipe: Command, folder: Path) -> None:
    """Write the resolved recipe to folder/recipe.toml: when a run begins, not before its inputs have been found good."""
    write_text(folder / RESOLVED, tomli_w.dumps(resolved(recipe)))


def _config_of(arguments: Sequence[str]) -> Path | None:
    for argument, following in zip(arguments, [*arguments[1:], None]):
        if argument == "--config" and following is not None:
            return Path(following)
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config="))
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe {path}; the shipped ones are in train/recipes/.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is not a readable TOML file: {error}.") from error


def _from_file(kind: type[Recipe], path: Path, table: Callable[[str], type]) -> Recipe:
    content = _read(path)
    own = {field.name for field in dataclasses.fields(kind)}
    for key in [key for key, value in content.items() if key not in own and isinstance(value, dict)]:
        try:
            foreign = table(key)
        except KeyError:
            continue  # an unknown key, which the check below refuses
        _checked(foreign, content.pop(key), f"{path}, [{key}]")
    if "output" not in own:  # recipes name it for the commands that write a file
        content.pop("output", None)
    for key in ("config", "dry_run"):
        if key in content:
            raise RecipeError(f"{path}: '{key}' belongs on the command line, not into a recipe.")
    return _checked(kind, {**content, "config": path}, str(path))


def _checked(kind: type[Recipe], values: dict[str, Any], where: str) -> Recipe:
    _refuse_unknown_keys(kind)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = []
        for each in error.errors():
            name = ".".join(str(part) for part in each["loc"])
            found = "" if each["type"] in ("missing", "unexpected_keyword_argument") else f" (found {each['input']!r})"
            message = "there is no such key" if each["type"] == "unexpected_keyword_argument" else each["msg"]
            lines.append(f"{name}: {message}{found}")
        raise RecipeError(f"{where}: {'; '.join(lines)}.") from error


def _refuse_unknown_keys(kind: type) -> None:
    """Make pydantic refuse unknown keys in this dataclass and in those that it holds."""
    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    for inner in get_type_hints(kind).values():
        if dataclasses.is_dataclass(inner):
            _refuse_unknown_keys(inner)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(before.keys() | now.keys()):
        if prefix == "run." and key not in DECISIVE:
            continue
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r}, now {new!r}")
    return found
