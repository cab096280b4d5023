"""Publishing weights that have a card: every way keeps what it knows of them, unless the weights are others by now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import AutoModel

import hf_vq
from hf_vq import VQConfig, VQModel
from hf_vq.data.held_out import HeldOut
from hf_vq.hub.folders import SPLIT_FILE, STATE_FILE, load_folder
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.tokenizer import TokenizerTrainer

if TYPE_CHECKING:
    from ..hub_server import HubServer

NAME = "alice/vq"


class Noise(torch.utils.data.Dataset):
    """A few images, held out of twice as many."""

    held_out = HeldOut("dots", "train", 12, 6, seed=0)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.rand(3, 16, 16, generator=generator) * 2 - 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """The final folder of a run, and the model that it trained."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "image_size": 16,
        "base_channels": 8,
        "num_res_blocks": 1,
        "embed_dim": 4,
        "num_codes": 16,
    }
    model = VQModel(VQConfig(architecture="sqvae", **fields))
    folder = tmp_path_factory.mktemp("runs") / "emoji-vq"
    args = TokenizerTrainingArguments(
        output_dir=str(folder), dataset="alice/dots", eval_split="test", max_steps=2, train_batch_size=2,
        eval_batch_size=6, learning_rate=0.00123, use_cpu=True, disable_tqdm=True, report_to=[],
        save_training_state=True,
    )  # fmt: skip
    trainer = TokenizerTrainer(model, args, Noise(), Noise())
    trainer.train()
    trainer.close()
    yield folder / "final", model
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def text(hub: HubServer, name: str = NAME, file: str = "README.md") -> str:
    """A file of a repository."""
    return hub.store.read(name, file).decode()


def section(card: str, heading: str) -> str:
    """A section of a card."""
    return card.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def from_hub_of_hub(folder: Path) -> Any:
    """Loaded from a repository to which the folder was pushed."""
    hf_vq.push_to_hub(folder, "alice/first")
    return hf_vq.from_hub("alice/first")[0]


def auto_model_of_hub(folder: Path) -> Any:
    """Loaded by transformers from such a repository."""
    hf_vq.push_to_hub(folder, "alice/first")
    return AutoModel.from_pretrained("alice/first")


