"""The range of the pixels: everything that judges, trains, measures or publishes treats twins in both ranges alike."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import nn
from transformers import AutoModel

import hf_vq
from hf_vq import (
    ClassifierTrainer,
    ClassifierTrainingArguments,
    GeneratorTrainer,
    GeneratorTrainingArguments,
    MaskGitConfig,
    MaskGitModel,
    TokenizerTrainer,
    TokenizerTrainingArguments,
    VQImageClassificationConfig,
    VQImageProcessor,
    VQModel,
    VQModelForImageClassification,
    load_token_dataset,
)
from hf_vq.data.images import ImageDataset
from hf_vq.data.tokenize import TokenizationArguments, tokenize_dataset
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate
from hf_vq.hub.loading import load_model, load_tokenizer
from hf_vq.losses import PatchDiscriminator, PerceptualLoss, reconstruction_loss
from hf_vq.metrics.reconstruction import TokenizerMetrics
from hf_vq.plots.images import reconstruction_grid
from hf_vq.training.generator_data import generator_config

from ..hub_server import HubServer
from ..tiny_tokens import picture
from ..twin_tokenizers import twin_tokenizers

UNIT = [0.0, 1.0]


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state in class attributes; each test begins without one."""
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        picture(number, (16, 16)).save(path)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The twins, each with its image processor."""
    folders = [tmp_path_factory.mktemp("models") / name for name in ("signed", "unit")]
    for model, folder in zip(twin_tokenizers(), folders, strict=True):
        model.save_pretrained(folder)
        VQImageProcessor.for_config(model.config).save_pretrained(folder)
    return folders


def image_set(model: Any, count: int = 12) -> ImageDataset:
    """Images in the model's range."""
    return ImageDataset([{"image": picture(number), "label": number % 2} for number in range(count)], 16,
                        pixel_range=model.config.pixel_range)  # fmt: skip


def pair(seed: int = 0, beyond: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [0, 1], and reconstructions of them that exceed the range."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(4, 3, 16, 16, generator=generator)
    return pixels, pixels + beyond * torch.randn(pixels.shape, generator=generator)


def close(first: Any, second: Any) -> None:
    """Numbers of two runs agree to the precision of float32."""
    assert first.keys() == second.keys()
    for name in first:
        assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-5), name


# ---- losses, metrics, pictures


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_errors_are_told_on_the_unit_range(kind: Any) -> None:
    """The same value for the same pictures."""
    pixels, decoded = pair()
    loss = reconstruction_loss(decoded, pixels, kind, UNIT)
    torch.testing.assert_close(loss, reconstruction_loss(decoded * 2 - 1, pixels * 2 - 1, kind))
    assert reconstruction_loss(torch.ones(1), torch.zeros(1), kind, UNIT) == 1


class Brightness(nn.Module):
    """Stands in for LPIPS: a distance that depends on where black is."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The difference of the mean squares of each image."""
        return (first.square() - second.square()).mean((1, 2, 3)).abs()


def test_judges_see_the_same_pictures() -> None:
    """The perceptual network and the discriminator get pixels in [-1, 1], whatever the model's range is."""
    pixels, decoded = pair()
    signed, unit = (PerceptualLoss(Brightness(), pixel_range) for pixel_range in ([-1.0, 1.0], UNIT))
    torch.testing.assert_close(unit(decoded, pixels), signed(decoded * 2 - 1, pixels * 2 - 1))
    assert PerceptualLoss(Brightness())(decoded * 2 - 1, pixels * 2 - 1) == signed(decoded * 2 - 1, pixels * 2 - 1)

    torch.manual_seed(0)
    judge = PatchDiscriminator(base_channels=8, num_layers=1)
    other = PatchDiscriminator(base_channels=8, num_layers=1, pixel_range=UNIT)
    other.load_state_dict(judge.state_dict())
    torch.testing.assert_close(other(pixels), judge(pixels * 2 - 1))


def test_metrics_are_the_same() -> None:
    """Errors, PSNR and SSIM; pixels beyond black and white are clamped at the ends of the range."""
    pixels, decoded = pair()
    signed, unit = TokenizerMetrics(8), TokenizerMetrics(8, UNIT)
    signed.update(pixels * 2 - 1, decoded * 2 - 1)
    unit.update(pixels, decoded)
    close(signed.compute(), unit.compute())
    assert unit.compute()["mse"] == pytest.approx(float((pixels - decoded.clamp(0, 1)).square().mean()), rel=1e-5)


