"""The command `hf-vq`: it lists the commands and recipes of `hf_vq`, and starts a command.

It is a module beside the package, because importing the package means importing torch, and a list should not take
seconds.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

# Command -> its module in hf_vq.commands, and the extra of the installation that it needs.
COMMANDS = {
    "train-tokenizer": ("train_tokenizer", "train"),
    "train-generator": ("train_generator", "train"),
    "train-classifier": ("train_classifier", "train"),
    "tokenize": ("tokenize_dataset", "train"),
    "generate": ("generate", "train"),
    "evaluate": ("evaluate", "eval"),
    "app": ("app", "app"),
    "convert": ("convert_checkpoint", "train"),
    "demo": ("demo", "train"),
}
RECIPES = "recipes"
RECIPES_SUMMARY = "List the recipes that --config knows by name, or show one"


def main(argv: Sequence[str] | None = None) -> None:
    """Starts the command that the first word names, with the other words."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
    elif words[0] == "--version":
        print(f"hf_vq {metadata.version('hf_vq')}")
    elif words[0] == RECIPES:
        print(recipes(words[1:]))
    else:
        start(words[0].replace("_", "-"), words[1:])


def start(name: str, words: list[str]) -> None:
    """Starts a command; one that does not exist, or lacks its packages, ends with a line."""
    if name not in COMMANDS:
        raise SystemExit(f"error: There is no command '{name}'. {nearest(name, [*COMMANDS, RECIPES])}")
    module, extra = COMMANDS[name]
    try:
        command = import_module(f"hf_vq.commands.{module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "hf_vq"):
            raise
        raise SystemExit(
            f"error: hf-vq {name} needs the package '{missing}'. Install it with: pip install 'hf_vq[{extra}]'"
        ) from None
    command.main(words)


def overview() -> str:
    """What `hf-vq --help` shows."""
    rows = {name: summary(module) for name, (module, _) in COMMANDS.items()} | {RECIPES: RECIPES_SUMMARY}
    return "\n".join(
        [
            "usage: hf-vq COMMAND [--FIELD VALUE ...]",
            "",
            "Vector-quantized image tokenizers and generators for the Hugging Face Hub.",
            "",
            *(f"  {name:<18}{text}" for name, text in rows.items()),
            "",
            "hf-vq COMMAND --help explains a command and all its fields.",
        ]
    )


def recipes(names: list[str]) -> str:
    """What `hf-vq recipes` shows: a line for each recipe, or the text of those that are named."""
    files = {path.stem: path for path in sorted((package() / "recipes").glob("*.yaml"))}
    if names and names[0] in ("-h", "--help"):
        return f"usage: hf-vq recipes [NAME ...]\n\n{RECIPES_SUMMARY}. For a copy: hf-vq recipes NAME > own.yaml"
    for name in names:
        if name not in files:
            raise SystemExit(f"error: There is no recipe '{name}'. {nearest(name, list(files))}")
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    if names:
        return "\n".join(texts[name].rstrip() for name in names)
    width = max(map(len, files)) + 2
    return "\n".join(f"{name:<{width}}{text.splitlines()[0].removeprefix('# ')}" for name, text in texts.items())


def summary(module: str) -> str:
    """The first sentence of a command's docstring, read from its file: importing it would import torch."""
    path = package() / "commands" / f"{module}.py"
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return line.partition(". ")[0].rstrip(".")


def package() -> Path:
    """The folder of the package `hf_vq`, which is not imported for this."""
    spec = find_spec("hf_vq")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def nearest(name: str, known: list[str]) -> str:
    """A question that offers the known names that are near, or all of them where none is."""
    found = [other for other in known if other.startswith(name)] or difflib.get_close_matches(name, known, n=1)
    names = ", ".join(found or known)
    return f"Did you mean {names}?" if found else f"There are {names}."


if __name__ == "__main__":
    main()
