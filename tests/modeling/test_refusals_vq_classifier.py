"""Classifiers: fields, networks and pixels that are refused, and names of backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_vq import VQImageClassificationConfig, VQModelForImageClassification

from .test_modeling_vq_classifier import RESNET, SWIN, VIT, make


def test_a_backbone_with_a_list_of_sides_takes_the_image_size() -> None:
    """Height and width are both the size of the images."""
    hiera = {"model_type": "hiera", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "num_query_pool": 1}
    assert VQImageClassificationConfig(backbone_config=hiera, image_size=32).backbone_config.image_size == [32, 32]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone_config": "resnet19"}, r"no backbone 'resnet19'. Choose among \['resnet18', 'vit_tiny'\]"),
        ({"backbone_config": {"hidden_size": 3}}, r"needs a 'model_type'"),
        ({"backbone_config": VIT, "image_size": 32}, r"`image_size=32` does not fit the backbone.*image_size=16"),
        (
            {"backbone_config": {**RESNET, "num_channels": 3}, "num_channels": 1},
            r"`num_channels=1` does not fit the backbone",
        ),
        ({"num_channels": 2}, r"`num_channels` must be 3 \(RGB\) or 1"),
        ({"image_size": 7}, r"`image_size` must be at least 8"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"beta": 2.0}, r"`beta` must be in \[0, 1\]"),
        ({"backbone_config": 5}, r"`backbone_config` must be a configuration of transformers.*got 5"),
        ({"quantized_axis": 2}, r"`quantized_axis` must be 1 or -1, got 2"),
        ({"quantizer_type": "group", "num_groups": 3, "quantized_size": 8}, r"must divide the channels"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    """The configuration refuses them and says what was wrong and how to fix it."""
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        VQImageClassificationConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": {"model_type": "clip_vision_model"}}, r"AutoBackbone has no model of the type 'clip_vision"),
        ({"quantized_layer": 7}, r"out of range: the backbone's blocks are 0 to 6"),
        ({"quantized_layer": "layers.9"}, r"'layers.9'` is no module of the backbone, whose blocks are layers.0"),
        ({"quantized_layer": "layers"}, r"'layers'` runs 0 times"),
        pytest.param(
            {"backbone": SWIN, "quantized_layer": "swin.encoder"},
            r"must be, or begin with, a tensor",
            marks=pytest.mark.module_names,
        ),
        ({"backbone": {"model_type": "uvdoc_backbone"}, "image_size": 32}, r"18 channels, but returns \(1, 128\)"),
    ],
)
def test_networks_that_cannot_be_quantized_so_are_refused(fields: dict[str, Any], message: str) -> None:
    """The model refuses them and says what there is to choose from."""
    with pytest.raises(ValueError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"floating-point numbers in \[-1, 1\], got torch.uint8"),
        (torch.zeros(3, 16, 16), r"shape \(batch, 3, height, width\), got \(3, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16), r"VQImageProcessor\(num_channels=3\)"),
    ],
)
def test_bad_pixels_are_refused(images: torch.Tensor, message: str) -> None:
    """The message tells what was expected."""
    with pytest.raises(ValueError, match=message):
        make()(images)


def test_named_backbones_are_the_networks_they_say() -> None:
    """ResNet-18 and ViT-Tiny have their known numbers of parameters, without their last layers."""
    sizes = {}
    for name in ("resnet18", "vit_tiny"):
        config = VQImageClassificationConfig(backbone_config=name, image_size=224, quantized_size=128)
        with torch.device("meta"):
            model = VQModelForImageClassification(config)
        sizes[name] = sum(weight.numel() for weight in model.backbone.parameters())
    assert sizes == {"resnet18": 11_176_512, "vit_tiny": 5_524_416}
