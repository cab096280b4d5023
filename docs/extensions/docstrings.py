"""Reads our docstrings as the reference shows them: names become links, and the help of a setting its description."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe

REFERENCE = Path(__file__).parents[1] / "reference"
SHOWN = re.compile(r"^::: ([\w.]+)", re.MULTILINE)
NAME = re.compile(r"(?<!`)(\[)?`~?([A-Za-z_][\w.]*)`(?(1)\])(?![`\[(])")
TYPE = re.compile(r"^( *\w+) \((?:\[?`[^`]*`\]?|\*optional\*|, | or )+\):", re.MULTILINE)


class Docstrings(griffe.Extension):
    """transformers writes [`Name`] for a link, and `name ([`Type`], *optional*):` for an argument."""

    def __init__(self) -> None:
        paths = [path for page in sorted(REFERENCE.glob("*.md")) for path in SHOWN.findall(page.read_text())]
        self.pages = {path.rpartition(".")[2]: path for path in paths}

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrites the docstrings of a package once all of it is read."""
        if pkg.name == "hf_vq":
            self._members = {name: set(pkg[path.partition(".")[2]].all_members) for name, path in self.pages.items()}
            self._rewrite(pkg)

    def _rewrite(self, owner: griffe.Module | griffe.Class) -> None:
        for member in owner.members.values():
            if member.is_alias:
                continue
            if isinstance(member, griffe.Attribute):
                _describe_setting(member)
            if member.docstring:
                member.docstring.value = self._with_links(member.docstring.value, member.name)
            if isinstance(member, griffe.Module | griffe.Class):
                self._rewrite(member)

    def _with_links(self, text: str, own_name: str) -> str:
        def link(match: re.Match[str]) -> str:
            name, _, member = match[2].partition(".")
            known = name in self.pages and name != own_name and (not member or member in self._members[name])
            path = ".".join(filter(None, (self.pages.get(name), member)))
            return f"[`{match[2]}`][{path}]" if known else f"`{match[2]}`"

        return NAME.sub(link, TYPE.sub(r"\1:", text))


def _describe_setting(setting: griffe.Attribute) -> None:
    """Takes `field(default=3, metadata={"help": "Text."})` apart: the value is 3, the docstring is the text."""
    value = setting.value
    if not isinstance(value, griffe.ExprCall) or str(value.function) != "field":
        return
    given = {item.name: item.value for item in value.arguments if isinstance(item, griffe.ExprKeyword)}
    if "metadata" in given and setting.docstring is None:
        help_text = ast.literal_eval(str(given["metadata"]))["help"]
        setting.docstring = griffe.Docstring(help_text, parent=setting)
        setting.value = given.get("default")
