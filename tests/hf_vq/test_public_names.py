"""Names that the package and its sub-packages offer load on first use, and type checkers see the same ones."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_vq

PACKAGE = Path(hf_vq.__file__).parent
LAZY = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if "lazy_names(" in path.read_text())


def names_for_type_checkers(path: Path) -> set[str]:
    """What an `__init__` imports under `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    found = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in found for alias in node.names}


@pytest.mark.parametrize("name", LAZY)
def test_a_package_offers_what_type_checkers_see(name: str) -> None:
    """The two lists of an `__init__` agree, and each name can be had."""
    module = importlib.import_module(f"hf_vq.{name}")

    assert len(module.__all__) >= 3
    assert set(module.__all__) == names_for_type_checkers(PACKAGE / name / "__init__.py")
    for each in module.__all__:
        assert getattr(module, each) is not None and each in dir(module)
    with pytest.raises(AttributeError, match=f"hf_vq.{name}.*no_such_name"):
        _ = module.no_such_name


def test_the_packages_lazy_names_are_those_of_type_checkers() -> None:
    """The front of the package likewise."""
    lazy = names_for_type_checkers(PACKAGE / "__init__.py")

    assert {"TokenizerTrainer", "from_hub", "load_token_dataset", "push_to_hub"} <= lazy
    assert set(hf_vq._lazy) == lazy
    for name in lazy:
        assert getattr(hf_vq, name) is not None and name in dir(hf_vq)


def test_a_star_import_is_complete() -> None:
    """With the training extra it brings every name that the package offers."""
    names: dict[str, object] = {}
    exec("from hf_vq import *", names)

    statements = ast.parse((PACKAGE / "__init__.py").read_text()).body
    fronts = [each for each in statements if isinstance(each, ast.ImportFrom) and each.module == "hf_vq.modeling"]
    imported = {alias.name for front in fronts for alias in front.names}
    assert imported | set(hf_vq._lazy) | {"__version__"} == set(hf_vq.__all__) == set(names) - {"__builtins__"}
    assert len(set(hf_vq.__all__)) == len(hf_vq.__all__)


def test_help_begins_with_a_list_of_all_names() -> None:
    """pydoc goes on with thousands of lines on the classes, so the docstring says what there is."""
    assert hf_vq.__doc__ is not None
    assert [name for name in hf_vq.__all__ if not re.search(rf"\b{name}\b", hf_vq.__doc__)] == []
    assert len(hf_vq.__doc__.splitlines()) < 50


@pytest.mark.parametrize(
    "expression",
    ["convert.load_vqtorch_state_dict", "data.load_images", "metrics.TokenizerMetrics", "hub.HubError",
     "plots.sample_sheet", "training", "losses.PerceptualLoss"],
)  # fmt: skip
def test_sub_packages_are_there_after_a_bare_import(expression: str) -> None:
    """`import hf_vq` alone is enough to reach everything by its full name."""
    code = f"import hf_vq; hf_vq.{expression}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-2000:]


def test_importing_the_package_imports_no_more_than_it_must() -> None:
    """Hub, cards, data and training wait until they are asked for."""
    code = "import sys, hf_vq; print(*sorted(name for name in sys.modules if name.startswith('hf_vq.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "hf_vq.modeling" in loaded
    assert {name.split(".")[1] for name in loaded} <= {"modeling", "utils", "kinds"}