WAYS: dict[str, Callable[[Path], Any]] = {
    "path": lambda folder: folder,
    "string": str,
    "from_pretrained": VQModel.from_pretrained,
    "auto": AutoModel.from_pretrained,
    "load_folder": lambda folder: load_folder(folder, folder)[0],
    "from_hub": from_hub_of_hub,
    "auto of the Hub": auto_model_of_hub,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_keeps_recipe_numbers_and_picture(hub: HubServer, trained: tuple[Path, Any], way: str) -> None:
    """The card says what the run's says, of the repository's name; the picture goes along."""
    folder, _ = trained
    hf_vq.push_to_hub(WAYS[way](folder), NAME)

    there, here = ModelCard.load(folder / "README.md"), ModelCard(text(hub))
    assert "| learning rate | 0.00123, cosine |" in here.text and "| PSNR" in here.text
    for heading in ("Training", "Evaluation", "Limits", "Model"):
        assert section(here.text, heading) == section(there.text, heading), heading
    assert here.data.to_dict()["model-index"][0]["results"] == there.data.to_dict()["model-index"][0]["results"]
    assert here.data.to_dict()["datasets"] == ["alice/dots"]
    assert here.text.lstrip().startswith("# vq\n") and 'name = "alice/vq"' in here.text
    assert "path/to/this/folder" not in here.text and here.text.count("hf_vq: begin") == 1
    assert hub.store.read(NAME, "reconstructions.png") == (folder / "reconstructions.png").read_bytes()
    assert "](reconstructions.png)" in here.text
    assert hub.store.read(NAME, STATE_FILE) == (folder / STATE_FILE).read_bytes()
    assert hub.store.read(NAME, SPLIT_FILE) == (folder / SPLIT_FILE).read_bytes()
    assert f"| training state | in {STATE_FILE}, for --init_from |" in here.text
    entries = parse_eval_result_entries(yaml.safe_load(text(hub, file=".eval_results/hf_vq.yaml")))
    psnr = next(entry for entry in entries if entry.task_id == "psnr")
    assert psnr.dataset_id == "alice/dots" and "split test" in str(psnr.notes) and psnr.value > 0


def test_the_method_of_the_trained_model_keeps_them_too(hub: HubServer, trained: tuple[Path, Any]) -> None:
    """Right after training, without loading anything; a second push changes nothing."""
    _, model = trained
    first = model.push_to_hub(NAME)

    assert "| learning rate | 0.00123, cosine |" in text(hub) and "| PSNR" in text(hub)
    assert model.push_to_hub(NAME) == first
    assert hf_vq.push_to_hub(hf_vq.from_hub(NAME)[0], NAME) == first


def test_a_folder_of_the_same_name_is_not_taken_for_the_repository(
    hub: HubServer, trained: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from_hub` knows where its model is from, whatever lies in the working directory."""
    hf_vq.push_to_hub(trained[0], NAME)
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hf_vq.push_to_hub(hf_vq.from_hub(NAME)[0], "alice/copy")

    assert "| learning rate | 0.00123, cosine |" in text(hub, "alice/copy")


def test_changed_weights_do_not_inherit(
    hub: HubServer, trained: tuple[Path, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One bit is enough: a warning and the card say so, and numbers of older weights are nowhere."""
    folder, _ = trained
    hf_vq.push_to_hub(folder, NAME)
    model = VQModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).view(torch.int32).flatten()[0] ^= 1
    with caplog.at_level(logging.WARNING):
        hf_vq.push_to_hub(model, NAME)

    assert "weights are not those of 'emoji-vq' any more" in caplog.text
    assert "Not measured." in text(hub) and "0.00123" not in text(hub)
    assert "| made of | emoji-vq, whose weights were changed |" in text(hub)
    for name in (".eval_results/hf_vq.yaml", STATE_FILE, SPLIT_FILE):
        assert name not in hub.store.files(NAME), name
    assert STATE_FILE not in text(hub)


def test_arguments_take_the_place_of_what_was_known(hub: HubServer, trained: tuple[Path, Any]) -> None:
    """New numbers replace the old ones; rows of the recipe are replaced one by one."""
    folder, _ = trained
    hf_vq.push_to_hub(
        folder, NAME, metrics={"psnr": 12.34, "num_images": 5}, split="validation", dataset="alice/other",
        training={"steps": 99, "learning_rate": None, "notes": "by hand"}, license="mit",
    )  # fmt: skip

    card: Any = ModelCard(text(hub))
    results = card.data.eval_results
    assert [(result.metric_type, result.metric_value, result.dataset_type) for result in results] == [
        ("psnr", 12.34, "alice/other")
    ]
    training = section(card.text, "Training")
    assert "| steps | 99 |" in training and "| notes | by hand |" in training and "| images per step | 2 |" in training
    assert "learning rate" not in training and training.count("| steps |") == 1
    assert "| data set | alice/other |" in training and "alice/dots" not in card.text
    assert card.data.license == "mit" and "## License\n\nmit\n" in card.text


def test_what_a_person_wrote_goes_along(hub: HubServer, trained: tuple[Path, Any], tmp_path: Path) -> None:
    """Text, title and metadata in the folder's card reach the repository."""
    folder, _ = trained
    card = (folder / "README.md").read_text()
    model = VQModel.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    persons = card.replace("library_name:", "language: [en]\nlibrary_name:", 1) + "\n\n## Thanks\n\nTo my aunt.\n"
    (tmp_path / "README.md").write_text(persons)
    hf_vq.push_to_hub(tmp_path, NAME)

    pushed = ModelCard(text(hub))
    assert "To my aunt." in pushed.text and pushed.data.to_dict()["language"] == ["en"]
    assert "| learning rate | 0.00123, cosine |" in pushed.text and 'name = "alice/vq"' in pushed.text


def test_folders_without_a_model_are_told_of(hub: HubServer, trained: tuple[Path, Any], tmp_path: Path) -> None:
    """A run's folder leads to its model, a missing one is called missing; nothing is made on the Hub."""
    folder, _ = trained
    with pytest.raises(FileNotFoundError, match="A finished run has its model in '.*final'"):
        hf_vq.push_to_hub(folder.parent, NAME)
    with pytest.raises(FileNotFoundError, match="there is no folder 'nowhere/final'"):
        hf_vq.push_to_hub("nowhere/final", NAME)
    assert not hub.store.repositories
