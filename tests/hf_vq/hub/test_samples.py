"""The models that come with the package: what they are stored as, where their names work, and what comes first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

import hf_vq
from hf_vq.data import ImageDataset, load_images
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.hub.loading import load_model
from hf_vq.hub.repository import require_findable
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.starting_point import load_starting_point
from hf_vq.utils.text import DATA_PREFIX

from ...tiny_tokens import save, tiny

if TYPE_CHECKING:
    from ...hub_server import HubServer

TOKENIZER, GENERATOR = "emoji-tokenizer", "emoji-generator"


EXTRAS = ("accelerate", "datasets", "matplotlib", "pyarrow", "tensorboard", "torchdata", "torchmetrics")


def without_extras(folder: Path) -> str:
    """A path to import from that has what is installed, but for the packages of the extras."""
    package, site = Path(hf_vq.__file__).parent, Path(torch.__file__).parents[1]
    for path in [*site.iterdir(), package, package.parent / "hf_vq_cli.py"]:
        if not path.name.startswith(EXTRAS) and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return str(folder)


def generate(folder: Path, path: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `hf-vq generate` in a folder and a process of its own, without a connection."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": path, "PYTHONPATH": path}
    command = [sys.executable, "-S", "-m", "hf_vq_cli", "generate", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_picture_is_generated_offline_in_an_empty_folder(tmp_path: Path) -> None:
    """Without any extra. The name of a class and its number make the same picture, whatever the file is called."""
    (tmp_path / "installed").mkdir()
    (tmp_path / "empty").mkdir()
    folder, path = tmp_path / "empty", without_extras(tmp_path / "installed")
    names = hf_vq.MaskGitConfig.from_pretrained(hf_vq.sample_model(GENERATOR)).id2label or {}
    number = str(list(names.values()).index("flags"))
    for label, output in (("flags", []), (number, ["--output", "other.png"])):
        result = generate(folder, path, "--model", GENERATOR, "--class_labels", label, *output)
        assert result.returncode == 0, result.stderr[-2000:]
    picture, other = (np.asarray(Image.open(folder / name)) for name in ("generated.png", "other.png"))

    assert picture.shape == (32, 32, 3) and len(np.unique(picture)) > 20
    assert np.array_equal(picture, other)


@pytest.mark.parametrize("name", [TOKENIZER, GENERATOR])
def test_weights_are_stored_in_half_and_loaded_in_full(name: str) -> None:
    """`AutoModel` makes float32 of them, exactly; no configuration or card names a folder of another machine."""
    folder = Path(hf_vq.sample_model(name))
    stored = load_file(folder / "model.safetensors")
    model = AutoModel.from_pretrained(folder)
    loaded = model.state_dict()

    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    assert model.dtype == torch.float32 and model.config.dtype == torch.float32
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in stored.items())
    texts = "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md"))
    assert not re.search(r"_name_or_path|[\"' ]/\w+/\w+", texts)


def test_both_are_small_together() -> None:
    """The generator carries the tokenizer, bit for bit, and all files are under 12 MB."""
    folders = [Path(hf_vq.sample_model(name)) for name in (TOKENIZER, GENERATOR)]
    tokenizer, carried = (load_file(folder / "model.safetensors") for folder in folders)

    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 12e6
    assert all(torch.equal(carried[f"tokenizer.{key}"], value) for key, value in tokenizer.items())


def test_the_card_of_the_tokenizer_has_the_error_that_it_makes() -> None:
    """On the held-out emoji, to the last digit that the table shows."""
    model, processor = load_model(TOKENIZER)
    rows = load_images("noto-emoji-32", "test")
    pixels = torch.stack([ImageDataset(rows, 32)[i]["pixel_values"] for i in range(len(rows))])
    with torch.no_grad():
        decoded = model(pixels, return_loss=False).decoded_pixel_values.clamp(-1, 1)
    error = ((decoded - pixels) / 2).square().mean().item()
    table = ModelCard.load(Path(hf_vq.sample_model(TOKENIZER)) / "README.md").text.rpartition("### Measured by")[2]
    found = re.search(r"\| MSE ↓ +\| ([\d.]+) +\| 206 images", table)

    assert found is not None
    assert error == pytest.approx(float(found[1]), rel=2e-3)


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory, where a person sees it."""
    assert load_model(TOKENIZER)[0].config.image_size == 32
    monkeypatch.chdir(tmp_path)
    save(tiny(), tmp_path / TOKENIZER)

    assert load_model(TOKENIZER)[0].config.image_size == 16


def test_names_that_are_none_are_told() -> None:
    """By the function, and by a command before it reads anything; a sample has no revision."""
    with pytest.raises(ValueError, match="no sample model 'emoji'. Choose among 'emoji-generator', 'emoji-tokenizer'"):
        hf_vq.sample_model("emoji")
    with pytest.raises(FileNotFoundError, match="did you mean 'emoji-tokenizer', which comes with the package"):
        load_model("emoji-tokeniser")
    with pytest.raises(ValueError, match="'emoji-tokenizer' comes with the package and has no revision 'v1'"):
        load_model(TOKENIZER, "v1")
    with pytest.raises(ValueError, match="'emoji-generator' is not a tokenizer but a MaskGitModel"):
        load_model(GENERATOR, noun="tokenizer")


def test_a_sample_is_where_a_run_can_start(tmp_path: Path) -> None:
    """By its name, which the run and the card then say; data are looked for under their own names."""
    start = load_starting_point(TokenizerTrainingArguments(str(tmp_path), init_from=TOKENIZER), "tokenizer")
    require_findable(TOKENIZER, "no tokenizer")

    assert start is not None and start.state_file is None
    assert start.describe() == {"name": TOKENIZER, "commit": None, "on_hub": False}
    with pytest.raises(FileNotFoundError, match="no tokens in 'emoji-tokenizer': there is no such folder here; ask"):
        require_findable(TOKENIZER, "no tokens", DATA_PREFIX)


def test_a_sample_is_published_with_its_card(hub: HubServer) -> None:
    """By its name; the numbers go along, since weights that were widened are the same weights."""
    hf_vq.push_to_hub(TOKENIZER, "alice/copy")
    card = ModelCard.load("alice/copy").text

    assert "### Measured by `hf-vq evaluate`" in card and "whose weights were changed" not in card
    pushed = hf_vq.from_hub("alice/copy")[0].state_dict()
    assert all(torch.equal(pushed[key], value) for key, value in load_model(TOKENIZER)[0].state_dict().items())


def test_the_card_of_a_sample_is_not_overwritten(tmp_path: Path) -> None:
    """The installed package stays as it was installed; of a copy the card is filled in."""
    settings: dict[str, Any] = {"output_dir": str(tmp_path / "out"), "dataset": "noto-emoji-32", "update_cards": True}
    with pytest.raises(ValueError, match="Copy the folder that hf_vq.sample_model gives, and name the copy"):
        EvaluationArguments(model=TOKENIZER, **settings)
    shutil.copytree(hf_vq.sample_model(TOKENIZER), tmp_path / "copy")

    assert EvaluationArguments(model=str(tmp_path / "copy"), **settings).update_cards
