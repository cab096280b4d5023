"""The table of kinds: a new generator is one row, and everything that works with models finds it there."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

import hf_vq
from hf_vq import VQConfig, VQModel, kinds
from hf_vq.cards.base import Facts, Slots, card
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate
from hf_vq.hub.loading import load_model
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.tokenizer import TokenizerTrainer

from ..tiny_tokens import picture

if TYPE_CHECKING:
    from ..hub_server import HubServer

NAME = "alice/dice"


class DiceConfig(PreTrainedConfig):
    """A generator that throws dice for tokens."""

    model_type = "dice"

    def __init__(self, vq_config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.vq_config = VQConfig(**(vq_config or {}))
        self.num_classes = 0
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """With the tokenizer's."""
        return super().to_dict() | {"vq_config": self.vq_config.to_dict()}


class DiceModel(PreTrainedModel):
    """It has a tokenizer, and a weight of its own."""

    config_class = DiceConfig

    def __init__(self, config: DiceConfig) -> None:
        super().__init__(config)
        self.tokenizer = VQModel(config.vq_config)
        self.bias = torch.nn.Parameter(torch.zeros(3))
        self.post_init()

    @torch.no_grad()
    def generate(self, class_labels: Any, num_images: int, generator: Any, output_type: str, **sampling: Any) -> Any:
        """Images of random tokens."""
        config = self.config.vq_config
        side = config.image_size // config.downsample_factor
        tokens = [torch.randint(config.num_codes, (side, side), generator=each) for each in generator]
        pixels = self.tokenizer.decode(torch.stack(tokens)).decoded_pixel_values
        return SimpleNamespace(images=((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


@card
def dice_card(config: DiceConfig, facts: Facts, trained_on: str) -> Slots:
    """What the card says."""
    return Slots(
        title="Dice",
        tags=("hf_vq", "dice"),
        opening="Throws dice.",
        code="print(6)",
        model={"parameters": facts.get("num_parameters")},
        limits=[f"It was not trained{trained_on}."],
        works=["@misc{dice}"],
    )


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model of the kind, which is in the table as one row."""
    row = kinds.Kind(
        noun="generator",
        config=DiceConfig,
        model=DiceModel,
        card=f"{__name__}.dice_card",
        picture="hf_vq.hub.models.sample_picture",
        picture_file="samples.png",
        measurement="hf_vq.evaluation.measurements.evaluate_generators",
    )
    monkeypatch.setitem(kinds.KINDS, "dice", row)
    torch.manual_seed(0)
    settings = {"image_size": 16, "base_channels": 8, "num_res_blocks": 1, "num_codes": 16}
    return DiceModel(DiceConfig({"architecture": "sqvae", **settings})).eval()


def test_one_row_publishes_and_loads_a_kind(hub: HubServer, dice: Any, tmp_path: Path) -> None:
    """Its own card and picture go up in one commit; it comes down from the Hub and from a folder."""
    hf_vq.push_to_hub(dice, NAME, images=[Image.new("RGB", (16, 16), "red")], dataset="alice/dots", license="mit")

    assert [commit.title for commit in hub.store.repositories["models", NAME].history()][0] == "Upload DiceModel"
    assert "samples.png" in hub.store.files(NAME)
    text = ModelCard(hub.store.read(NAME, "README.md").decode()).text
    assert "Throws dice." in text and "@misc{dice}" in text and "It was not trained (`alice/dots`)." in text
    assert "| parameters | 3 |" in text  # its own, without the tokenizer's
    dice.save_pretrained(tmp_path / "dice")
    for loaded, processor in (hf_vq.from_hub(NAME), load_model(tmp_path / "dice", noun="generator")):
        assert type(loaded) is DiceModel and processor.crop_size["height"] == 16
        weights = loaded.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in dice.state_dict().items())


def test_a_run_writes_the_card_of_its_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trainers have no card function of their own: the row of the table decides, with the parameters counted there."""
    row = dataclasses.replace(kinds.KINDS["hf_vq"], card=f"{__name__}.dice_card")
    monkeypatch.setitem(kinds.KINDS, "hf_vq", row)
    settings: dict[str, Any] = {"image_size": 16, "base_channels": 8, "num_res_blocks": 1, "num_codes": 16}
    model = VQModel(VQConfig(architecture="sqvae", **settings))
    args = TokenizerTrainingArguments(output_dir=str(tmp_path / "dots"), dataset="alice/dots", use_cpu=True)
    trainer = TokenizerTrainer(model, args, [{"pixel_values": torch.zeros(3, 16, 16)}] * 16)
    trainer.save_model(tmp_path / "dots" / "final")
    trainer.close()

    text = (tmp_path / "dots" / "final" / "README.md").read_text()
    assert "Throws dice." in text and f"| parameters | {model.num_parameters():,} |" in text
    assert "# dots\n" in text and "It was not trained (`alice/dots`)." in text


def test_one_row_evaluates_a_kind(dice: Any, tmp_path: Path) -> None:
    """The numbers of generators are measured, and a card of its own kind gets them."""
    dice.save_pretrained(tmp_path / "dice")
    for number in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(number).save(tmp_path / "images" / f"{number}.png")
    report = evaluate(
        EvaluationArguments(
            str(tmp_path / "images"),
            compare=[str(tmp_path / "dice")],
            output_dir=str(tmp_path / "out"),
            split="train",
            batch_size=2,
            num_steps=2,
            use_cpu=True,
            disable_tqdm=True,
            update_cards=True,
        )
    )

    assert report.kind == "generator" and report.results[0]["metrics"]["frechet_8x8_pixels"] > 0
    text = (tmp_path / "dice" / "README.md").read_text()
    assert "Throws dice." in text and "Fréchet distance (8x8_pixels)" in text


def test_without_a_row_a_model_is_refused(hub: HubServer, dice: Any, tmp_path: Path) -> None:
    """By name, before anything is written; the message says what there is."""
    dice.save_pretrained(tmp_path / "dice")
    del kinds.KINDS["dice"]

    with pytest.raises(TypeError, match="one of VQModel, MaskGitModel, VQModelForImageClassification, got DiceM"):
        hf_vq.push_to_hub(dice, NAME)
    assert not hub.store.repositories
    with pytest.raises(ValueError, match=r"of the type 'dice' \(DiceModel\), not 'hf_vq', 'hf_maskgit', 'hf_vq_class"):
        load_model(tmp_path / "dice")


@pytest.mark.parametrize("kind", list(kinds.KINDS.values()), ids=list(kinds.KINDS))
def test_every_row_is_whole(kind: kinds.Kind) -> None:
    """What rows name can be had; models know our `push_to_hub`; configurations have their model's name."""
    for name in (kind.card, kind.picture, kind.measurement):
        assert name is None or callable(kinds.resolve(name))
    assert kind.model.config_class is kind.config and kinds.KINDS[kind.config.model_type] is kind
    assert kind.model.push_to_hub is hf_vq._push_to_hub


@pytest.mark.parametrize(
    "first", ["import hf_vq, transformers", "import transformers; transformers.AutoModel; import hf_vq"]
)
def test_auto_classes_find_every_kind_in_either_order_of_imports(first: str) -> None:
    """Whether transformers was imported before or after."""
    code = f"""{first}
from transformers import AutoConfig
from hf_vq.kinds import KINDS
for name, kind in KINDS.items():
    assert type(AutoConfig.for_model(name)) is kind.config, name
    assert kind.auto_model._model_mapping[kind.config] is kind.model, name
print(len(KINDS))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == str(len(kinds.KINDS))


def test_nobody_else_tells_kinds_apart() -> None:
    """Hub, data, cards, evaluation and commands ask the table, not the class of a model."""
    package = Path(hf_vq.__file__).parent
    folders = [package / name for name in ("hub", "data", "cards", "evaluation", "commands")]
    classes = ("VQModel", "MaskGit", "VQConfig", "Classification")
    lines = [
        f"{path.name}: {line.strip()}"
        for folder in folders
        for path in folder.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "isinstance(" in line and any(name in line for name in classes)
    ]

    assert lines == []
