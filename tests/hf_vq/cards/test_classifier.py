"""Cards of classifiers, made of a configuration alone."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from hf_vq import VQImageClassificationConfig
from hf_vq.cards.classifier import classifier_card

METRICS = {"accuracy": 0.875, "cross_entropy": 0.5, "usage": 0.5, "perplexity": 7.5, "num_images": 1234}


def config(*names: str, **fields: Any) -> VQImageClassificationConfig:
    """A classifier of some classes."""
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    return VQImageClassificationConfig(image_size=16, base_channels=4, num_codes=16, **labels, **fields)


def test_the_card_says_what_it_tells_apart_and_how_well() -> None:
    """Classes, codebook, numbers with their images, recipe; in the metadata as well."""
    training = {"steps": 1500, "random flip": None}
    card = classifier_card(
        config("ant", "big | bee"), METRICS, "alice/insects", "test", training, repo_id="alice/ants"
    )

    for part in (
        "it tells 2 classes apart",
        "| classes | 2: ant, big \\| bee |",
        "| quantized layer | the block in the middle |",
        "| Accuracy | 87.50% | alice/insects | test | 1,234 |",
        "| steps | 1,500 |",
        "| loss | cross entropy + 1 x",
        'name = "alice/ants"',
        "huh2023straightening",
        "brought to 16 x 16 pixels",
        "those it was trained on (`alice/insects`)",
    ):
        assert part in str(card), part
    assert "random flip" not in str(card) and "None" not in str(card) and "\n\n\n" not in str(card)
    data = ModelCard(str(card)).data
    assert data["pipeline_tag"] == "image-classification" and data["datasets"] == ["alice/insects"]
    assert {result.metric_type for result in data["eval_results"]} == {
        "accuracy", "cross_entropy", "codebook_usage", "codebook_perplexity"
    }  # fmt: skip


def test_of_many_classes_the_first_are_named() -> None:
    """All are counted."""
    text = str(classifier_card(config(*(f"class {number}" for number in range(30))), {}))

    assert "| classes | 30: class 0, class 1," in text and "class 19, ... |" in text and "class 20" not in text
    assert "Not measured." in text
