"""python -m train COMMAND [--config RECIPE.toml] [options]: trains what the nodes load. On several devices: accelerate launch -m train ..."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from kbdm_core.errors import KBDMError

STAGES = "train.knowledge.commands"
COMMANDS = {  # name: module, dataclass, function, what it does
    "knowledge-base": (STAGES, "KnowledgeBaseCommand", "knowledge_base", "pictures and captions -> a knowledge base for ComfyUI"),
    "codebook": (STAGES, "CodebookCommand", "codebook", "stage 1 alone: pictures, or a .npy file of tokens -> a codebook"),
    "classifier": (STAGES, "ClassifierCommand", "classifier", "stage 2 alone: a codebook, pictures and captions -> a knowledge base"),
    "validate-data": ("train.data.commands", "ValidateDataCommand", "validate_data", "list all pictures, captions and poses that cannot be used"),
    "inspect": ("train.inspection", "InspectCommand", "inspect", "tell what a file is"),
}
TABLES = {  # the tables that recipes may hold: module, dataclass
    "data": ("train.data.records", "DataTable"),
    "clip": ("train.features.table", "ClipTable"),
    "codebook": ("train.knowledge.codebook", "CodebookTable"),
    "classifier": ("train.knowledge.classifier", "ClassifierTable"),
    "run": ("train.run.loop", "RunTable"),
}


def table(name: str) -> type:
    """The dataclass of a recipe's table, imported when asked for. Raises KeyError for a name that is none."""
    module, kind = TABLES[name]
    return getattr(importlib.import_module(module), kind)


def main(arguments: Sequence[str]) -> int:
    """Run a command -> exit status: 0, 2 for what a person must put right, 130 or 143 for a run that was stopped and can go on."""
    if not arguments or arguments[0] not in COMMANDS:
        return _list_commands(arguments)
    name, *rest = arguments
    module_name, kind, function, what = COMMANDS[name]
    module = importlib.import_module(module_name)
    from train.run.recipe import parse_recipe
    from train.run.signals import Interrupted

    try:
        recipe = parse_recipe(getattr(module, kind), rest, table, f"python -m train {name}", f"{what}.")
        getattr(module, function)(recipe)
    except KBDMError as error:
        print(f"train {name}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        again = "the same command without --run.no-resume" if "--run.no-resume" in rest else "the same command again"
        print(f"train {name}: stopped by {stop}; run {again} to go on.", file=sys.stderr)
        return 128 + stop.signum
    return 0


def _list_commands(arguments: Sequence[str]) -> int:
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    if arguments and not asked:
        print(f"train: there is no command '{arguments[0]}'.", file=sys.stderr)
    lines = [f"  {name:16s} {what}" for name, (*_, what) in COMMANDS.items()]
    text = "\n".join([__doc__, "", *lines, "", "python -m train COMMAND --help explains every option; train/recipes/ holds a recipe for each use."])
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
