"""What is shipped is what is in the tree."""

import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import hf_vq

ROOT = Path(__file__).parents[1]
SAMPLES = ("emoji-generator", "emoji-tokenizer")


def test_every_package_is_listed():
    """Each folder with Python code below hf_vq/ is in pyproject's list, so that the wheel holds it."""
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "hf_vq").rglob("*.py")} | {ROOT / "hf_vq" / "modeling"}

    assert set(listed) == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_the_link_points_to_the_top_level_folder():
    """hf_vq/modeling is a link to modeling/, for tools that only read the tree."""
    link = ROOT / "hf_vq" / "modeling"
    assert link.is_symlink() and link.resolve() == ROOT / "modeling"


def test_the_tests_run_against_the_installed_package():
    """The imported package is the one that the environment has installed, at the version it says."""
    distribution = metadata.distribution("hf_vq")
    files = [Path(str(file)) for file in distribution.files or []]
    installed = any(file.parent.suffix == ".dist-info" for file in files)
    if installed and Path("hf_vq/__init__.py") in files:  # a wheel, not an editable install
        assert Path(hf_vq.__file__) == Path(str(distribution.locate_file("hf_vq/__init__.py")))
        assert Path("hf_vq/modeling/quantizer_vq.py") in files
        assert Path("hf_vq_cli.py") in files and Path(sys.executable).with_name("hf-vq").is_file()
    assert distribution.version == hf_vq.__version__


def test_package_data_is_shipped():
    """The sample images, the cards' template, the recipes and the marker for type checkers come with the package."""
    package = resources.files("hf_vq")
    names = ("py.typed", "data/noto_emoji_32/train.parquet", "data/noto_emoji_32/test.parquet")
    names += tuple(f"samples/{name}/{file}" for name in SAMPLES for file in ("config.json", "model.safetensors"))
    for name in (*names, "cards/template.md", "recipes/noto_emoji_32.yaml"):
        assert (package / name).is_file()


def test_every_public_name_exists():
    """`from hf_vq import *` finds all it promises."""
    assert len(hf_vq.__all__) >= 12
    for name in hf_vq.__all__:
        assert getattr(hf_vq, name) is not None


CORE = """
import sys
for name in ("accelerate", "datasets", "matplotlib", "tensorboard", "torchmetrics"):
    sys.modules[name] = None
import torch
import hf_vq
model = hf_vq.VQModel(hf_vq.VQConfig(architecture="sqvae", image_size=32, base_channels=16)).eval()
tokens = model.encode(torch.zeros(1, 3, 32, 32)).image_tokens
assert model.decode(tokens).decoded_pixel_values.shape == (1, 3, 32, 32)
from hf_vq import *
assert VectorQuant is hf_vq.VectorQuant and "TokenizerTrainer" not in globals()
try:
    hf_vq.TokenizerTrainer
except ModuleNotFoundError as error:
    print(error)
"""


def test_the_core_installation_needs_no_training_packages():
    """Without the extra a model encodes and decodes, and asking for a trainer says what to install."""
    result = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-2000:]
    assert "pip install 'hf_vq[train]'" in result.stdout
