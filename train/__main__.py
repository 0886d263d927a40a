"""python -m train COMMAND [--config RECIPE.toml] [options]: trains what the nodes load. On several devices: accelerate launch -m train ..."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from kbdm_core.errors import KBDMError

STAGES = "train.knowledge.commands"
MINI = "train.mini.commands"
COMMANDS = {  # name: module, dataclass, function, what it does
    "knowledge-base": (STAGES, "KnowledgeBaseCommand", "knowledge_base", "pictures and captions -> a knowledge base for ComfyUI"),
    "codebook": (STAGES, "CodebookCommand", "codebook", "stage 1 alone: pictures, or a .npy file of tokens -> a codebook"),
    "classifier": (STAGES, "ClassifierCommand", "classifier", "stage 2 alone: a codebook, pictures and captions -> a knowledge base"),
    "adapter": ("train.adapter.commands", "AdapterCommand", "adapter", "stage 3: pictures, captions and poses -> an adapter for ComfyUI"),
    "validate-data": ("train.data.commands", "ValidateDataCommand", "validate_data", "list all pictures, captions and poses that cannot be used"),
    "mini autoencoder": (MINI, "AutoencoderCommand", "autoencoder", "the miniature's autoencoder, from drawn scenes"),
    "mini clip": (MINI, "ClipCommand", "clip", "the miniature's CLIP, from drawn scenes and their captions"),
    "mini unet": (MINI, "UNetCommand", "unet", "the miniature's UNet, from drawn scenes, the autoencoder and the CLIP"),
    "mini estimator": (MINI, "EstimatorCommand", "estimator", "the estimator that judges the miniature's poses, from drawn scenes of its own"),
    "mini adapter": ("train.mini.build", "MiniAdapterCommand", "mini_adapter", "stage 3 on the miniature, from drawn scenes"),
    "mini build": ("train.mini.build", "BuildCommand", "build", "the whole miniature, stage by stage"),
    "mini evaluate": ("train.mini.evaluation_command", "EvaluateCommand", "evaluate", "pose accuracy of the miniature's adapter, column by column"),
    "inspect": ("train.inspection", "InspectCommand", "inspect", "tell what a file is"),
}
TABLES = {  # the tables that recipes may hold: module, dataclass
    "data": ("train.data.records", "DataTable"),
    "clip": ("train.features.table", "ClipTable"),
    "codebook": ("train.knowledge.codebook", "CodebookTable"),
    "classifier": ("train.knowledge.classifier", "ClassifierTable"),
    "base": ("train.base.table", "BaseTable"),
    "adapter": ("train.adapter.table", "AdapterTable"),
    "validation": ("train.adapter.table", "ValidationTable"),
    "examples": ("train.examples.encoding", "ExamplesTable"),
    "augment": ("train.examples.variants", "AugmentTable"),
    "world": ("train.mini.scenes", "WorldTable"),
    "autoencoder": ("train.mini.autoencoder", "AutoencoderTable"),
    "mini_clip": ("train.mini.clip", "MiniClipTable"),
    "unet": ("train.mini.unet", "UNetTable"),
    "estimator": ("train.mini.estimator_training", "EstimatorTable"),
    "evaluation": ("train.mini.evaluation", "EvaluationTable"),
    "run": ("train.run.loop", "RunTable"),
}


def table(name: str) -> type:
    """The dataclass of a recipe's table, imported when asked for. Raises KeyError for a name that is none."""
    module, kind = TABLES[name]
    return getattr(importlib.import_module(module), kind)


def main(arguments: Sequence[str]) -> int:
    """Run a command -> exit status: 0, 2 for what a person must put right, 130 or 143 for a run that was stopped and can go on."""
    words = 2 if arguments[:1] == ["mini"] else 1
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        return _list_commands(name)
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


def _list_commands(name: str) -> int:
    asked = name.split(" ")[-1] in ("-h", "--help")
    if name and not asked:
        print(f"train: there is no command '{name}'.", file=sys.stderr)
    lines = [f"  {name:16s} {what}" for name, (*_, what) in COMMANDS.items()]
    text = "\n".join([__doc__, "", *lines, "", "python -m train COMMAND --help explains every option; train/recipes/ holds a recipe for each use."])
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
