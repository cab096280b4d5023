"""A kind of quantizer of this package is its file, a row in the table and a name: nothing else has to change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Besides the new file: the lines that are added, each behind the line that stands before it.
ADDED = {
    "quantizers_vq.py": {
        "from .residual_vq import ResidualVectorQuant\n": "from .signs_vq import SignQuantizer\n",
        '    "fsq": FiniteScalarQuant,\n': '    "signs": SignQuantizer,\n',
    },
    "checks_quantizer_vq.py": {'QUANTIZER_TYPES = ("vector", "group", "residual", "fsq"': ', "signs"'},
}

TRAIN = """
from pathlib import Path
import torch
import hf_vq
from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VQConfig, VQModel

assert Path(hf_vq.__file__).is_relative_to(Path.cwd()), hf_vq.__file__
torch.manual_seed(0)
config = VQConfig(
    architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, embed_dim=4, quantizer_type="signs",
    num_codes=16, quantizer_options={"scale": 0.5},
)
images = [{"pixel_values": torch.rand(3, 16, 16) * 2 - 1} for _ in range(16)]
args = TokenizerTrainingArguments(
    output_dir="run", max_steps=4, train_batch_size=4, use_cpu=True, use_ema=True, monitor_steps=2, monitor_images=4,
    disable_tqdm=True,
)
TokenizerTrainer(VQModel(config), args, images, images, hf_vq.VQImageProcessor(image_size=16)).train()
"""

LOAD = """
import json, sys
sys.modules["hf_vq"] = None  # importing it now raises
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained("run/final", trust_remote_code=True)
tokens = model.encode(torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)).image_tokens
print(json.dumps([type(model.quantize).__name__, list(tokens.shape), float(model.quantize.scale)]))
"""


def run(source: str, folder: Path, *options: str) -> str:
    """The output of a program in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, *options, "-c", source]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def test_a_kind_is_added_in_three_places(tmp_path: Path) -> None:
    """In a copy of the sources it then trains, is monitored, carded and saved, and loads where the package is not."""
    for folder in ("modeling", "hf_vq"):
        leave_out = shutil.ignore_patterns("__pycache__", "*.parquet")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=leave_out)
    toy = (ROOT / "tests" / "toy_quantizer.py").read_text(encoding="utf-8")
    imported = "from hf_vq import Quantizer, QuantizerOutput"
    assert imported in toy
    new = toy.replace(imported, "from .base_quantizer_vq import Quantizer, QuantizerOutput")
    (tmp_path / "modeling" / "signs_vq.py").write_text(new, encoding="utf-8")
    for name, lines in ADDED.items():
        source = tmp_path / "modeling" / name
        text = source.read_text(encoding="utf-8")
        for before, added in lines.items():
            assert text.count(before) == 1
            text = text.replace(before, before + added)
        source.write_text(text, encoding="utf-8")

    run(TRAIN, tmp_path)
    card = (tmp_path / "run" / "final" / "README.md").read_text(encoding="utf-8")
    assert "signs, scale 0.5" in card and "codebook share beta" not in card
    assert len(list((tmp_path / "run" / "codebook").glob("step-*"))) == 3
    kind, shape, scale = json.loads(run(LOAD, tmp_path, "-P"))
    assert (kind, shape) == ("SignQuantizer", [1, 4, 4]) and scale != 0.5
