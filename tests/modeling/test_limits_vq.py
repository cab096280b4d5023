"""Configurations that ask for more than any machine has end in a message, and weights are compared before that."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from hf_vq import (
    MaskGitConfig,
    VectorQuant,
    VQConfig,
    VQImageClassificationConfig,
    VQImageProcessor,
    VQModel,
)

SMALL = {"image_size": 32, "base_channels": 32, "channel_multiplier": [1, 2], "num_codes": 64, "latent_channels": 32}


@pytest.mark.parametrize(
    ("config_class", "fields", "named"),
    [
        (VQConfig, {"num_res_blocks": 10**8}, "num_res_blocks"),
        (VQConfig, {"num_labels": 10**9}, "num_labels"),
        (VQConfig, {"num_codes": 10**12}, "num_codes"),
        (VQConfig, {"num_codes": 2**24, "embed_dim": 2**16}, "num_codes` and `embed_dim"),
        (VQConfig, {"image_size": 32768}, "image_size"),
        (VQConfig, {"base_channels": 10**9}, "base_channels"),
        (VQConfig, {"base_channels": 2**14, "channel_multiplier": [1, 1024]}, "base_channels` and"),
        (VQConfig, {"channel_multiplier": [1] * 10**4}, "channel_multiplier"),
        (VQConfig, {"num_channels": 10**9}, "num_channels"),
        (VQConfig, {"latent_channels": 10**9}, "latent_channels"),
        (VQConfig, {"embed_dim": 10**9}, "embed_dim"),
        (VQConfig, {"quantizer_type": "residual", "num_groups": 10**9, "num_codes": 10**9}, "num_"),
        (VQConfig, {"quantizer_type": "fsq", "levels": [2] * 10**4}, "levels"),
        (VQConfig, {"alternating_steps": 10**9}, "alternating_steps"),
        (MaskGitConfig, {"num_classes": 10**9}, "num_classes"),
        (MaskGitConfig, {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        (MaskGitConfig, {"hidden_size": 12 * 10**9}, "hidden_size"),
        (MaskGitConfig, {"hidden_size": 12 * 2**12, "num_attention_heads": 12}, "hidden_size"),
        (MaskGitConfig, {"intermediate_size": 10**12}, "intermediate_size"),
        (MaskGitConfig, {"vq_config": {"image_size": 8192, "channel_multiplier": [1]}}, "image_size` and"),
        (MaskGitConfig, {"vq_config": {"num_res_blocks": 10**8}}, "num_res_blocks"),
        (VQImageClassificationConfig, {"num_labels": 10**9}, "num_labels"),
        (VQImageClassificationConfig, {"image_size": 30000}, "image_size"),
        (VQImageClassificationConfig, {"base_channels": 10**9}, "base_channels"),
        (VQImageClassificationConfig, {"quantized_size": 10**12, "quantized_axis": 1}, "quantized_size"),
        (
            VQImageClassificationConfig,
            {"backbone_config": {"model_type": "vit", "num_hidden_layers": 10**8}},
            "layers",
        ),
        (VQImageClassificationConfig, {"backbone_config": {"model_type": "vit", "hidden_size": 10**9}}, "hidden_size"),
        (VQImageClassificationConfig, {"backbone_config": {"model_type": "resnet", "depths": [2, 10**8]}}, "depths"),
        (VQImageClassificationConfig, {"backbone_config": {"model_type": "resnet", "depths": [2] * 10**4}}, "depths"),
        (VQImageClassificationConfig, {"backbone_config": {"model_type": "swin", "window_size": 10**9}}, "window"),
    ],
)
def test_the_impossible_is_a_message(config_class, fields, named):
    """By hand and in a file; the message names the field and its limit."""
    with pytest.raises((ValueError, StrictDataclassError), match=rf"{named}.* must (be|have) at most"):
        config_class(**fields)
    with pytest.raises((ValueError, StrictDataclassError), match=rf"{named}.* must (be|have) at most"):
        config_class.from_dict(dict(fields))


@pytest.mark.parametrize(
    "fields", [{"image_size": 30000}, {"size": {"height": 30000, "width": 8}}, {"crop_size": {"shortest_edge": 10**9}}]
)
def test_the_image_processor_has_limits_too(fields):
    """One picture of 30,000 x 30,000 pixels would take 10 GB."""
    with pytest.raises(ValueError, match=r"must be at most 8,192, got"):
        VQImageProcessor(**fields)


def test_so_have_the_layers():
    """A layer alone is checked as the configuration is."""
    with pytest.raises(ValueError, match=r"num_codes must be at most"):
        VectorQuant(feature_size=4, num_codes=10**12)
    with pytest.raises(ValueError, match=r"would make a weight"):
        VectorQuant(feature_size=2**16, num_codes=2**20)


def test_large_models_are_possible():
    """What people build or may build soon is far below the limits."""
    VQConfig(image_size=2048, base_channels=512, channel_multiplier=[1, 2, 4, 8, 8, 8], num_codes=2**18, embed_dim=256)
    MaskGitConfig.from_preset("large", num_classes=21843, vq_config={"num_codes": 2**18, "image_size": 1024})
    MaskGitConfig(hidden_size=8192, num_hidden_layers=96, num_attention_heads=64)
    VQImageClassificationConfig(backbone_config={"model_type": "vit", "num_hidden_layers": 48}, num_labels=21843)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_codes": 2**24, "embed_dim": 64},
        {"base_channels": 4096, "num_res_blocks": 8, "latent_channels": 4096},
        {"embed_dim": 2**16, "latent_channels": 2**12},
    ],
)
def test_weights_are_compared_before_memory_is_taken(fields, tmp_path):
    """Within the limits a configuration can still lie; the weights that lie beside it tell."""
    VQModel(VQConfig(**SMALL)).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | fields))

    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes") as mismatch:
        AutoModel.from_pretrained(tmp_path)
    assert "One of the two belongs to another model" in str(mismatch.value.__context__)
    with pytest.raises(ValueError, match="One of the two belongs to another model"):
        AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_a_checkpoint_may_lack_a_larger_codebook(tmp_path):
    """Who asks for another number of codes gets them."""
    VQModel(VQConfig(**SMALL)).save_pretrained(tmp_path)

    model = VQModel.from_pretrained(tmp_path, num_codes=2**16, ignore_mismatched_sizes=True)

    assert model.quantize.get_codebook().shape == (2**16, 8)
