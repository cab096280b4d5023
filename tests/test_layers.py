"""The layers of the package: every import points downwards, and there are no circles.

All imports count, those inside functions too. Imports for type checkers alone (`if TYPE_CHECKING:`) do not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom to the top. Packages of one layer may use each other, as long as this makes no circle.
LAYERS = (
    {"modeling"},
    {"utils"},
    {"metrics", "plots", "losses", "cards"},
    {"kinds"},
    {"hub"},
    {"data", "convert"},
    {"training", "evaluation", "app"},
    {"commands"},
    {"scripts", "__main__"},
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
# What `modeling/` may use besides its own files, since it travels with the weights.
TRAVELS = {"PIL", "huggingface_hub", "numpy", "torch", "transformers"}


def imports(tree: ast.AST, with_types: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements, those for type checkers alone only `with_types`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not with_types:
            for other in node.orelse:
                yield from imports(other)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from imports(node, with_types)


def modules() -> dict[str, Path]:
    """Every module of the package and every script, by its full name; the package's own `__init__` is left out."""
    found = {}
    for path in sorted([*(ROOT / "hf_vq").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if "modeling" not in parts and name != "hf_vq":
            found[name] = path
    return found


def imported(path: Path, known: set[str], with_types: bool = False) -> set[str]:
    """The modules of ours that a file imports, `hf_vq` where it asks the package itself for a name."""
    names = set()
    for node in imports(ast.parse(path.read_text(encoding="utf-8")), with_types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: import siblings by their full name"
            module = node.module or ""
            names |= {f"{module}.{a.name}" if f"{module}.{a.name}" in known else module for a in node.names}
    return {name for name in names if name.partition(".")[0] == "hf_vq"}


def package(module: str) -> str:
    """The layer's name for a module."""
    parts = module.split(".")
    return parts[0] if parts[0] != "hf_vq" else parts[1]


FILES = modules()
GRAPH = {name: imported(path, set(FILES)) for name, path in FILES.items()}


def test_the_test_sees_the_imports() -> None:
    """A known import is found, inside a function as well."""
    assert "hf_vq.utils.files" in GRAPH["hf_vq.data.token_folder"]
    assert "hf_vq.hub.models" in imported(ROOT / "hf_vq" / "__init__.py", set(FILES))
    assert len(FILES) > 40


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_downwards(module: str) -> None:
    """A module uses its own package, its layer and lower ones; none uses the package's front."""
    for other in GRAPH[module]:
        assert other != "hf_vq", f"{module} imports the package itself: name the module"
        assert LEVEL[package(other)] <= LEVEL[package(module)], f"{module} imports {other}, of a higher layer"
        if package(module) == "evaluation":
            assert package(other) != "training", f"{module} imports {other}: evaluation knows no training"


def test_there_are_no_circles() -> None:
    """Neither modules nor packages depend on each other in a circle."""
    packages: dict[str, set[str]] = {}
    for module, others in GRAPH.items():
        packages.setdefault(package(module), set()).update(
            package(other) for other in others if other != "hf_vq" and package(other) != package(module)
        )
    for graph in (GRAPH, packages):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_checkpoints_know_no_trainer() -> None:
    """`checkpoints.py` turns folders into state dicts; it imports nothing else of training/, not even for types."""
    known = imported(FILES["hf_vq.training.checkpoints"], set(FILES), with_types=True)
    assert known and not [name for name in known if package(name) == "training"]


def test_type_hints_make_no_circles() -> None:
    """Modules do not even know each other's types in a circle, and none of training/ imports another in a function."""
    graph = {name: imported(path, set(FILES), with_types=True) for name, path in FILES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports and type hints: {' -> '.join(error.args[1])}")
    for name, path in FILES.items():
        if package(name) == "training":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            inside = [ast.unparse(node) for function in functions for node in imports(function, with_types=True)]
            assert not [text for text in inside if "hf_vq.training" in text], f"{name} imports inside a function"


@pytest.mark.parametrize("path", sorted((ROOT / "modeling").glob("*.py")), ids=lambda path: path.name)
def test_modeling_is_flat_and_stands_alone(path: Path) -> None:
    """What is copied beside the weights imports its siblings by `from .name import x`, and only a few packages."""
    assert not [child for child in (ROOT / "modeling").iterdir() if child.is_dir() and child.name != "__pycache__"]
    for node in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (path.parent / f"{node.module}.py").is_file()
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            top = name.partition(".")[0]
            assert top in TRAVELS or top in sys.stdlib_module_names, f"{path.name} imports {name}"
