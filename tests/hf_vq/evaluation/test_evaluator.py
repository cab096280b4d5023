"""The evaluator: its numbers against plain computations, its protocol, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from hf_vq import (
    MaskGitModel,
    VQImageClassificationConfig,
    VQImageProcessor,
    VQModel,
    VQModelForImageClassification,
)
from hf_vq.data.held_out import hold_out
from hf_vq.data.images import ImageDataset
from hf_vq.data.sources import load_images
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate
from hf_vq.evaluation.images import to_bytes
from hf_vq.evaluation.measurements import spread_labels
from hf_vq.evaluation.subjects import short_names
from hf_vq.metrics.base import perplexity
from hf_vq.metrics.features import FeatureExtractor, Features, ShrunkPixels
from hf_vq.metrics.generation import FeatureSample, FrechetDistance, kernel_distance, precision_recall

from .conftest import arguments


def pixels_of(images: Path) -> torch.Tensor:
    """All images in [-1, 1]."""
    return torch.stack([item["pixel_values"] for item in ImageDataset(load_images(str(images)), 16)])  # type: ignore


def test_tokenizers_are_measured_side_by_side(models: Path, images: Path, tmp_path: Path) -> None:
    """Each number is that of a plain computation over all images at once."""
    report = evaluate(arguments(models, "a b", images, tmp_path))
    pixels = pixels_of(images)

    assert report.kind == "tokenizer" and [result["label"] for result in report.results] == ["a", "b"]
    for name, result, codebooks, length in zip("ab", report.results, (1, 2), (16, 32), strict=True):
        model = VQModel.from_pretrained(models / name).eval()
        with torch.no_grad():
            output = model(pixels)
        metrics, codes = result["metrics"], model.config.num_codes
        decoded = output.decoded_pixel_values.clamp(-1, 1)
        errors = ((decoded - pixels) / 2).square().flatten(1).mean(1)
        counts = torch.bincount(output.image_tokens.flatten(), minlength=codes)
        distance, extractor = FrechetDistance(192), ShrunkPixels()
        distance.update(extractor(to_bytes(pixels)).values, generated=False)
        distance.update(extractor(to_bytes(decoded)).values, generated=True)

        assert metrics["num_images"] == 11
        assert metrics["mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
        assert metrics["psnr"] == pytest.approx(-10 * errors.log10().mean().item(), rel=1e-5)
        assert metrics["quantization_error"] == pytest.approx(output.quantization_error.item(), rel=1e-5)
        assert metrics["usage"] == (counts > 0).double().mean().item()
        assert metrics["perplexity"] == pytest.approx(perplexity(counts))
        assert metrics["bits_per_image"] == length * math.log2(codes / codebooks)
        assert metrics["bits_per_pixel"] == metrics["bits_per_image"] / 16**2
        per_codebook = [math.log2(perplexity(part)) for part in counts.view(codebooks, -1)]
        entropy = length * sum(per_codebook) / codebooks
        assert metrics["entropy_bits_per_image"] == pytest.approx(entropy, rel=1e-9)
        assert metrics["frechet_8x8_pixels"] == pytest.approx(distance.compute(), rel=1e-5)
        assert "rfid" not in metrics  # which is Inception's alone


def test_the_protocol_holds_what_one_needs_to_repeat_the_numbers(models: Path, images: Path, tmp_path: Path) -> None:
    """In JSON and table: data, resizing, filter, crop, count, features and weights; the picture shows both models."""
    report = evaluate(arguments(models, "a b", images, tmp_path, max_images=9))
    written = json.loads((tmp_path / "evaluation.json").read_text())
    table = (tmp_path / "evaluation.md").read_text()

    assert written == report.to_dict()
    protocol = written["protocol"]
    assert protocol["dataset"] == {
        "name": images.name, "revision": None, "split": "train", "num_images": 9, "num_skipped": 0
    }  # fmt: skip
    assert protocol["preprocessing"]["filter"].startswith("bicubic, antialiased")
    assert protocol["features"]["name"] == "8x8_pixels" and "weights_sha256" in protocol["features"]
    assert [len(result["weights_sha256"]) for result in written["results"]] == [64, 64]
    for text in (
        "| metric ", "shorter edge to 16", "center, 16 x 16", "| 9 images |", "| 9 images, 8x8_pixels |",
        written["results"][0]["weights_sha256"],
    ):  # fmt: skip
        assert text in table
    picture = PIL.Image.open(tmp_path / "evaluation.png")
    assert picture.height > 3 * 16 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    assert str(models) not in table + json.dumps(written) and str(images.parent) not in table


def test_a_stream_gives_the_same_numbers(models: Path, images: Path, tmp_path: Path) -> None:
    """Reading as it goes changes nothing."""
    first, second = (
        evaluate(arguments(models, "a", images, tmp_path, streaming=streaming)).to_dict()
        for streaming in (False, True)
    )
    assert first == second


def test_another_size_is_measured_on_request(models: Path, images: Path, tmp_path: Path) -> None:
    """Models of different sizes are refused until one size is given; then the protocol has it."""
    VQModel.from_pretrained(models / "a").save_pretrained(tmp_path / "larger")
    VQImageProcessor(image_size=32).save_pretrained(tmp_path / "larger")
    fields: dict[str, Any] = {"split": "train", "use_cpu": True, "disable_tqdm": True, "output_dir": str(tmp_path)}
    both = [str(models / "b"), str(tmp_path / "larger")]

    with pytest.raises(ValueError, match="'shorter edge to 16' and 'shorter edge to 32'.*Give one image_size for all"):
        evaluate(EvaluationArguments(str(images), compare=both, **fields))
    report = evaluate(EvaluationArguments(str(images), compare=both, image_size=32, **fields))
    assert report.protocol["preprocessing"]["crop"] == "center, 32 x 32"
    assert report.results[0]["metrics"]["bits_per_image"] == 4 * 32 * 3


def test_the_model_before_fine_tuning_is_measured_on_what_the_one_after_it_held_out(
    models: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says whose images these are; models that held out others are not compared."""
    for name in ("a", "b"):
        shutil.copytree(models / name, tmp_path / name)
    given = {"split": "held-out"}
    with pytest.raises(ValueError, match="Nothing beside '.*/a' nor '.*/b' says which images .* Name a split"):
        evaluate(arguments(tmp_path, "a b", images, tmp_path / "out", **given))
    record = hold_out(load_images(str(images)), str(images), "train", 0.3, seed=0)[2]
    record.write(tmp_path / "b")
    with caplog.at_level(logging.WARNING):
        report = evaluate(arguments(tmp_path, "a b", images, tmp_path / "out", **given))
    assert [result["metrics"]["num_images"] for result in report.results] == [3, 3]
    assert f"'{tmp_path}/a' does not say what its run held out" in caplog.text and "/b' does not" not in caplog.text
    dataclasses.replace(record, seed=1).write(tmp_path / "a")
    with pytest.raises(ValueError, match="held out different images: name a split"):
        evaluate(arguments(tmp_path, "a b", images, tmp_path / "out", **given))


