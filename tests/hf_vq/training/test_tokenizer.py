"""The steps of tokenizer training: what is stepped, forgotten, frozen and published."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from hf_vq import VQModel, get_vq_layers
from hf_vq.losses import PerceptualLoss
from hf_vq.training import tokenizer as tokenizer_module

MakeTrainer = Callable[..., Any]
Everything = tuple[dict[str, Any], dict[str, Any]]


def batches_of(trainer: Any, count: int, size: int = 4, start: int = 0) -> list[dict[str, torch.Tensor]]:
    """The first training images, in order, as micro batches."""
    items = [trainer.train_dataset[index]["pixel_values"] for index in range(start, start + count * size)]
    return [{"pixel_values": torch.stack(items[first : first + size])} for first in range(0, len(items), size)]


def test_training_learns_to_reconstruct(make_trainer: MakeTrainer, images: Any) -> None:
    """A short run takes two fifths off the error on held-out images and uses most of the codes."""
    trainer = make_trainer(
        max_steps=250,
        train_batch_size=8,
        learning_rate=5e-3,
        eval_steps=0,
        save_steps=0,
        train=images(64),
        model={"num_codes": 64, "base_channels": 16},
    )
    before = trainer.evaluate()
    after = trainer.train()

    assert after["mse"] < 0.6 * before["mse"]
    assert after["usage"] > 0.5


def test_the_final_folder_is_a_whole_hub_repository(make_trainer: MakeTrainer, tmp_path: Path, images: Any) -> None:
    """It loads with AutoModel and AutoImageProcessor, gives the trainer's tokens, and its card has the numbers."""
    trainer = make_trainer(use_ema=True)
    measured = trainer.train()
    final = tmp_path / "out" / "final"
    model = AutoModel.from_pretrained(final).eval()
    processor = AutoImageProcessor.from_pretrained(final)

    pixel_values = torch.stack([images()[index]["pixel_values"] for index in range(5)])
    assert isinstance(model, VQModel)
    with torch.no_grad():
        tokens = model.encode(pixel_values).image_tokens
        assert torch.equal(tokens, trainer.published_model().encode(pixel_values).image_tokens)
    name = "encoder.conv.0.weight"
    assert not torch.equal(model.get_parameter(name), trainer.model.get_parameter(name))  # it is the average
    assert processor.crop_size.height == 16
    card = (final / "README.md").read_text()
    assert f"{measured['psnr']:.2f}" in card
    assert "AutoModel.from_pretrained" in card


