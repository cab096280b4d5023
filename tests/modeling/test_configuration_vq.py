"""VQConfig: defaults, derived values, what it refuses, and that nothing is lost when it is saved."""

import inspect
import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

from hf_vq import RECOMMENDED_QUANTIZER, MaskGitConfig, VectorQuant, VQConfig, VQImageClassificationConfig
from hf_vq.modeling.quantizers_vq import QUANTIZERS


def test_defaults_of_the_quantizer_are_the_recommended_ones():
    """Every key of RECOMMENDED_QUANTIZER is a field whose default it gives."""
    config = VQConfig()

    assert RECOMMENDED_QUANTIZER == {name: getattr(config, name) for name in RECOMMENDED_QUANTIZER}


@pytest.mark.parametrize("quantizer_type", ["vector", "group", "residual"])
def test_quantizer_kwargs_are_arguments_of_the_layers(quantizer_type):
    """quantizer_kwargs names arguments of the layer, and all of its arguments that matter to a saved model."""
    num_groups = 1 if quantizer_type == "vector" else 2
    kwargs = VQConfig(quantizer_type=quantizer_type, num_groups=num_groups).quantizer_kwargs()
    arguments = set(inspect.signature(VectorQuant).parameters) - {"inplace_optimizer"}

    assert kwargs["feature_size"] == VQConfig().embed_dim
    arguments |= {"groups", "share"} if num_groups > 1 else set()
    assert set(kwargs) == arguments | ({"quantizer_dropout"} if quantizer_type == "residual" else set())


def test_default_shape_is_16_pixels_per_token():
    """The default model turns 256 px images into 16 x 16 tokens, with attention at the lowest resolution."""
    config = VQConfig()

    assert (config.image_size, config.downsample_factor, config.attn_resolutions) == (256, 16, [16])


def test_downsample_factor_of_both_architectures():
    """Each multiplier after the first halves a VQGAN's image; SQ-VAE always has four pixels per token side."""
    assert VQConfig(channel_multiplier=[1, 2, 2]).downsample_factor == 4
    assert VQConfig(channel_multiplier=[1, 2, 2], patch_size=4).downsample_factor == 16
    assert VQConfig(channel_multiplier=[1, 2, 2], patch_size=4, num_downsamples=1).downsample_factor == 8
    assert VQConfig(architecture="sqvae", channel_multiplier=[1, 2, 2, 2]).downsample_factor == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 1.5}, r"`beta` must be in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"`beta` must be in \[0, 1\]"),
        ({"beta": float("nan")}, r"`beta` must be in \[0, 1\]"),
        ({"affine_groups": 3}, r"3 affine groups and 1024 codes"),
        ({"num_codes": 0}, r"`num_codes` must be at least 1"),
        ({"sync_nu": -1.0}, r"`sync_nu` must be at least 0"),
        ({"commitment_weight": -1.0}, r"`commitment_weight` must be at least 0"),
        ({"alternating_lr": 0.0}, r"`alternating_lr` must be above 0"),
        ({"codebook_decay": 1.0}, r"`codebook_decay` must be in \[0, 1\)"),
        ({"image_size": 100}, r"multiple of the downsample factor 16, got 100"),
        ({"norm_num_groups": 0}, r"`norm_num_groups` must be at least 1, got 0"),
        ({"architecture": "sqvae", "image_size": 30}, r"multiple of the downsample factor 4, got 30"),
        ({"architecture": "sqvae", "base_channels": 33}, r"`base_channels` must be even"),
        ({"attn_resolutions": [8]}, r"names \[8\].*resolutions \[256, 128, 64, 32, 16\]"),
        ({"channel_multiplier": []}, r"`channel_multiplier` needs one entry"),
        ({"patch_size": 3}, r"`patch_size` must be a power of two, got 3"),
        ({"patch_size": 0}, r"`patch_size` must be a power of two, got 0"),
        ({"num_downsamples": 5}, r"`num_downsamples` must be in \[0, 4\]"),
        ({"num_downsamples": -1}, r"`num_downsamples` must be in \[0, 4\]"),
        ({"patch_size": 4, "image_size": 96}, r"multiple of the downsample factor 64, got 96"),
        ({"decoder_channel_multiplier": [1, 2]}, r"`decoder_channel_multiplier` needs 5 entries"),
        ({"decoder_channel_multiplier": [1, 1, 2, 2, 0]}, r"`decoder_channel_multiplier` needs 5 entries"),
        ({"decoder_channel_multiplier": [1, 1, 2, 2, 3], "num_attention_heads": 512}, r"one has 384 channels"),
        ({"num_attention_heads": 3}, r"must divide the width of every attention block"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"num_groups": 2}, "needs `quantizer_type` among .*'group', 'residual'"),
        ({"quantizer_type": "group", "num_groups": 3}, r"must divide `embed_dim`"),
        ({"quantizer_type": "residual", "num_groups": 3, "share_codebook": False}, r"must divide `num_codes`"),
        (
            {"quantizer_type": "group", "num_groups": 4, "share_codebook": False, "affine_groups": 512},
            r"512 affine groups and 256 codes",
        ),
        ({"architecture": "vit"}, r"'vqgan', 'magvit2', 'sqvae'"),
        ({"norm": "l2c"}, r"'norm' expected one of"),
        ({"replace_freq": 2.5}, r"'replace_freq' expected int, got float"),
    ],
)
def test_bad_values_are_refused(fields, message):
    """Every field out of range, alone or with another, raises and says what was wrong."""
    with pytest.raises(StrictDataclassError, match=message):
        VQConfig(**fields)


