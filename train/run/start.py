"""How a command's run starts: in its folder, under its recipe."""

from __future__ import annotations

from train.run.loop import Run
from train.run.recipe import Command, refuse_other_recipe, save_resolved


def open_run(recipe: Command) -> Run:
    """The run of a recipe that has `output` and [run]. Raises RecipeError if its folder holds a run of another recipe."""
    folder = recipe.run.folder or recipe.output.with_suffix(".run")
    if not recipe.dry_run:
        refuse_other_recipe(recipe, folder)
    return Run(recipe.run, folder, recipe.dry_run)


def begin(run: Run, recipe: Command) -> None:
    """To be called when the inputs are known to be good: from here on the folder holds a run of this recipe."""
    run.begin()
    if run.is_main and not run.dry:
        save_resolved(recipe, run.folder)
