"""Weights to start from: other sizes, more codes, other classes, and the state of training that was shipped along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, VQImageProcessor, VQModel
from hf_vq.hub.folders import STATE_FILE
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.starting_point import StartingPoint, load_starting_point

MakeTrainer = Callable[..., Any]
MakeModel = Callable[..., VQModel]

KINDS: dict[str, dict[str, Any]] = {
    "vector": {},
    "affine": {"affine_lr": 2.0, "affine_groups": 2},
    "ema": {"codebook_update": "ema", "alternating_steps": 0, "sync_nu": 0.0},
    "group": {"quantizer_type": "group", "num_groups": 2, "share_codebook": False},
    "residual": {"quantizer_type": "residual", "num_groups": 2, "share_codebook": False, "affine_mode": "running"},
    "never": {"replace_freq": 0},
}


def point_of(model: Any) -> StartingPoint:
    """A model as a starting point."""
    return StartingPoint(model, VQImageProcessor.for_config(model.config), "some/model", None, None)


def pixels() -> torch.Tensor:
    """Sixteen random images."""
    return torch.rand(16, 3, 16, 16) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_more_codes_keep_the_old_ones_and_are_placed_by_replacement(kind: str, make_model: MakeModel) -> None:
    """Every old code is there as it is used; the first training forward replaces the new ones, and no others."""
    old = make_model(**{"replace_freq": 50, **KINDS[kind]}).train()
    for _ in range(3):
        old(pixels())
    point = point_of(old.eval())
    config = point.config({"num_codes": 24})
    new = point.fit(VQModel(config))

    blocks = old.quantize.codebook.num_maps
    before, after = (model.quantize.get_codebook().unflatten(0, (blocks, -1)) for model in (old, new))
    assert torch.equal(after[:, : before.shape[1]], before)
    assert after.isfinite().all() and after.flatten(0, 1).unique(dim=0).shape[0] == 24
    is_new = torch.zeros(after.shape[:2], dtype=torch.bool)
    is_new[:, before.shape[1] :] = True
    replaced = new.train()(pixels()).replaced
    if kind == "never":
        assert replaced is None
    else:
        assert torch.equal(replaced, is_new.flatten())


def test_another_size_of_the_images_keeps_the_network(make_model: MakeModel) -> None:
    """Attention stays in its blocks, the processor makes images of the new size, all else is the model's own."""
    sizes = {"architecture": "vqgan", "channel_multiplier": [1, 1, 2], "attn_resolutions": [4], "pixel_range": [0, 1]}
    old = make_model(**sizes, latent_channels=8).eval()
    point = point_of(old)
    config = point.config({"image_size": 32})
    assert config.attn_resolutions == [8]
    assert (config.image_size, config.pixel_range, config.num_codes) == (32, [0.0, 1.0], 16)
    new = point.fit(VQModel(config)).eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(new(images).decoded_pixel_values, old(images).decoded_pixel_values)
    processor = point.fitted_processor(config)
    assert processor([torch.zeros(3, 20, 20, dtype=torch.uint8)]).pixel_values[0].shape[-1] == 32


def test_what_the_weights_cannot_be_is_told(make_model: MakeModel) -> None:
    """Fewer codes, another width and another range of the pixels."""
    point = point_of(make_model())
    for fields, name in (({"num_codes": 8}, "quantize.codebook.weight"), ({"base_channels": 16}, "encoder.conv.0")):
        with pytest.raises(ValueError, match=f"'some/model' do not fit the model fields .*{name}.* wanted"):
            point.fit(VQModel(point.config(fields)))
    rounded = VQConfig(
        architecture="sqvae", image_size=16, base_channels=8, embed_dim=2, levels=[4, 4], quantizer_type="fsq"
    )
    with pytest.raises(ValueError, match="'fsq' does not use `beta=0.5`"):
        point_of(VQModel(rounded)).config({"beta": 0.5})
    with pytest.raises(ValueError, match=r"pixels in \[-1.0, 1.0\], which its weights cannot change"):
        point.config({"pixel_range": [0.0, 1.0]})


def test_a_generator_of_other_classes_learns_only_these_anew(make_model: MakeModel) -> None:
    """The transformer and the tokenizer are those of the starting point."""
    tokenizer = make_model()
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    old = MaskGitModel(MaskGitConfig(vq_config=tokenizer.config, num_classes=3, **sizes), tokenizer=tokenizer)
    point = point_of(old)
    new = point.fit(MaskGitModel(MaskGitConfig(vq_config=tokenizer.config, num_classes=5, **sizes)))
    for name, value in new.state_dict().items():
        assert torch.equal(value, old.state_dict()[name]) or name == "transformer.class_embedding.weight", name
    assert new.transformer.class_embedding.weight.shape == (6, 32)


def test_the_state_of_training_is_shipped_and_read_back(
    make_trainer: MakeTrainer, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]], runs: Any
) -> None:
    """A run from a model with its state begins with the moments, the discriminator and the codebook's averages."""
    fields, model = everything
    fields = {**fields, "use_ema": False}
    first = make_trainer("first", model, **fields, max_steps=4, save_training_state=True)
    first.train()
    assert (tmp_path / "first" / "final" / STATE_FILE).is_file()

    args = TokenizerTrainingArguments(str(tmp_path), init_from=str(tmp_path / "first" / "final"), use_cpu=True)
    point = load_starting_point(args, "tokenizer")
    assert point is not None
    second = make_trainer("second", model, **fields)
    second.model.load_state_dict(point.model.state_dict())
    second.start_from(point)
    for name, optimizer in first.networks.optimizers.items():
        found = second.networks.optimizers[name].state_dict()["state"]
        runs.assert_equal(found, optimizer.state_dict()["state"])
        assert second.networks.schedules[name].last_epoch == 0
    runs.assert_equal(dict(second.discriminator.state_dict()), dict(first.discriminator.state_dict()))
    runs.assert_equal(second.model.quantize.training_state(), first.model.quantize.training_state())

    grown = make_trainer("grown", {**model, "num_codes": 24}, **fields)
    grown.start_from(point)  # moments of a codebook of another size begin anew
    moments = grown.networks.optimizers["model"].state
    assert grown.model.quantize.codebook.weight not in moments and len(moments) > 10
    assert grown.train()["mse"] < 1
