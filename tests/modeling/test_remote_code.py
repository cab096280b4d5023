"""The files of modeling/ travel with a checkpoint and work where this package is not installed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_vq.modeling
from hf_vq import VQConfig, VQImageProcessor, VQModel

SOURCES = sorted(Path(hf_vq.modeling.__file__).parent.glob("*.py"))
ALLOWED = {"torch", "numpy", "PIL", "transformers", "huggingface_hub", "safetensors"} | set(sys.stdlib_module_names)

LOAD = """
import json, sys
from pathlib import Path

import numpy as np

sys.modules["hf_vq"] = None  # importing it now raises
import torch
from transformers import AutoImageProcessor, AutoModel

folder = Path(sys.argv[1])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
image = np.load(folder / "image.npy")
tokens = model.encode(processor(image, return_tensors="pt").pixel_values).image_tokens
pixels = model.decode(tokens).decoded_pixel_values
processor.postprocess(pixels)[0].save(folder / "remote.png")
model.save_pretrained(folder / "again")
total = pixels.double().sum().item()
print(json.dumps({"tokens": tokens.tolist(), "module": type(model).__module__, "pixels": total}))
"""


def code_files(folder):
    """Names of the Python files of a folder, without the suffix."""
    return {path.stem for path in folder.glob("*.py")}


def needed_siblings(name):
    """A file of modeling/ and, recursively, the siblings that it imports."""
    source = Path(hf_vq.modeling.__file__).with_name(f"{name}.py").read_text()
    imports = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]
    return {name}.union(*(needed_siblings(module) for module in imports))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_imports_are_flat(path):
    """A file imports only packages that every user of transformers has, and siblings as `from .name import x`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= ALLOWED, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None and node.module.partition(".")[0] in ALLOWED, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (path.parent / f"{node.module}.py").is_file(), ast.unparse(node)


def test_a_saved_model_runs_without_the_package(tmp_path):
    """Where hf_vq cannot be imported, the code in the folder gives the same tokens and pixels, and saves again."""
    torch.manual_seed(0)
    model = VQModel(VQConfig(image_size=16, base_channels=8, channel_multiplier=[1, 2], num_codes=32))
    processor = VQImageProcessor(image_size=16)
    image = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8).numpy()
    pixel_values = processor(image, return_tensors="pt").pixel_values
    model(pixel_values)
    model.eval()
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    np.save(folder / "image.npy", image)
    tokens = model.encode(pixel_values).image_tokens
    pixels = model.decode(tokens).decoded_pixel_values

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    result = subprocess.run(
        [sys.executable, "-I", script, folder], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])

    assert answer["module"].startswith("transformers_modules.")
    assert answer["tokens"] == tokens.tolist()
    assert answer["pixels"] == pytest.approx(pixels.double().sum().item(), rel=1e-6)
    assert code_files(folder / "again") == code_files(folder) - {"image_processing_vq"}


def test_the_saved_folder_is_complete(tmp_path):
    """Weights, settings, code and the map that tells Auto classes where it is: nothing less, nothing more."""
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_codes=32)
    VQModel(config).save_pretrained(tmp_path)
    VQImageProcessor(image_size=16).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    processor_settings = json.loads((tmp_path / "preprocessor_config.json").read_text())

    assert settings["model_type"] == "hf_vq" and settings["architectures"] == ["VQModel"]
    assert settings["auto_map"] == {"AutoConfig": "configuration_vq.VQConfig", "AutoModel": "modeling_vq.VQModel"}
    assert processor_settings["auto_map"] == {"AutoImageProcessor": "image_processing_vq.VQImageProcessor"}
    needed = needed_siblings("modeling_vq") | needed_siblings("image_processing_vq")
    assert {"configuration_vq", "quantizer_vq"} < needed
    assert code_files(tmp_path) == needed
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
