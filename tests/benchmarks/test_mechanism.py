"""The benchmark of the mechanism, for a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from hf_vq.training.snapshots import load_snapshots

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mechanism.py"
PICTURES = (
    "toy_trajectories.png", "projection_panels.png", "density_ridges.png", "codebook_curves.png", "usage.png",
    "projection.gif",
)  # fmt: skip


def test_one_command_writes_pictures_and_a_table_with_its_protocol(tmp_path: Path) -> None:
    """Two methods for two steps: every picture, a table row for each, and a protocol that says how to repeat it."""
    command = [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path / "out"), "--results", str(tmp_path)]
    command += ["--max_steps", "2", "--methods", "standard", "full method"]
    # The script finds its neighbors by its own folder, which this variable would keep off the path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert result.returncode == 0, result.stderr[-2000:]
    for name in PICTURES:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 600, name
    text = (tmp_path / "mechanism.md").read_text()
    assert "| standard |" in text and "| full method |" in text and "seeds" in text
    assert '`python benchmarks/mechanism.py --max_steps 2 --seeds 0 --methods "standard" "full method"`' in text
    written = json.loads((tmp_path / "mechanism.json").read_text())
    assert written["protocol"]["seeds"] == [0] and written["protocol"]["methods"]["standard"]["beta"] == 0.95
    for record in written["records"]:
        folder = tmp_path / "out" / f"{record['method'].replace(' ', '_')}-0" / "codebook"
        last = load_snapshots(folder)[-1]
        assert record["steps"] == last.step == 2 and [one["step"] for one in record["snapshots"]] == [1, 2]
        assert {name: record[name] for name in last.metrics} == last.metrics
