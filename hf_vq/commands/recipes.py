"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """The names that `--config` knows."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, given its path or the name of a shipped one.

    Raises:
        ValueError: If there is neither such a file nor such a name.
    """
    path, shipped = Path(name), RECIPES / f"{name}.yaml"
    if path.is_file():
        return path
    if str(name) in recipe_names():
        return shipped
    if path.stem in recipe_names():  # scripts/configs/NAME.yaml, where they were before they came with the package
        raise ValueError(
            f"There is no file '{name}'. Recipes are found by name: --config {path.stem} (hf-vq recipes lists them)."
        )
    names = ", ".join(recipe_names())
    raise ValueError(f"There is no recipe '{name}'. Give the path of a YAML file, or one of {names}.")