def test_a_single_image_has_errors_and_no_distance(models: Path, images: Path, tmp_path: Path) -> None:
    """What needs two images is left out."""
    metrics = evaluate(arguments(models, "a", images, tmp_path, max_images=1)).results[0]["metrics"]
    assert metrics["num_images"] == 1 and "psnr" in metrics and "frechet_8x8_pixels" not in metrics


def test_generators_are_measured_against_the_data_set(models: Path, images: Path, tmp_path: Path) -> None:
    """Sample i is drawn with seed + i, classes have the data's shares, and the numbers are those of plain calls."""
    report = evaluate(arguments(models, "classes free", images, tmp_path, num_samples=22, seed=3))
    model = MaskGitModel.from_pretrained(models / "classes").eval()
    labels = spread_labels(torch.tensor([7, 4, 0]), torch.arange(22), 22)
    generated = torch.cat(
        [
            model.generate(
                class_labels=[label], num_steps=2, generator=[torch.Generator().manual_seed(3 + n)], output_type="pt"
            ).images
            for n, label in enumerate(labels.tolist())
        ]
    )
    reference, samples = (ShrunkPixels()(part).values for part in (to_bytes(pixels_of(images)), generated))
    distance = FrechetDistance(192)
    distance.update(reference, generated=False)
    distance.update(samples, generated=True)
    metrics = report.results[0]["metrics"]

    assert Counter(labels.tolist()) == {0: 14, 1: 8}
    assert (metrics["num_reference"], metrics["num_generated"]) == (11, 22)
    assert metrics["frechet_8x8_pixels"] == pytest.approx(distance.compute(), rel=1e-3)
    expected = precision_recall(reference, samples)
    assert (metrics["precision_8x8_pixels"], metrics["recall_8x8_pixels"]) == tuple(expected.values())
    assert report.protocol["sampling"]["classes"] == "shares of the data set"
    assert report.protocol["estimators"]["kernel"]["subset_size"] == 11
    assert report.protocol["estimators"]["score"].startswith("none")
    assert "score_8x8_pixels" not in metrics  # which needs probabilities of classes
    assert report.results[1]["metrics"] != metrics
    assert "22 samples, 11 images" in report.to_markdown()
    assert (tmp_path / "evaluation.png").is_file()
    kept = [FeatureSample(100, 192, seed=3) for _ in range(2)]
    for sample, values in zip(kept, (reference, samples), strict=True):
        sample.update(values, torch.arange(len(values)))
    kernel = kernel_distance(kept[0].compute(), kept[1].compute(), seed=3)
    assert metrics["kernel_8x8_pixels"] == pytest.approx(kernel["kernel"], rel=1e-6)


