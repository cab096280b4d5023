"""Parameter groups, schedules, the weight average, and what is forgotten when a code is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, BeitConfig

from hf_vq import VectorQuant, VQModel, get_vq_layers
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.ema import WeightEMA
from hf_vq.training.optimization import forget_gradients, forget_moments, learning_rate_factor, parameter_groups


def test_codebooks_norms_and_biases_do_not_decay(make_model: Callable[..., VQModel]) -> None:
    """Weight decay is for kernels alone, and no trained parameter is left out or in two groups."""
    model = make_model(affine_lr=1.0)
    codes = [weight for layer in get_vq_layers(model) for weight in layer.code_parameters()]
    decayed, others = parameter_groups(model, 0.1, codes)

    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert not {id(weight) for weight in codes} & {id(weight) for weight in decayed["params"]}  # type: ignore[attr-defined]
    assert all(weight.ndim > 1 for weight in decayed["params"])  # type: ignore[attr-defined]
    grouped = [id(weight) for group in (decayed, others) for weight in group["params"]]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(id(weight) for weight in model.parameters() if weight.requires_grad)


def test_tokens_positions_and_tables_do_not_decay() -> None:
    """They have two axes and are no weights of a layer."""
    tokens: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "use_mask_token": True,
    }
    model = AutoModel.from_config(BeitConfig(**tokens, image_size=16, patch_size=4, use_relative_position_bias=True))
    decayed, _ = parameter_groups(model, 0.1)
    names = {id(weight): name for name, weight in model.named_parameters()}
    kept = {names[id(weight)] for weight in decayed["params"]}  # type: ignore[attr-defined]
    assert "embeddings.patch_embeddings.projection.weight" in kept
    assert all(name.endswith(".weight") for name in kept) and any(
        "relative_position" in name for name in names.values()
    )


def factors(**fields: Any) -> list[float]:
    """The learning rates of a run, relative to the peak."""
    args = TokenizerTrainingArguments(output_dir="out", **fields)
    return [learning_rate_factor(step, args) for step in range(args.max_steps)]


def test_warm_up_rises_to_the_peak_and_cosine_falls_to_nearly_nothing() -> None:
    """Four steps of warm-up, the peak, then half a cosine."""
    rates = factors(lr_scheduler="cosine", warmup_steps=4, max_steps=104)

    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[54] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
    assert factors(lr_scheduler="constant", warmup_steps=2, max_steps=5) == [0.5, 1, 1, 1, 1]


def test_onecycle_has_the_shape_of_the_one_in_torch() -> None:
    """The learning rates are those of torch.optim.lr_scheduler.OneCycleLR."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=100, cycle_momentum=False)
    expected = []
    for _ in range(100):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()

    assert factors(lr_scheduler="onecycle", max_steps=100) == pytest.approx(expected, abs=1e-6)


def test_moments_and_gradients_of_rewritten_rows_are_forgotten() -> None:
    """Only the rows that hold a new vector lose their moments and their gradient."""
    weight = nn.Parameter(torch.ones(4, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(4, 2)
    optimizer.step()
    rows = torch.tensor([False, True, False, True])

    forget_moments(optimizer, [(weight, rows)])
    forget_gradients([(weight, rows)])

    state = optimizer.state[weight]
    for tensor in (state["exp_avg"], state["exp_avg_sq"], weight.grad):
        assert torch.equal(tensor.abs().sum(1) == 0, rows)
    assert state["step"] == 1


def test_the_average_takes_rewritten_rows_over_as_they_are() -> None:
    """A replaced row is copied into the average, its neighbors are averaged."""
    model = nn.Embedding(3, 2)
    ema = WeightEMA(model, decay=0.9)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    rows = torch.tensor([False, True, False])

    ema.update(model, {id(model.weight): rows})

    decay = 2 / 11  # warmed up
    average = ema.module.get_parameter("weight")
    assert torch.equal(average[1], model.weight[1])
    assert torch.allclose(average[0], decay * before[0] + (1 - decay) * model.weight[0])


def test_the_average_copies_what_is_not_trained_by_gradients() -> None:
    """Buffers and frozen parameters are taken over, not averaged."""
    model = nn.BatchNorm1d(2)
    model.bias.requires_grad_(False)
    ema = WeightEMA(model, decay=0.9)
    with torch.no_grad():
        model.bias.fill_(3)
        model.running_mean.fill_(5)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]

    ema.update(model)

    assert ema.module.get_parameter("bias").tolist() == [3, 3]
    assert ema.module.get_buffer("running_mean").tolist() == [5, 5]
    assert ema.module.get_buffer("num_batches_tracked") == 7


def test_the_average_takes_over_replaced_codes_as_they_are_used() -> None:
    """Behind its own affine map the average has the model's new effective codes, not its raw ones."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 8, affine_lr=2.0)
    model = nn.Sequential(layer)
    ema = WeightEMA(model, 0.99)
    with torch.no_grad():
        layer.codebook.affine_bias.add_(1.0)
    rows = torch.arange(8) < 3
    layer.codebook.rewrite(torch.randn(8, 4), rows)
    ema.update(model, {id(layer.codebook.weight): rows})

    average: Any = get_vq_layers(ema.module)[0]
    assert not torch.equal(average.codebook.affine_bias, layer.codebook.affine_bias)
    torch.testing.assert_close(average.get_codebook()[rows], layer.get_codebook()[rows])
