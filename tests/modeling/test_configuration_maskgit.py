"""MaskGitConfig: presets, what follows from the tokenizer, round trips, and what it refuses."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig
from hf_vq.modeling import PRESETS

SIZES = {"tiny": (384, 6, 6), "small": (512, 12, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_their_sizes(name):
    """A preset sets width, depth and heads. Further fields add to it or override it."""
    config = MaskGitConfig.from_preset(name, num_classes=7, num_hidden_layers=3)

    assert (config.hidden_size, PRESETS[name]["num_hidden_layers"], config.num_attention_heads) == SIZES[name]
    assert (config.num_classes, config.num_hidden_layers) == (7, 3)
    assert config.intermediate_size % 64 == 0
    assert 0 <= config.intermediate_size - config.hidden_size * 8 / 3 < 64


def test_an_unknown_preset_is_refused():
    """The message lists the presets that exist."""
    with pytest.raises(ValueError, match="no preset 'huge'.*tiny.*large"):
        MaskGitConfig.from_preset("huge")


@pytest.mark.parametrize(
    "fields, codes, groups",
    [
        ({}, 1024, 1),
        ({"quantizer_type": "group", "num_groups": 2}, 1024, 2),
        ({"quantizer_type": "residual", "num_groups": 4, "share_codebook": False}, 256, 4),
    ],
)
def test_grid_and_vocabulary_are_the_tokenizers(fields, codes, groups):
    """The grid is the image's size divided by the factor, and the codes are those of one group."""
    config = MaskGitConfig(vq_config=VQConfig(architecture="sqvae", image_size=64, base_channels=8, **fields))

    assert config.grid_size == (16, 16)
    assert (config.codebook_size, config.num_groups) == (codes, groups)


def test_a_saved_config_comes_back(tmp_path):
    """All fields come back, the tokenizer's too. The code's version is recorded, and newer ones are refused."""
    vq_config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_codes=32)
    config = MaskGitConfig(
        vq_config=vq_config, num_classes=2, hidden_size=32, num_attention_heads=2, id2label={0: "cat", 1: "dog"}
    )
    config.save_pretrained(tmp_path)
    loaded = MaskGitConfig.from_pretrained(tmp_path)

    assert loaded.to_dict() | {"transformers_version": None} == config.to_dict() | {"transformers_version": None}
    assert loaded.id2label == {0: "cat", 1: "dog"} and isinstance(loaded.vq_config, VQConfig)
    assert VQConfig.from_pretrained(tmp_path).num_codes == 32
    with pytest.raises(ValueError, match="made with hf_vq 99.0"):
        MaskGitConfig(hf_vq_version="99.0")


def test_classes_have_names():
    """There is one label for each class, as in transformers' classifiers."""
    assert MaskGitConfig(num_classes=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_attention_heads": 5}, "must divide `hidden_size`, got 5 heads and a width of 768"),
        ({"hidden_size": 12, "num_attention_heads": 2, "position_type": "rotary"}, "multiple of 4 channels, got 6"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1"),
        ({"num_classes": -1}, "`num_classes` must be at least 0"),
        ({"class_dropout": 1.0}, r"`class_dropout` must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"`label_smoothing` must be in \[0, 1\)"),
        ({"dropout": 1}, r"`dropout` must be in \[0, 1\)"),
        ({"unmasked_loss_weight": 2.0}, r"`unmasked_loss_weight` must be in \[0, 1\]"),
        ({"norm_eps": 0.0}, "`norm_eps` must be above 0"),
        ({"initializer_range": -1.0}, "`initializer_range` must be at least 0"),
        ({"norm_type": "batchnorm"}, "norm_type"),
        ({"modulates_last_norm": True, "class_conditioning": "prefix"}, "`modulates_last_norm` needs"),
        ({"mask_schedule": "root"}, "mask_schedule"),
        ({"position_type": "alibi"}, "position_type"),
        ({"class_conditioning": "none"}, "class_conditioning"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    """Each wrong field gets its message."""
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        MaskGitConfig(**fields)


def test_a_base_model_has_the_parameters_of_its_kind():
    """Ours is about as large as the published "base" with adaLN-zero and 16,384 codes: 142 million parameters."""
    import torch

    vq_config = VQConfig(architecture="sqvae", image_size=64, base_channels=8, num_codes=16384)
    with torch.device("meta"):
        model = MaskGitModel(MaskGitConfig.from_preset("base", vq_config=vq_config, num_classes=1000))
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    assert 135e6 < count < 149e6
