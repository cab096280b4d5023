"""The conversion command as people start it: there, back, and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard

from hf_vq.commands import convert_checkpoint

LOAD = """
import json, sys, torch
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).sin()
tokens = model.encode(pixels).image_tokens.flatten().tolist()
print(json.dumps([tokens, processor.do_normalize, processor.size["shortest_edge"]]))
"""


def run(*words: object) -> None:
    """The command's main function, in this process."""
    convert_checkpoint.main(list(map(str, words)))


@pytest.fixture
def theirs() -> Any:
    """A small model of diffusers with codes where its vectors are."""
    torch.manual_seed(0)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model: Any = diffusers.VQModel(**levels, block_out_channels=[32, 64], latent_channels=6, num_vq_embeddings=64)
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.3)
    return model.eval()


@pytest.mark.local_code
def test_there_and_back(theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder loads by its own code, gives the same tokens, and goes back to equal weights."""
    theirs.save_pretrained(tmp_path / "theirs")
    run("--checkpoint", tmp_path / "theirs", "--output_dir", tmp_path / "ours", "--image_size", 32, "--license", "mit")
    printed = capsys.readouterr().out
    assert "layout diffusers" in printed and "64 codes, 16 x 16 tokens at 32 px" in printed

    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert "| weights | theirs, converted from the layout of diffusers |" in card.text and card.data.license == "mit"
    loaded = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "ours")], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    tokens, do_normalize, side = json.loads(loaded.stdout)
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).sin()
    with torch.no_grad():
        assert tokens == theirs.quantize(theirs.encode(pixels).latents)[2][2].tolist() and len(set(tokens)) > 5
    assert do_normalize and side == 32

    run("--checkpoint", tmp_path / "ours", "--output_dir", tmp_path / "back", "--to", "diffusers")
    back: Any = diffusers.VQModel.from_pretrained(tmp_path / "back")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_pixels_from_zero_and_notes(theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was left out is told, on the screen and in the card; the image processor can be without normalization."""
    torch.save({"state_dict": theirs.state_dict() | {"loss.weight": torch.zeros(1)}}, tmp_path / "last.ckpt")
    run("--checkpoint", tmp_path / "last.ckpt", "--output_dir", tmp_path / "ours", "--no_normalize")

    assert "note: left out the discriminator" in capsys.readouterr().out
    assert "left out the discriminator" in (tmp_path / "ours" / "README.md").read_text()
    assert json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())["do_normalize"] is False
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["pixel_range"] == [0.0, 1.0]


def test_image_size_and_range_of_pixels_come_back(theirs: Any, tmp_path: Path) -> None:
    """By way of diffusers, without options."""
    theirs.save_pretrained(tmp_path / "theirs")
    options = ["--image_size", 64, "--no_normalize"]
    run("--checkpoint", tmp_path / "theirs", "--output_dir", tmp_path / "ours", *options)
    run("--checkpoint", tmp_path / "ours", "--output_dir", tmp_path / "export", "--to", "diffusers")
    run("--checkpoint", tmp_path / "export", "--output_dir", tmp_path / "back")

    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "back" / name).read_text() == (tmp_path / "ours" / name).read_text(), name
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["image_size"] == 64 and config["pixel_range"] == [0.0, 1.0]
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["do_normalize"] is False


def test_an_older_folder_is_exported_with_its_range(theirs: Any, tmp_path: Path) -> None:
    """Its configuration says nothing, its image processor does; one that contradicts is refused."""
    theirs.save_pretrained(tmp_path / "theirs")
    run("--checkpoint", tmp_path / "theirs", "--output_dir", tmp_path / "ours", "--no_normalize")
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    for pixel_range in (None, [-1.0, 1.0]):
        written = {name: value for name, value in settings.items() if name != "pixel_range"}
        written |= {} if pixel_range is None else {"pixel_range": pixel_range}
        (tmp_path / "ours" / "config.json").write_text(json.dumps(written))
        words = ["--checkpoint", tmp_path / "ours", "--output_dir", tmp_path / "export", "--to", "diffusers"]
        if pixel_range is None:
            run(*words)
            assert json.loads((tmp_path / "export" / "config.json").read_text())["_hf_vq"] == {"do_normalize": False}
        else:
            with pytest.raises(SystemExit, match=r"error: .*makes pixels in \[0.0, 1.0\], but"):
                run(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "nothing.pt"], "error: There is no file or folder"),
        (["--checkpoint", "other.pt"], "error: No known layout"),
        (["--checkpoint", ".", "--to", "diffusers"], "error: no tokenizer in '.': the folder has no config.json"),
        (["--checkpoint", "good.pt", "--image_size", "33"], "error: .*`image_size` must be a positive multiple"),
    ],
)
def test_errors_are_messages(
    words: list[str], message: str, theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script ends with what was wrong, without a trace, and has written nothing."""
    monkeypatch.chdir(tmp_path)
    torch.save({"layer.weight": torch.zeros(1)}, "other.pt")
    torch.save(theirs.state_dict(), "good.pt")

    with pytest.raises(SystemExit, match=f"(?s){message}"):
        run(*words, "--output_dir", "out")
    assert not Path("out").exists()


def test_nothing_is_overwritten(theirs: Any, tmp_path: Path) -> None:
    """The checkpoint's own folder is refused, and what a person wrote in a card stays."""
    theirs.save_pretrained(tmp_path / "theirs")
    before = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    weights = str(next((tmp_path / "theirs").glob("*.safetensors")))
    for checkpoint in (str(tmp_path / "theirs"), weights):
        with pytest.raises(SystemExit, match="holds the checkpoint"):
            run("--checkpoint", checkpoint, "--output_dir", str(tmp_path / "theirs"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()} == before

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# Mine\n\nRead this.\n")
    run("--checkpoint", weights, "--output_dir", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Mine\n\nRead this.\n" in card and "converted from the layout" in card