UNUSED = [
    ({"quantizer_type": "fsq", "levels": [8, 5, 5, 5], "embed_dim": 4}, {"beta": 0.5, "kmeans_init": False}, "group"),
    ({"quantizer_type": "simvq"}, {"replace_freq": 0}, "residual"),
    ({"quantizer_type": "lfq", "embed_dim": 8}, {"level_activation": "sigmoid"}, "fsq"),
    ({}, {"entropy_weight": 1.0}, "bsq"),
]


@pytest.mark.parametrize(("fields", "unused", "owner"), UNUSED)
def test_fields_that_a_kind_does_not_use_are_refused_by_name(fields, unused, owner, tmp_path):
    """They would be ignored. A file may have them; so may anyone, as long as they are the defaults."""
    named = ", ".join(f"`{name}={value!r}`" for name, value in unused.items())
    kind = fields.get("quantizer_type", "vector")
    with pytest.raises(ValueError, match=f"'{kind}' does not use {named}: leave out .* is for the kinds .*'{owner}'"):
        VQConfig(**fields, **unused)
    config = VQConfig(**fields, norm="none", **{name: getattr(VQConfig, name) for name in unused})
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | unused))
    VQConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert VQConfig.from_pretrained(tmp_path).quantizer_type == kind


def test_save_and_load_keep_every_field(tmp_path):
    """A config that differs from the defaults comes back equal, derived fields included."""
    config = VQConfig(
        architecture="sqvae",
        image_size=32,
        base_channels=64,
        channel_multiplier=(1, 2),
        attn_resolutions=[],
        quantizer_type="residual",
        num_groups=2,
        share_codebook=False,
        beta=0.5,
        norm="l2",
        cb_norm="l2",
        reconstruction_loss="l1",
    )
    config.save_pretrained(tmp_path)
    loaded = VQConfig.from_pretrained(tmp_path)

    assert loaded.to_dict() == config.to_dict() | {"auto_map": loaded.auto_map}
    assert loaded.quantizer_kwargs() == config.quantizer_kwargs()


def test_an_invalid_config_is_not_saved(tmp_path):
    """Values that were changed after construction are checked again before they reach the disk."""
    config = VQConfig()
    config.beta = 7.0

    with pytest.raises(StrictDataclassError, match="`beta`"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(codebook_update="ema"), "sync_nu=0"),
        (dict(affine_mode="running", affine_groups=2), "affine_groups=1"),
        (dict(quantizer_type="residual", num_groups=2, affine_mode="running"), "share_codebook=False"),
        (dict(quantizer_type="residual", num_groups=8, num_codes=4), "number of levels"),
    ],
)
def test_what_the_quantizer_would_refuse_is_refused_by_the_config(kwargs, words):
    """Combinations without sense end where they are written, with the fields to change."""
    with pytest.raises(StrictDataclassError, match=words):
        VQConfig(**kwargs)


@pytest.mark.parametrize(
    ("quantizer_type", "fields"),
    [
        ("vector", {"alternating_lr": 0}),
        ("vector", {"alternating_lr": -1.0}),
        ("vector", {"alternating_lr": float("nan")}),
        ("vector", {"beta": float("nan")}),
        ("vector", {"sync_nu": float("nan")}),
        ("vector", {"affine_lr": -1}),
        ("vector", {"affine_groups": 0}),
        ("vector", {"num_codes": 0}),
        ("vector", {"embed_dim": 0}),
        ("vector", {"codebook_decay": 1}),
        ("vector", {"codebook_update": "ema"}),
        ("vector", {"norm": "l2c"}),
        ("vector", {"cb_norm": "bn"}),
        ("vector", {"replace_policy": "oldest"}),
        ("group", {"num_groups": 0}),
        ("group", {"num_groups": 3}),
        ("residual", {"num_groups": 2, "affine_mode": "running"}),
        ("residual", {"num_groups": 5, "num_codes": 4}),
        ("residual", {"num_groups": 3, "share_codebook": False}),
    ],
)
def test_the_layer_refuses_what_the_configuration_refuses(quantizer_type, fields):
    """There is one validation: what one of the two refuses, the other refuses as well."""
    names = {"embed_dim": "feature_size", "num_groups": "groups", "share_codebook": "share"}
    good = VQConfig(quantizer_type=quantizer_type).quantizer_kwargs()
    QUANTIZERS[quantizer_type](**good)

    with pytest.raises(StrictDataclassError):
        VQConfig(quantizer_type=quantizer_type, **fields)
    with pytest.raises(ValueError):
        QUANTIZERS[quantizer_type](**good | {names.get(name, name): value for name, value in fields.items()})


