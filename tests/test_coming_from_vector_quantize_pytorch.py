"""docs/coming-from-vector-quantize-pytorch.md is true, row by row."""

from typing import Any

import pytest

from hf_vq import ResidualVectorQuant, VectorQuant

from . import vqp_arguments, vqp_calls  # noqa: F401  # their cases prove the rows
from .vqp_page import PAGE


def test_every_row_has_a_case() -> None:
    """Or says why not."""
    PAGE.assert_complete()
    assert len(PAGE.rows) > 40


@pytest.mark.parametrize("name", list(PAGE.cases))
def test_row(name: str) -> None:
    """What a row says holds for the installed library and for ours."""
    PAGE.cases[name]()


@pytest.mark.parametrize("block", PAGE.code(), ids=range(len(PAGE.code())))
def test_code(block: str) -> None:
    """Each `print(...)  # text` prints that text."""
    PAGE.assert_prints(block)


def test_ours_are_arguments_of_our_layers() -> None:
    """What stands in the second column is taken by the layers, as it stands there."""
    for name, (ours, *_) in PAGE.rows.items():
        code = ours.strip("`")
        if "=" in code and "(" not in code and "nothing" not in code and ":" not in code:
            given = eval(f"dict({code})")
            make: Any = ResidualVectorQuant if {"share", "quantizer_dropout"} & set(given) else VectorQuant
            groups = {"groups": 2} if make is ResidualVectorQuant else {}
            defaults = {} if {"feature_size", "num_codes"} & set(given) else {"feature_size": 8, "num_codes": 16}
            if "feature_size" in given or "num_codes" in given:
                defaults = {"feature_size": 8, "num_codes": 16} | given
                given = {}
            assert make(**defaults, **given, **groups), name
