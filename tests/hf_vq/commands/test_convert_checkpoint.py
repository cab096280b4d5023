"""The conversion command as people start it: there, back, and refused."""

from __future__ import annotations

import hashlib
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from accelerate.state import PartialState
from huggingface_hub import ModelCard, hf_hub_download

import hf_vq
from hf_vq import MaskGitModel, VQModel
from hf_vq.commands import convert_checkpoint, evaluate

if TYPE_CHECKING:
    from ...hub_server import HubServer

_FOLDER = Path(__file__).parents[1] / "convert"
REFERENCES, MASKGIT, COMPARING, GENERATORS = (
    SimpleNamespace(**runpy.run_path(str(_FOLDER / name)))
    for name in ("vqgan_references.py", "maskgit_references.py", "comparing.py", "halton_reference.py")
)
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
    assert "| weights | converted from the layout of diffusers |" in card.text and card.data.license == "mit"
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


def test_a_model_of_segmentation_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes without an image processor, which makes colors, and without the colors that training drew at random."""
    taming = REFERENCES.Taming()
    taming.encoder.conv_in, taming.decoder.conv_out = (torch.nn.Conv2d(*ends, 3, 1, 1) for ends in ((7, 32), (32, 7)))
    torch.save({"state_dict": taming.state_dict() | {"colorize": torch.zeros(3, 7, 1, 1)}}, tmp_path / "last.ckpt")

    run("--checkpoint", tmp_path / "last.ckpt", "--output_dir", tmp_path / "ours", "--image_size", 32)

    printed = capsys.readouterr().out
    assert "images have 7 channels" in printed and "random colors for maps of classes" in printed
    assert not (tmp_path / "ours" / "preprocessor_config.json").exists()
    model = VQModel.from_pretrained(tmp_path / "ours").eval()
    maps = torch.nn.functional.one_hot(torch.arange(1024).reshape(1, 32, 32) % 7).movedim(-1, 1).float()
    with torch.no_grad():
        tokens = model.encode(maps).image_tokens
        assert torch.equal(tokens, taming.encode(maps)) and len(tokens.unique()) > 1
        torch.testing.assert_close(model.decode(tokens).decoded_pixel_values, taming.decode(tokens))


def test_cards_cite_the_original(hub: HubServer, theirs: Any, tmp_path: Path) -> None:
    """Project, source, license and hash of the file, or of each of its shards, also where the folder is pushed."""
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="400KB")
    shards = sorted((tmp_path / "theirs").glob("*.safetensors"))
    assert len(shards) > 1
    run(
        *("--checkpoint", tmp_path / "theirs", "--output_dir", tmp_path / "ours"),
        *("--license", "mit", "--source", "amused/amused-256"),
    )

    hf_vq.push_to_hub(tmp_path / "ours", "alice/converted")

    pushed = Path(hf_hub_download("alice/converted", "README.md"))
    for text in (card.read_text() for card in (tmp_path / "ours" / "README.md", pushed)):
        assert "| made by | https://github.com/huggingface/diffusers" in text
        assert "| source | amused/amused-256 |" in text and "license: mit" in text
        for shard in shards:
            assert f"{shard.name}, SHA-256 {hashlib.sha256(shard.read_bytes()).hexdigest()}" in text


@pytest.fixture
def five(tmp_path: Path) -> list[str]:
    """Folders of small tokenizers converted from five layouts, with other ranges and numbers of codes and pixels."""
    makers = {
        "taming": lambda: REFERENCES.Taming(),
        "llamagen": lambda: REFERENCES.LlamaGen(ch_mult=(1, 2, 2), n_embed=100),
        "showo": lambda: REFERENCES.ShowO(),
        "maskgit": lambda: MASKGIT.MaskGit(multipliers=(1, 2)),
        "maskbit": lambda: MASKGIT.MaskBit(z_channels=9, num_codes=512),
    }
    folders = []
    for number, (name, make) in enumerate(makers.items()):
        torch.save(COMPARING.randomize(make()).state_dict(), tmp_path / f"{name}.pt")
        folders.append(str(tmp_path / name))
        run(
            "--checkpoint", tmp_path / f"{name}.pt", "--output_dir", folders[-1], "--image_size", 32 * (1 + number % 3)
        )
    return folders


def test_converted_tokenizers_are_compared_in_one_command(
    five: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever sizes, ranges and layouts they are of; each gets the numbers that it has alone."""
    words = ["--dataset", "noto-emoji-32", "--max_images", "6", "--image_size", "32", "--use_cpu", "--disable_tqdm"]

    evaluate.main(["--compare", *five, "--output_dir", str(tmp_path / "all"), *words])

    printed = capsys.readouterr().out
    for name in ("PSNR", "SSIM", "Codes in use", "Bits per pixel", "Fréchet distance"):
        assert f"| {name}" in printed
    results = json.loads((tmp_path / "all" / "evaluation.json").read_text())["results"]
    assert [result["label"] for result in results] == ["taming", "llamagen", "showo", "maskgit", "maskbit"]
    bits = [result["metrics"]["bits_per_pixel"] for result in results]
    assert bits == pytest.approx([6 / 4, math.log2(100) / 16, 6 / 16, 6 / 4, 9 / 16])
    for folder, result in zip(five[2:4], results[2:4], strict=True):  # one of each range
        evaluate.main(["--model", folder, "--output_dir", str(tmp_path / "alone"), *words])
        alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())["results"][0]["metrics"]
        assert alone == pytest.approx(result["metrics"])
    with pytest.raises(SystemExit, match="Give one image_size for all"):
        evaluate.main(["--compare", *five, "--output_dir", str(tmp_path / "no"), *words[:4], *words[6:]])
    PartialState._reset_state()


def test_a_generator_with_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One folder that makes images, with a card that cites the project and the file."""
    torch.manual_seed(0)
    torch.save({"model": REFERENCES.LlamaGen().state_dict()}, tmp_path / "vq.pt")
    torch.save({"model_state_dict": GENERATORS.Generator().state_dict()}, tmp_path / "generator.pth")

    run(
        *("--checkpoint", tmp_path / "generator.pth", "--tokenizer", tmp_path / "vq.pt"),
        *("--output_dir", tmp_path / "ours", "--num_attention_heads", 4, "--license", "mit"),
    )

    printed = capsys.readouterr().out
    assert "5 classes, 4 x 4 tokens" in printed and "assumed: tokenizer: vectors and codes are normalized" in printed
    text = (tmp_path / "ours" / "README.md").read_text()
    assert "| made by | https://github.com/valeoai/Halton-MaskGIT |" in text and "generator.pth, SHA-256 " in text
    model = MaskGitModel.from_pretrained(tmp_path / "ours")
    assert model.generate(class_labels=[3], num_steps=2).images[0].size == (8, 8)