def test_pictures_are_the_same() -> None:
    """A grid shows black and white where they are."""
    pixels, decoded = pair()
    signed = reconstruction_grid(pixels * 2 - 1, {"a": decoded * 2 - 1})
    unit = reconstruction_grid(pixels, {"a": decoded}, pixel_range=UNIT)
    assert abs(np.asarray(signed).astype(int) - np.asarray(unit)).max() <= 1


# ---- training


def tokenizer_trainer(model: VQModel, folder: Path, **fields: Any) -> TokenizerTrainer:
    """A trainer of one of the twins."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 3, "train_batch_size": 4, "eval_batch_size": 4, "save_steps": 0,
        "eval_steps": 0, "logging_steps": 1, "learning_rate": 1e-4, "disable_tqdm": True, "use_cpu": True,
        "random_flip": False, **fields,
    }  # fmt: skip
    processor = VQImageProcessor.for_config(model.config)
    args = TokenizerTrainingArguments(**settings)
    return TokenizerTrainer(model, args, image_set(model), image_set(model, 6), processor)


@pytest.mark.filterwarnings("ignore:The training set has")
def test_tokenizers_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All terms of the loss, the numbers before and after, and the picture, with judges that see [-1, 1]."""
    monkeypatch.setattr("hf_vq.training.tokenizer.PerceptualLoss", partial(PerceptualLoss, Brightness()))
    runs: list[dict[str, Any]] = []
    for number, model in enumerate(twin_tokenizers(alternating_steps=0, sync_nu=0.0)):
        trainer = tokenizer_trainer(
            model, tmp_path / str(number), perceptual_weight=0.5, adversarial_weight=0.1, adversarial_start=0,
            adaptive_adversarial_weight=False, discriminator_channels=8, discriminator_layers=1,
        )  # fmt: skip
        assert trainer.discriminator is not None
        if runs:
            trainer.discriminator.load_state_dict(runs[0]["discriminator"])
        discriminator = copy.deepcopy(trainer.discriminator.state_dict())
        batch = torch.stack([image_set(model)[index]["pixel_values"] for index in range(4)])
        task = trainer.task_loss({"pixel_values": batch})
        before, pictures = trainer.evaluation()
        after = trainer.train()
        log = [json.loads(line) for line in (tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()]
        runs.append({"before": before, "after": after, "discriminator": discriminator, "first": log[0],
                     "picture": np.asarray(pictures["reconstructions"]).astype(int), "task": task})  # fmt: skip
    signed, unit = runs
    close(signed["before"], unit["before"])
    assert abs(signed["picture"] - unit["picture"]).max() <= 1 and signed["picture"].std() > 20
    torch.testing.assert_close(unit["task"], signed["task"], rtol=1e-4, atol=1e-6)
    terms = ("reconstruction", "commitment", "perceptual", "generator", "discriminator")
    close(*({name: run["first"][f"{name}_loss"] for name in terms} for run in runs))
    # The first and the last layer have other scales, so that steps of Adam differ a little.
    assert unit["after"]["mse"] == pytest.approx(signed["after"]["mse"], rel=0.05)
    assert unit["after"]["mse"] != unit["before"]["mse"]
    final = tmp_path / "1" / "final"
    assert json.loads((final / "config.json").read_text())["pixel_range"] == UNIT
    assert load_tokenizer(final)[1].to_dict().items() >= {"do_normalize": False}.items()


@pytest.mark.filterwarnings("ignore:The training set has")
@pytest.mark.parametrize("kind", ["tokenizer", "classifier"])
def test_data_and_processors_of_the_other_range_are_refused(kind: str, tmp_path: Path) -> None:
    """They would train to a wrong range without a word."""
    models: Any = twin_tokenizers() if kind == "tokenizer" else classifiers()
    signed, model = models
    fields: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True}
    make: Callable[..., Any] = (
        (lambda *data: TokenizerTrainer(model, TokenizerTrainingArguments(**fields), *data))
        if kind == "tokenizer"
        else (lambda *data: ClassifierTrainer(model, ClassifierTrainingArguments(**fields), *data))
    )
    good, bad = image_set(model), image_set(signed)
    with pytest.raises(ValueError, match=r"training set gives pixels in \[-1.0, 1.0\], but .*=\[0.0, 1.0\]`"):
        make(bad, good)
    with pytest.raises(ValueError, match=r"held-out set gives pixels in \[-1.0, 1.0\]"):
        make(good, bad)
    with pytest.raises(ValueError, match=r"processor makes pixels in \[-1.0, 1.0\]"):
        make(good, good, VQImageProcessor(image_size=16))
    make(good, good)
    make(good, None)


