"""The demo, for a few steps."""

import subprocess
import sys
from pathlib import Path

from PIL import Image


def test_the_demo_writes_what_it_promises(tmp_path: Path) -> None:
    """Three checkpoints, a table, four pictures, and identical tokens after reloading in a new process."""
    command = [sys.executable, "-m", "hf_vq.commands.demo", "--output_dir", str(tmp_path), "--max_steps", "2"]
    command += ["--generator_steps", "1"]
    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-2000:]
    assert "all 4,096 tokens identical" in result.stdout
    table = (tmp_path / "comparison.md").read_text()
    assert "| plain VQ |" in table and "| full method |" in table
    for picture in ("reconstructions.png", "perplexity.png", "projection.png", "samples.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 500
    for name in ("plain", "full", "generator"):
        assert (tmp_path / name / "model.safetensors").is_file() and (tmp_path / name / "README.md").is_file()


def test_the_quick_demo_is_the_tokenizers_alone(tmp_path: Path) -> None:
    """It ends before the generator."""
    command = [sys.executable, "-m", "hf_vq.commands.demo", "--output_dir", str(tmp_path), "--max_steps", "1"]
    result = subprocess.run([*command, "--quick"], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "full").is_dir() and not (tmp_path / "generator").exists()
    assert not (tmp_path / "samples.png").exists()
