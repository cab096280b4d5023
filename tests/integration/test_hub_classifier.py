"""Classifiers on the Hub: one commit up with a card of their own, one verified commit down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import hf_vq
from hf_vq import VQImageClassificationConfig, VQModelForImageClassification

if TYPE_CHECKING:
    from ..hub_server import HubServer


def tiny(**fields: Any) -> Any:
    """A model of some thousand parameters."""
    torch.manual_seed(0)
    names = {"id2label": {0: "ant", 1: "bee"}, "label2id": {"ant": 0, "bee": 1}}
    config = {"image_size": 16, "base_channels": 4, "num_codes": 16, **names, **fields}
    return VQModelForImageClassification(VQImageClassificationConfig(**config)).eval()


@pytest.mark.parametrize("with_method", [False, True])
def test_up_and_down(hub: HubServer, with_method: bool) -> None:
    """Weights, processor, code and card go up; what comes down is the same model."""
    model, metrics = tiny(), {"accuracy": 0.875, "perplexity": 7.5, "num_images": 8}
    if with_method:
        model.push_to_hub("alice/ants", metrics=metrics)
    else:
        hf_vq.push_to_hub(model, "alice/ants", metrics=metrics, dataset="alice/insects", license="mit")

    files = set(hub.store.files("alice/ants"))
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_vq_classifier.py"} < files
    card = ModelCard(hub.store.read("alice/ants", "README.md").decode())
    assert card.data["pipeline_tag"] == "image-classification"
    results = {result.metric_type: result.metric_value for result in card.data["eval_results"]}
    assert results == {"accuracy": 0.875, "codebook_perplexity": 7.5}
    assert "| classes | 2: ant, bee |" in card.text and 'name = "alice/ants"' in card.text

    loaded, processor = hf_vq.from_hub("alice/ants")
    pixel_values = processor(Image.effect_noise((24, 20), 80), return_tensors="pt").pixel_values
    assert type(loaded) is VQModelForImageClassification and pixel_values.shape == (1, 3, 16, 16)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():  # to the bit would ask for equally aligned memory
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)


def test_a_classifier_has_no_picture(hub: HubServer) -> None:
    """Said before anything is written."""
    with pytest.raises(ValueError, match="The card of a classifier has no picture"):
        hf_vq.push_to_hub(tiny(), "alice/ants", images=[Image.new("RGB", (20, 20))])
    assert not hub.store.repositories
