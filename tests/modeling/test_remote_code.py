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
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

workplace = Path.cwd()
image = np.load(workplace / "image.npy")
for number, name in enumerate(sys.argv[1:]):
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
    with torch.no_grad():
        tokens = model.encode(processor(image, return_tensors="pt").pixel_values).image_tokens
        pixels = model.decode(tokens).decoded_pixel_values
    pipe = pipeline("image-tokenization", model=name, trust_remote_code=True)
    inferred = pipeline(model=name, trust_remote_code=True)  # from the config, the task being its only one
    answer = {
        "modules": [type(part).__module__ for part in (config, model, processor, pipe, pipe.model)],
        "tokens": tokens.tolist(),
        "pixels": pixels.double().sum().item(),
        "pipeline": [part(image)["image_tokens"].tolist() for part in (pipe, inferred)],
        "decoded": np.asarray(pipe.decode(tokens)[0]).tolist(),
        "postprocessed": processor.postprocess(pixels, "np")[0].tolist(),
        "size": config.image_size,
    }
    print(json.dumps(answer))
    model.save_pretrained(workplace / f"parts_of_{number}")
    processor.save_pretrained(workplace / f"parts_of_{number}")
    pipe.save_pretrained(workplace / f"pipe_of_{number}")
"""


def code_files(folder):
    """Names of the Python files of a folder, without the suffix."""
    return {path.stem for path in folder.glob("*.py")}


def file_names(folder):
    """Names of the files of a folder."""
    return {path.name for path in folder.iterdir() if path.is_file()}


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


def load_elsewhere(names, workplace):
    """Loads repositories or folders where hf_vq cannot be imported, and saves them in the workplace again."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HOME": str(workplace / "home"), "OMP_NUM_THREADS": "1"}
    script = workplace / "load.py"
    script.write_text(LOAD)
    result = subprocess.run(
        [sys.executable, "-I", script, *names], cwd=workplace, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@pytest.mark.local_code
def test_a_saved_model_runs_and_saves_again_without_the_package(tmp_path, hub):
    """Where hf_vq cannot be imported, Auto classes and pipelines load a folder and a repository; so a third time."""
    torch.manual_seed(0)
    model = VQModel(VQConfig(image_size=16, base_channels=8, channel_multiplier=[1, 2], num_codes=32))
    processor = VQImageProcessor(image_size=16)
    image = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8).numpy()
    pixel_values = processor(image, return_tensors="pt").pixel_values
    model(pixel_values)
    model.eval()
    folder = tmp_path / "checkpoint"
    for part in (model, processor):
        part.save_pretrained(folder)
        part.push_to_hub("alice/vq")
    np.save(tmp_path / "image.npy", image)
    with torch.no_grad():
        tokens = model.encode(pixel_values).image_tokens
        pixels = model.decode(tokens).decoded_pixel_values
    assert len(torch.unique(tokens)) > 4

    again = ["parts_of_0", "pipe_of_0", "parts_of_1", "pipe_of_1"]
    for names in ([str(folder), "alice/vq"], [str(tmp_path / name) for name in again]):
        answers = load_elsewhere(names, tmp_path)
        assert len(answers) == len(names)
        for answer in answers:
            assert all(module.startswith("transformers_modules.") for module in answer["modules"])
            assert answer["tokens"] == tokens.tolist() and answer["size"] == 16
            assert answer["pipeline"] == [tokens[0].tolist()] * 2
            assert answer["pixels"] == pytest.approx(pixels.double().sum().item(), rel=1e-6)
            assert answer["decoded"] == answer["postprocessed"]
        for name in again:
            assert file_names(tmp_path / name) == file_names(folder)


@pytest.mark.local_code
@pytest.mark.parametrize(
    "fields",
    [
        {"quantizer_type": "fsq", "levels": [8, 5, 5, 5], "level_activation": "sigmoid"},
        {"quantizer_type": "bsq", "num_groups": 2},
        {"quantizer_type": "simvq", "num_codes": 64},
        {"quantizer_type": "ibq", "num_codes": 64},
    ],
    ids=lambda fields: fields["quantizer_type"],
)
def test_other_kinds_run_without_the_package(fields, tmp_path):
    """Everything comes from the saved folder alone; tokens and pixels are the same."""
    torch.manual_seed(0)
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, embed_dim=4, **fields)
    model = VQModel(config).eval()
    processor = VQImageProcessor(image_size=16)
    image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
    np.save(tmp_path / "image.npy", image)
    with torch.no_grad():
        model.quant_conv.weight.mul_(30)
        vectors = model.quant_conv(model.encoder(processor(image, return_tensors="pt").pixel_values))
        model.quant_conv.bias.sub_(vectors.mean((0, 2, 3)))
        tokens = model.encode(processor(image, return_tensors="pt").pixel_values).image_tokens
        pixels = model.decode(tokens).decoded_pixel_values
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    assert len(torch.unique(tokens)) > 2

    (answer,) = load_elsewhere([str(tmp_path / "checkpoint")], tmp_path)
    assert all(module.startswith("transformers_modules.") for module in answer["modules"])
    assert answer["tokens"] == tokens.tolist()
    assert answer["pixels"] == pytest.approx(pixels.double().sum().item(), rel=1e-6)


def test_the_saved_folder_is_complete(tmp_path):
    """Weights, settings, code and the map that tells Auto classes where it is: nothing less, nothing more."""
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_codes=32)
    VQModel(config).save_pretrained(tmp_path)
    VQImageProcessor(image_size=16).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    processor_settings = json.loads((tmp_path / "preprocessor_config.json").read_text())

    assert settings["model_type"] == "hf_vq" and settings["architectures"] == ["VQModel"]
    assert settings["auto_map"] == {"AutoConfig": "configuration_vq.VQConfig", "AutoModel": "modeling_vq.VQModel"}
    pipelines = {"image-tokenization": {"impl": "pipeline_vq.ImageTokenizationPipeline", "pt": ["AutoModel"]}}
    assert settings["custom_pipelines"] == pipelines
    assert processor_settings["auto_map"] == {"AutoImageProcessor": "image_processing_vq.VQImageProcessor"}
    needed = needed_siblings("modeling_vq") | needed_siblings("image_processing_vq")
    assert {"configuration_vq", "quantizer_vq", "pipeline_vq"} < needed
    assert code_files(tmp_path) == needed
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