def classifiers() -> list[VQModelForImageClassification]:
    """The same small classifier for either range."""
    fields: dict[str, Any] = {"image_size": 16, "base_channels": 4, "num_codes": 8, "num_labels": 2}
    models = []
    for pixel_range in ([-1.0, 1.0], UNIT):
        torch.manual_seed(0)
        models.append(VQModelForImageClassification(VQImageClassificationConfig(**fields, pixel_range=pixel_range)))
    return models


def test_a_classifier_is_published_with_its_range(tmp_path: Path) -> None:
    """The processor beside its weights makes the pixels that it was trained with."""
    args: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "max_steps": 1, "train_batch_size": 4}
    model = classifiers()[1]
    trainer = ClassifierTrainer(model, ClassifierTrainingArguments(**args, disable_tqdm=True), image_set(model))
    trainer.train()
    loaded, processor = load_model(tmp_path / "final")
    pixels = processor(picture(3), return_tensors="pt").pixel_values
    assert loaded.config.pixel_range == UNIT
    assert torch.equal(pixels[0], image_set(model)[3]["pixel_values"])


def generators() -> list[MaskGitModel]:
    """The same generator with each of the twins inside."""
    models = []
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for tokenizer in twin_tokenizers():
        torch.manual_seed(1)
        models.append(MaskGitModel(MaskGitConfig(vq_config=tokenizer.config, **sizes), tokenizer=tokenizer).eval())
    return models


def test_generators_train_alike(tmp_path: Path) -> None:
    """Samples and their distance to decoded held-out images; a processor of the other range is refused."""
    torch.manual_seed(0)
    rows = [{"image_tokens": torch.randint(0, 16, (8, 8))} for _ in range(6)]
    numbers, sheets = [], []
    for number, model in enumerate(generators()):
        args = GeneratorTrainingArguments(
            output_dir=str(tmp_path / str(number)), use_cpu=True, num_distance_images=6, num_sample_images=8,
            sample_steps=2, disable_tqdm=True,
        )  # fmt: skip
        found, pictures = GeneratorTrainer(model, args, rows, rows).evaluation()
        numbers.append(found)
        sheets.append(np.asarray(pictures["samples"]).astype(int))
        with pytest.raises(ValueError, match="processor makes pixels in"):
            GeneratorTrainer(model, args, rows, None, VQImageProcessor(image_size=16, do_normalize=number == 1))
    assert numbers[1]["frechet_8x8_pixels"] == pytest.approx(numbers[0]["frechet_8x8_pixels"], rel=1e-2)
    assert abs(sheets[0] - sheets[1]).max() <= 1 and sheets[0].std() > 20


# ---- tokens, evaluation


def test_tokens_are_the_same(folders: list[Path], pictures: Path, tmp_path: Path) -> None:
    """A data set tokenized by each of the twins."""
    tokens = []
    for folder in folders:
        out = str(tmp_path / folder.name)
        tokenize_dataset(TokenizationArguments(str(folder), str(pictures), out, use_cpu=True, disable_tqdm=True))
        rows: Any = load_token_dataset(out)
        tokens.append(torch.stack([row["image_tokens"] for row in rows]))
    assert torch.equal(*tokens) and tokens[0].unique().numel() > 5