class Colors(FeatureExtractor):
    """Mean colors, and classes of them, in the place of Inception."""

    name = "inception"
    preprocessing = "none"
    num_features = 3
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, images: torch.Tensor) -> Features:
        """Uint8 images to features and logits."""
        colors = images.double().mean((2, 3)) / 255
        return Features(colors, colors * self.scale)


def test_inceptions_numbers_have_their_own_names(
    models: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID, KID and the score are called so, with the hash of the weights beside them."""
    monkeypatch.setattr("hf_vq.evaluation.evaluator.make_extractor", lambda *_: Colors())
    tokenizer = evaluate(arguments(models, "a", images, tmp_path, features="inception"))
    generator = evaluate(arguments(models, "free", images, tmp_path, features="inception"))

    assert "rfid" in tokenizer.results[0]["metrics"] and "| rFID ↓ " in tokenizer.to_markdown()
    names = {"fid", "kid", "precision", "recall", "inception_score", "inception_score_std"}
    assert names < set(generator.results[0]["metrics"])
    assert f"11 samples, 11 images, inception {Colors().describe()['weights_sha256'][:8]} |" in generator.to_markdown()
    assert generator.protocol["estimators"]["score"] == {"splits": 10}


def test_a_picture_of_the_first_images_that_can_be_read(models: Path, images: Path, tmp_path: Path) -> None:
    """The first batch cannot be read; a later run without any picture leaves no earlier one behind."""
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    next(path for path in sorted(broken.rglob("*")) if path.is_file()).write_bytes(b"no image")
    report = evaluate(arguments(models, "a", broken, tmp_path / "out", batch_size=1))
    assert report.protocol["dataset"]["num_skipped"] == 1 and report.picture is not None
    assert (tmp_path / "out" / "evaluation.png").is_file()
    dataclasses.replace(report, picture=None).save(tmp_path / "out")
    assert not (tmp_path / "out" / "evaluation.png").exists()


def test_few_samples_are_warned_of(
    models: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the smaller of the two sets that counts."""
    evaluate(arguments(models, "free", images, tmp_path, num_samples=4))
    assert "4 images are fewer than the" in caplog.text


def test_labels_are_spread_by_their_shares() -> None:
    """Whatever the total, counts are within one of the shares, and neighbors are of several classes."""
    for total in (7, 10, 100, 1001):
        labels = spread_labels(torch.tensor([5, 0, 3, 2]), torch.arange(total), total)
        counts = torch.bincount(labels, minlength=4)

        assert ((counts - torch.tensor([5, 0, 3, 2]) * total / 10).abs() <= 1).all()
        assert counts.sum() == total
    assert len(set(labels[:8].tolist())) == 3


def test_names_are_as_short_as_they_can_be() -> None:
    """A run's model is called like the run; equal last parts get the one before."""
    assert short_names(["out/final", "user/vq-b"]) == ["out", "vq-b"]
    assert short_names(["/x/a/final", "/x/b/final"]) == ["a", "b"]
    assert short_names(["me/vq", "you/vq"]) == ["me/vq", "you/vq"]
    assert short_names(["me/vq@one", "me/vq@two"]) == ["vq@one", "vq@two"]
    assert short_names(["out", "out/final"]) == ["out", "out/final"]


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        ("a free", {}, "no numbers in common: '.*a' is a tokenizer, '.*free' is a generator"),
        ("missing", {}, "no model in '.*missing': there is no such folder"),
        ("", {}, "give either model, or compare"),
        ("a a", {}, "names .*a twice"),
        ("a", {"model": "b"}, "give either model, or compare"),
        ("a", {"image_size": 18}, "needs an image_size that 4 divides, got 18"),
        ("free", {"image_size": 16}, "generators make images of one size"),
        ("a", {"features": "clip"}, "must be one of 8x8_pixels, efficientnet-lite0, inception, got 'clip'"),
        ("a", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("a", {"split": "val"}, "unknown split 'val'.*available are train"),
    ],
)
def test_slips_have_messages(
    models: Path, images: Path, tmp_path: Path, names: str, fields: dict[str, Any], message: str
) -> None:
    """What is wrong, and what would be right; nothing is written."""
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(arguments(models, names, images, tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_told_of(models: Path, images: Path, tmp_path: Path) -> None:
    """In a line, not in the names of all models that there are."""
    fields: dict[str, Any] = {"image_size": 16, "base_channels": 4, "num_codes": 8, "num_labels": 2}
    VQModelForImageClassification(VQImageClassificationConfig(**fields)).save_pretrained(models / "classifier")
    with pytest.raises(ValueError, match="classifier' is neither a tokenizer nor a generator but a VQModelForImageC"):
        evaluate(arguments(models, "a classifier", images, tmp_path))


def test_sampling_is_tried_before_the_images_are_read(models: Path, images: Path, tmp_path: Path) -> None:
    """Wrong settings come first, also where the data set has no readable image; a single one is too few."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        evaluate(arguments(models, "free", tmp_path / "bad", tmp_path, temperature=0.0))
    with pytest.raises(ValueError, match="compared with those of at least two images, got one"):
        evaluate(arguments(models, "free", images, tmp_path, max_images=1))


def test_data_that_cannot_be_measured_have_messages(models: Path, images: Path, tmp_path: Path) -> None:
    """No readable image, another data set's classes, a run's folder instead of its model."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"split 'train' of '.*bad': none of its 1 images can be read: .*x\.png \("):
        evaluate(arguments(models, "a", tmp_path / "bad", tmp_path))
    for name in "cd":
        (tmp_path / "four" / name).mkdir(parents=True)
        (tmp_path / "four" / f"{name}{name}").mkdir()
        for number in range(2):
            folder = tmp_path / "four" / (name if number else name * 2)
            PIL.Image.open(images / "cats" / f"0{number}.png").save(folder / "x.png")
    with pytest.raises(ValueError, match="images of class 3, '.*classes' knows 3 classes: it was made for other data"):
        evaluate(arguments(models, "classes", tmp_path / "four", tmp_path))
    (tmp_path / "run" / "final").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no config.json. A finished run has its model in '.*run/final'"):
        evaluate(arguments(tmp_path, "run", images, tmp_path))
