"""The demo, for a few steps."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo.py"


def test_the_demo_writes_what_it_promises(tmp_path: Path) -> None:
    """Two checkpoints, a table, three pictures, and identical tokens after reloading in a new process."""
    command = [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path), "--max_steps", "2"]
    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-2000:]
    assert "all 4,096 tokens identical" in result.stdout
    table = (tmp_path / "comparison.md").read_text()
    assert "| plain VQ |" in table and "| full method |" in table
    for picture in ("reconstructions.png", "perplexity.png", "projection.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 500
    for name in ("plain", "full"):
        assert (tmp_path / name / "model.safetensors").is_file() and (tmp_path / name / "README.md").is_file()