def test_measured_numbers_are_the_same(folders: list[Path], pictures: Path, tmp_path: Path) -> None:
    """Side by side, with the picture; and of generators."""
    common: dict[str, Any] = {"split": "train", "use_cpu": True, "disable_tqdm": True}
    report = evaluate(
        EvaluationArguments(str(pictures), compare=list(map(str, folders)), output_dir=str(tmp_path / "a"), **common)
    )
    signed, unit = (result["metrics"] for result in report.results)
    close(signed, unit)
    assert signed["ssim"] > 0 and signed["frechet_8x8_pixels"] > 0
    picture = np.asarray(Image.open(tmp_path / "a" / "evaluation.png").convert("RGB")).astype(int)
    gap, cell = 6, (picture.shape[0] - 28 - 12) // 3
    rows = [picture[14 + row * (cell + gap) :][:cell, 200:] for row in (1, 2)]
    assert abs(rows[0] - rows[1]).max() <= 1 and rows[0].std() > 20

    for model, name in zip(generators(), "st", strict=True):
        model.save_pretrained(tmp_path / name)
        VQImageProcessor.for_config(model.config).save_pretrained(tmp_path / name)
    names = [str(tmp_path / name) for name in "st"]
    report = evaluate(
        EvaluationArguments(str(pictures), compare=names, output_dir=str(tmp_path / "b"), num_steps=2, **common)
    )
    first, second = (result["metrics"]["frechet_8x8_pixels"] for result in report.results)
    assert second == pytest.approx(first, rel=1e-2) and math.isfinite(first)


def test_other_normalizations_are_not_measured(pictures: Path, tmp_path: Path) -> None:
    """With ImageNet's mean the range of the configuration says nothing of the pixels."""
    twin_tokenizers()[0].save_pretrained(tmp_path)
    VQImageProcessor(image_size=16, image_mean=[0.485, 0.456, 0.406]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has an image processor that normalizes pixels to a range of its own"):
        evaluate(EvaluationArguments(str(pictures), model=str(tmp_path), split="train", use_cpu=True))


# ---- folders and the Hub


def make_old(folder: Path) -> None:
    """Takes the field out of a folder's configuration, as an older version wrote it."""
    settings = json.loads((folder / "config.json").read_text())
    del settings["pixel_range"]
    (folder / "config.json").write_text(json.dumps(settings))


def test_processors_that_contradict_are_refused(tmp_path: Path, hub: HubServer) -> None:
    """By every function that loads both, and before anything is published."""
    _, unit = twin_tokenizers()
    unit.save_pretrained(tmp_path)
    VQImageProcessor(image_size=16).save_pretrained(tmp_path)
    message = r"makes pixels in \[-1.0, 1.0\], but the model's configuration says `pixel_range=\[0.0, 1.0\]`"
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)
    for processor in (None, VQImageProcessor(image_size=16)):
        with pytest.raises(ValueError, match=message):
            hf_vq.push_to_hub(VQModel.from_pretrained(tmp_path), "alice/vq", image_processor=processor)
    assert not hub.store.repositories
    hf_vq.push_to_hub(unit, "alice/vq")
    hub.store.write("alice/vq", "preprocessor_config.json", (tmp_path / "preprocessor_config.json").read_bytes())
    with pytest.raises(ValueError, match="processor of 'alice/vq' " + message):
        hf_vq.from_hub("alice/vq")


def test_older_repositories_count_as_their_processors_say(folders: list[Path], tmp_path: Path, hub: HubServer) -> None:
    """From the Hub by every way in, from a folder, and in numbers; loaded and saved again the field is there."""
    folder = folders[1]
    model, processor = load_tokenizer(folder)
    hf_vq.push_to_hub(model, "alice/vq")
    make_old(shutil.copytree(folder, tmp_path / "old"))
    hub.store.write("alice/vq", "config.json", (tmp_path / "old" / "config.json").read_bytes())
    pixels = processor(picture(0), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(pixels)
    for load in (
        lambda: hf_vq.from_hub("alice/vq"),
        lambda: load_tokenizer("alice/vq"),
        lambda: load_tokenizer(tmp_path / "old"),
        lambda: (AutoModel.from_pretrained("alice/vq"), processor),
    ):
        loaded, found = load()
        assert loaded.config.pixel_range == UNIT and found.do_normalize is False
        with torch.no_grad():
            assert torch.equal(loaded(pixels).reconstruction_loss, expected.reconstruction_loss)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["pixel_range"] == UNIT


def test_an_older_tokenizer_gives_its_range_to_a_generator(folders: list[Path], tmp_path: Path) -> None:
    """The configuration that is made for a run has the field."""
    make_old(shutil.copytree(folders[1], tmp_path / "old"))
    tokens: Any = type("Tokens", (), {"features": {}})()
    config = generator_config(load_tokenizer(tmp_path / "old")[0], tokens, {})
    assert config.vq_config.pixel_range == UNIT