def test_a_checkpoint_loads_with_automodel(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Weights of any checkpoint can be looked at without a trainer."""
    trainer = make_trainer()
    trainer.train()
    model = AutoModel.from_pretrained(tmp_path / "out" / "checkpoint-8")

    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_the_encoder_runs_once_per_batch(make_trainer: MakeTrainer, everything: Everything) -> None:
    """Inner steps and adversarial loss share one forward pass of the encoder."""
    fields, model = everything
    trainer = make_trainer(model=model, **{**fields, "adversarial_start": 0})
    calls = []
    trainer.model.encoder.register_forward_hook(lambda *_: calls.append(1))

    trainer.train_step(batches_of(trainer, 2))

    assert len(calls) == 2


def test_the_models_loss_leaves_no_gradient_in_the_discriminator(make_trainer: MakeTrainer) -> None:
    """In the generator's pass the discriminator is frozen; its own pass gives it gradients, and the model none."""
    trainer = make_trainer(adversarial_weight=0.5, discriminator_channels=8, discriminator_layers=1)
    batch = batches_of(trainer, 1)[0]["pixel_values"]

    reconstruction, terms = trainer._model_backward(batch, adversarial=True, micro_batches=1)
    assert all(weight.grad is None and weight.requires_grad for weight in trainer.discriminator.parameters())
    assert terms["adversarial_weight"] > 0
    gradients = [weight.grad.clone() for weight in trainer.model.decoder.parameters()]

    trainer._discriminator_backward(batch, reconstruction, micro_batches=1)
    assert all(weight.grad is not None for weight in trainer.discriminator.parameters())
    assert all(map(torch.equal, gradients, (weight.grad for weight in trainer.model.decoder.parameters())))


def test_the_adversarial_loss_waits_for_its_start(make_trainer: MakeTrainer) -> None:
    """Before `adversarial_start` the discriminator does not move and the model trains as without one."""
    gan = make_trainer(
        "gan", adversarial_weight=0.5, adversarial_start=3, discriminator_channels=8, discriminator_layers=1
    )
    plain = make_trainer("plain")
    before = [weight.clone() for weight in gan.discriminator.parameters()]
    moved = []
    for step in range(4):
        for trainer in (gan, plain):
            torch.manual_seed(step)
            trainer.train_step(batches_of(trainer, 1, start=step))
            trainer.step += 1
        moved.append(not all(map(torch.equal, before, gan.discriminator.parameters())))
        if step == 2:
            assert all(map(torch.equal, gan.model.parameters(), plain.model.parameters()))

    assert moved == [False, False, False, True]
    assert not all(map(torch.equal, gan.model.parameters(), plain.model.parameters()))


def test_replaced_codes_lose_their_moments_and_go_into_the_average(make_trainer: MakeTrainer) -> None:
    """At the optimizer's step a replaced row has no moments, and after it the average holds the row itself."""
    trainer = make_trainer(use_ema=True, model={"replace_freq": 1, "num_codes": 16, "kmeans_init": True})
    layer: Any = get_vq_layers(trainer.model)[0]
    weight = layer.codebook.weight
    averaged: Any = get_vq_layers(trainer.ema.module)[0]
    average = averaged.codebook.weight
    seen = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rows = layer.codebook.rewritten
        if trainer.step and rows is not None:
            seen.append(int(rows.sum()))
            moments = optimizer.state[weight]["exp_avg"].abs().sum(1) + optimizer.state[weight]["exp_avg_sq"].sum(1)
            assert (moments[rows] == 0).all()
            assert (moments[~rows] > 0).any()

    trainer.networks.optimizers["model"].register_step_pre_hook(look)
    for step in range(6):
        values = trainer.train_step(batches_of(trainer, 1, size=1, start=3 * step))
        trainer.step += 1
        rows = layer.codebook.rewritten
        assert values["replaced_codes"] == (0 if rows is None else rows.sum())
        if rows is not None:
            assert torch.equal(average[rows], weight[rows])

    assert seen, "no code was replaced, so nothing was tested"
    assert not torch.equal(average, weight)


def test_replaced_codes_lose_what_earlier_micro_batches_left(make_trainer: MakeTrainer) -> None:
    """A row replaced within a step keeps only the gradient of its new vector; other rows keep the sum."""
    trainer = make_trainer(model={"replace_freq": 1, "alternating_steps": 0})
    layer: Any = get_vq_layers(trainer.model)[0]
    weight = layer.codebook.weight
    trainer.train_step(batches_of(trainer, 1, size=1))
    gradients: list[torch.Tensor] = []
    weight.register_hook(lambda gradient: gradients.append(gradient.clone()))

    for batch in batches_of(trainer, 3, size=1, start=5):
        trainer._model_backward(batch["pixel_values"], adversarial=False, micro_batches=3)

    rows = layer.codebook.rewritten
    assert rows is not None and weight.grad is not None
    assert (gradients[0] + gradients[1])[rows].abs().sum() > 0, "no replaced row had a gradient: nothing was tested"
    assert torch.equal(weight.grad[rows], gradients[2][rows])
    kept = ~rows & (gradients[0].abs().sum(1) > 0)
    assert not torch.equal(weight.grad[kept], gradients[2][kept])


def test_accumulated_micro_batches_make_the_step_of_one_batch(make_trainer: MakeTrainer) -> None:
    """Two micro batches of 4 move the weights as one batch of 8 does."""
    network = {
        "architecture": "vqgan", "channel_multiplier": [1, 2], "base_channels": 32, "num_res_blocks": 1,
        "latent_channels": 8, "kmeans_init": False, "alternating_steps": 0, "replace_freq": 0,
    }  # fmt: skip
    two = make_trainer("two", network, gradient_accumulation_steps=2)
    one = make_trainer("one", network)
    before = [weight.detach().clone() for weight in one.model.parameters()]

    two.train_step(batches_of(two, 2, size=4))
    one.train_step(batches_of(one, 1, size=8))

    moved = 0.0
    for start, first, second in zip(before, two.model.parameters(), one.model.parameters(), strict=True):
        # Adam turns gradients that are rounding noise into whole steps, so single weights may differ.
        assert (first - second).abs().mean() < 1e-5
        moved += (first - start).abs().sum().item()
    assert moved > 1


class Brightness(nn.Module):
    """A perceptual distance for tests: the difference in mean brightness."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """One distance per image."""
        return (first - second).mean((1, 2, 3)).square()


def test_the_perceptual_loss_is_added_with_its_weight(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of the model plus the weighted perceptual distance."""
    make = partial(PerceptualLoss, network=Brightness())
    monkeypatch.setattr(tokenizer_module, "PerceptualLoss", make)
    trainer = make_trainer(perceptual_weight=3.0)

    values = trainer.train_step(batches_of(trainer, 1))

    own = values["reconstruction_loss"] + trainer.model.config.commitment_weight * values["commitment_loss"]
    assert values["perceptual_loss"] > 0
    assert torch.isclose(values["loss"], own + 3.0 * values["perceptual_loss"])


def test_fewer_vectors_than_codes_are_a_warning(make_trainer: MakeTrainer, images: Any) -> None:
    """A tiny data set trains, and the warning says the numbers; few images with many vectors are fine."""
    with pytest.warns(
        UserWarning, match=r"5 images, which make 80 vectors .* fewer than the 96 codes.*smaller num_codes"
    ):
        trainer = make_trainer(model={"num_codes": 96}, train=images(5), max_steps=2, train_batch_size=8)
    trainer.train()

    assert trainer.step == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(model={"num_codes": 80}, train=images(5))
        make_trainer(model={"num_codes": 160, "quantizer_type": "residual", "num_groups": 2}, train=images(5))


def test_an_empty_training_set_is_an_error(make_trainer: MakeTrainer, images: Any) -> None:
    """Nothing to train on is said before anything is written."""
    with pytest.raises(ValueError, match="training set is empty"):
        make_trainer(train=images(0))


def test_evaluation_changes_nothing(make_trainer: MakeTrainer, everything: Everything) -> None:
    """Weights, buffers, random numbers and the mode of the model are the same after an evaluation."""
    fields, model = everything
    trainer = make_trainer(model=model, **fields)
    trainer.train_step(batches_of(trainer, 2))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random = torch.get_rng_state()

    assert trainer.evaluate()["num_images"] == 7

    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("fields", [{"mixed_precision": "bf16"}, {"channels_last": True}])
def test_a_run_with_other_arithmetic_goes_through(
    make_trainer: MakeTrainer, everything: Everything, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """bfloat16 autocast and channels-last train, save float32 weights, and resume."""
    settings, model = everything
    make_trainer(model=model, **settings, **fields, max_steps=4, save_steps=2, lr_scheduler="constant").train()
    longer = {"max_steps": 6, "save_steps": 2, "lr_scheduler": "constant", "resume_from_checkpoint": "latest"}
    make_trainer(model=model, **settings, **fields, **longer).train()

    final = AutoModel.from_pretrained(tmp_path / "out" / "final")
    assert {weight.dtype for weight in final.parameters()} == {torch.float32}