@pytest.mark.parametrize(
    ("config_class", "slip", "meant"),
    [
        (VQConfig, {"num_code": 512}, "num_codes"),
        (VQConfig, {"embedding_dim": 4}, "embed_dim"),
        (VQConfig, {"channel_multipliers": [1, 2]}, "channel_multiplier"),
        (VQImageClassificationConfig, {"quantised_layer": 1}, "quantized_layer"),
        (VQImageClassificationConfig, {"num_code": 512}, "num_codes"),
        (MaskGitConfig, {"num_hidden_layer": 2}, "num_hidden_layers"),
    ],
)
def test_a_misspelled_field_is_told_by_name(config_class, slip, meant, tmp_path):
    """By hand a slip is refused, with the field that was meant; in a file, of another tool perhaps, it is kept."""
    with pytest.raises(ValueError, match=f"has no field `{next(iter(slip))}`: did you mean `{meant}`"):
        config_class(**slip)

    assert config_class.from_dict(slip).to_dict()[next(iter(slip))] == next(iter(slip.values()))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_class().to_dict() | slip))
    for loaded in (config_class.from_pretrained(tmp_path), config_class.from_json_file(path)):
        assert getattr(loaded, next(iter(slip))) == next(iter(slip.values()))
    with pytest.raises(ValueError, match="did you mean"):  # reading has left nothing behind
        config_class(**slip)


def test_a_misspelled_field_of_a_nested_configuration_is_kept_in_a_file(tmp_path):
    """A generator's file holds its tokenizer's fields; those are read as they are, and refused by hand."""
    settings = MaskGitConfig().to_dict()
    settings["vq_config"]["num_code"] = 7

    assert MaskGitConfig.from_dict(settings).vq_config.num_code == 7
    with pytest.raises(ValueError, match="did you mean `num_codes`"):
        MaskGitConfig(vq_config=settings["vq_config"])


def test_other_unknown_fields_become_attributes():
    """As transformers does it: what is like none of our fields may be anybody's."""
    config = VQConfig(tool="another", num_labels=3, torch_dtype="float32", hidden_dim=5)

    assert (config.tool, config.num_labels, config.hidden_dim) == ("another", 3, 5)


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (VQConfig, {"attn_implementation": "someone/kernel"}),
        (VQConfig, {"_attn_implementation": "someone/kernel@v1:forward"}),
        (VQConfig, {"_attn_implementation_internal": "someone/kernel"}),
        (VQConfig, {"attn_implementation": {"": "someone/kernel"}}),
        (VQConfig, {"attn_implementation": "paged|someone/kernel"}),
        (VQConfig, {"attn_implementation": "flash_attention_2"}),  # without the package, this is a kernel of the Hub
        (VQConfig, {"experts_implementation": "deepgemm"}),
        (VQConfig, {"attribute_map": {"word": "_attn_implementation"}, "word": "someone/kernel"}),
        (MaskGitConfig, {"attn_implementation": "someone/kernel"}),
        (MaskGitConfig, {"vq_config": {"attn_implementation": "someone/kernel"}}),
        (VQImageClassificationConfig, {"attn_implementation": {"backbone_config": "someone/kernel"}}),
        (
            VQImageClassificationConfig,
            {"backbone_config": {"model_type": "vit", "_attn_implementation": "a/kernel"}},
        ),
    ],
)
def test_a_file_cannot_name_a_kernel(config_class, fields, tmp_path):
    """transformers would fetch such a kernel and run it, without asking; AutoModel and AutoConfig stop as well."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_class().to_dict() | fields))

    for load in (config_class.from_pretrained, AutoConfig.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match="of a configuration must be one of|`attribute_map`"):
            load(tmp_path)
    with pytest.raises(ValueError, match="of a configuration must be one of|`attribute_map`"):
        config_class(**fields)


def test_who_loads_a_model_chooses_the_attention(tmp_path):
    """A file may name what is built in; the caller may name anything, for nested configurations as well."""
    vit = {"model_type": "vit", "image_size": 32, "_attn_implementation_autoset": True}
    settings = VQImageClassificationConfig(backbone_config=vit).to_dict() | {"_attn_implementation": "eager"}
    (tmp_path / "config.json").write_text(json.dumps(settings))

    own = VQImageClassificationConfig.from_pretrained(tmp_path)
    chosen, rest = VQImageClassificationConfig.from_pretrained(
        tmp_path, attn_implementation="someone/kernel", return_unused_kwargs=True
    )

    assert own._attn_implementation == own.backbone_config._attn_implementation == "eager"
    assert chosen._attn_implementation == chosen.backbone_config._attn_implementation == "someone/kernel"
    assert "attn_implementation" not in rest
