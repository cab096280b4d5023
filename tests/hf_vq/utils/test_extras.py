"""An installation without the optional extras says which one to install."""

import subprocess
import sys

import pytest

from hf_vq.utils.extras import require


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("from hf_vq import TokenizerTrainer", "train"),
        ("import hf_vq.training.optimization", "train"),
        ("import hf_vq.evaluation.evaluator", "eval"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(statement: str, extra: str) -> None:
    code = f"import sys; sys.modules['accelerate'] = None; import hf_vq; {statement}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ") and "accelerate" in last
    assert last.endswith(f"pip install 'hf_vq[{extra}]'")


def test_several_are_named_together_and_installed_ones_pass() -> None:
    require("train", "torch")
    with pytest.raises(ModuleNotFoundError, match=r"^no_such_one and no_other are not .*'hf_vq\[train\]'$"):
        require("train", "no_such_one", "torch", "no_other")
