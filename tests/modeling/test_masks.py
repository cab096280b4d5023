"""Masks: padded sequences train and quantize as their vectors alone would."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_vq import (
    RECOMMENDED_QUANTIZER,
    FiniteScalarQuant,
    GroupVectorQuant,
    IndexBackpropQuant,
    LookupFreeQuant,
    Quantizer,
    QuantizerOutput,
    ResidualVectorQuant,
    SimVectorQuant,
    VectorQuant,
    no_vq,
)

from ..toy_quantizer import SignQuantizer

LENGTHS = torch.tensor([7, 3, 1, 5])
PREFIX = torch.arange(9) < LENGTHS[:, None]
FULL: dict[str, Any] = dict(sync_nu=0.5, replace_freq=1, kmeans_init=True, alternating_steps=2)
LAYERS = {
    "recommended": lambda: VectorQuant(8, 16, dim=-1, **RECOMMENDED_QUANTIZER),
    "collecting": lambda: VectorQuant(8, 40, dim=-1, kmeans_init=True, alternating_steps=1),
    "ema": lambda: VectorQuant(8, 16, dim=-1, codebook_update="ema", kmeans_init=True, replace_freq=1),
    "affine, sgd, l2": lambda: VectorQuant(8, 16, dim=-1, norm="l2", affine_lr=2.0, alternating_kind="sgd", **FULL),
    "rotation, busy": lambda: VectorQuant(
        8, 16, dim=-1, gradient_estimator="rotation", replace_freq=1, replace_policy="busy"
    ),
    "batch norm": lambda: VectorQuant(8, 16, dim=-1, norm="bn", **FULL),
    "shared groups": lambda: GroupVectorQuant(8, 16, 2, True, dim=-1, replace_policy="kmeans", **FULL),
    "separate groups, running": lambda: GroupVectorQuant(8, 16, 2, False, dim=-1, affine_mode="running", **FULL),
    "residual": lambda: ResidualVectorQuant(8, 16, 2, True, dim=-1, **FULL),
    "residual, separate, running": lambda: ResidualVectorQuant(8, 16, 2, False, dim=-1, affine_mode="running", **FULL),
    "lfq": lambda: LookupFreeQuant(8, dim=-1),
    "simvq": lambda: SimVectorQuant(8, 16, dim=-1),
    "ibq": lambda: IndexBackpropQuant(8, 16, dim=-1),
    "fsq": lambda: FiniteScalarQuant(levels=[3, 4, 2, 5, 3, 2, 2, 2], dim=-1),
}


def padded(seed: int) -> torch.Tensor:
    """Four sequences of up to nine positions; what stands behind their ends is NaN."""
    z = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(seed)) + 1
    return z.masked_fill(~PREFIX[..., None], torch.nan)


def state(layer: Quantizer) -> dict[str, torch.Tensor]:
    return {**layer.state_dict(), **layer.training_state()}


def train(layer: Quantizer, make_input: Any, steps: int = 4) -> list[dict[str, torch.Tensor]]:
    """What the layer gives for each of some training steps, with the gradient of its input."""
    optimizer = torch.optim.SGD([*layer.parameters(), nn.Parameter(torch.ones(1))], 0.1)
    torch.manual_seed(0)
    found = []
    for step in range(steps):
        z, *mask = make_input(step)
        z.requires_grad_()
        z_q, out = layer(z, *mask)
        (z_q.square().sum() / 100 + out.loss).backward()
        assert z.grad is not None
        optimizer.step()
        optimizer.zero_grad()
        scalars = {"loss": out.loss, "perplexity": out.perplexity, "usage": out.usage}
        found.append({"z_q": z_q, "grad": z.grad, "q": out.q, "d": out.d, "z": out.z, "codes": out.z_q, **scalars})
    return [{name: value.detach() for name, value in each.items()} for each in found]


@pytest.mark.parametrize("name", LAYERS)
def test_a_padded_batch_trains_as_its_vectors_alone(name: str) -> None:
    """Ids, counts, clocks, initialization, replacement, averages and codes; padding may be NaN."""
    torch.manual_seed(1)
    layer = LAYERS[name]()
    alone = copy.deepcopy(layer)

    with_mask = train(layer, lambda step: (padded(step), PREFIX))
    expected = train(alone, lambda step: (padded(step)[PREFIX][None],))

    torch.testing.assert_close(state(layer), state(alone), rtol=1e-5, atol=1e-6)
    for got, wanted in zip(with_mask, expected, strict=True):
        assert torch.equal(got["q"][PREFIX], wanted["q"][0])
        for field in ("z_q", "grad", "d", "z", "codes"):
            torch.testing.assert_close(got[field][PREFIX], wanted[field][0], rtol=1e-5, atol=1e-6)
        for field in ("loss", "perplexity", "usage"):
            torch.testing.assert_close(got[field], wanted[field], rtol=1e-5, atol=1e-6)
        assert (got["q"][~PREFIX] == -1).all()
        assert all((got[field][~PREFIX] == 0).all() for field in ("z_q", "grad", "d", "z", "codes"))


@pytest.mark.parametrize("name", ["recommended", "ema", "residual", "shared groups"])
def test_what_the_layer_updates_itself_has_the_same_bits(name: str) -> None:
    """Without a gradient step, codes, clocks and averages equal those of the vectors alone to the bit."""
    torch.manual_seed(1)
    layer = LAYERS[name]()
    alone = copy.deepcopy(layer)
    for step in range(4):
        torch.manual_seed(step)
        layer(padded(step), PREFIX)
        torch.manual_seed(step)
        alone(padded(step)[PREFIX][None])

    assert all(torch.equal(value, state(alone)[key]) for key, value in state(layer).items())


@pytest.mark.parametrize("norm", ["gn", "in", "bn"])
def test_norms_see_only_what_counts(norm: str) -> None:
    """Moments of group and instance norm are those of each sequence's own vectors, in training and in eval."""
    torch.manual_seed(0)
    layer: Any = VectorQuant(8, 16, dim=-1, norm=norm)
    z = padded(0)
    if norm != "bn":
        if norm == "gn":
            nn.init.uniform_(layer.norm_layer.weight)
        longer = z[LENGTHS > 1], PREFIX[LENGTHS > 1]  # torch's instance norm refuses a single vector in training
        for mode in (True, False):
            out = layer.train(mode)(*longer)[1]
            for row, length in enumerate([7, 3, 5]):
                expected = layer(longer[0][row : row + 1, :length])[1].z[0]
                torch.testing.assert_close(out.z[row, :length], expected)
        return
    out = layer.train()(z, PREFIX)[1]
    torch.testing.assert_close(out.z[PREFIX].mean(0).squeeze(), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.norm_layer.running_mean, 0.1 * z[PREFIX].mean(0))
    before = layer.norm_layer.running_mean.clone()
    layer.eval()(z, PREFIX)
    assert torch.equal(layer.norm_layer.running_mean, before)


@pytest.mark.parametrize("name", [*LAYERS, "group norm", "instance norm"])
def test_nothing_counts_in_a_batch_that_is_masked_whole(name: str) -> None:
    """It leaves what an empty batch leaves, with zeros, ids of -1, loss 0 and gradients that are finite."""
    norms = {"group norm": "gn", "instance norm": "in"}
    make = LAYERS.get(name) or (lambda: VectorQuant(8, 16, dim=-1, norm=norms[name]))
    torch.manual_seed(1)
    layer = make()
    for step in range(2):
        layer(padded(step)[:2], PREFIX[:2])
    empty = copy.deepcopy(layer)
    z = torch.full((2, 3, 8), torch.nan, requires_grad=True)

    torch.manual_seed(2)
    z_q, out = layer(z, torch.zeros(2, 3, dtype=torch.bool))
    (z_q.sum() + out.loss).backward()
    torch.manual_seed(2)
    empty(torch.empty(2, 0, 8))

    assert all(torch.equal(value, state(empty)[key]) for key, value in state(layer).items())
    assert (z_q == 0).all() and (out.q == -1).all() and out.loss == out.perplexity == out.usage == 0
    assert z.grad is not None and (z.grad == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_and_loss_in_eval_are_those_of_the_vectors_alone(name: str) -> None:
    """Perplexity, usage and loss of a padded batch."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for step in range(3):
        layer(padded(step), PREFIX)
    layer.eval()
    out, alone = layer(padded(3), PREFIX)[1], layer(padded(3)[PREFIX])[1]
    for field in ("loss", "perplexity", "usage"):
        torch.testing.assert_close(out[field], alone[field], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, -2])
def test_any_axis(dim: int) -> None:
    """The mask has the shape of the input without the axis of the features."""
    torch.manual_seed(0)
    layer = VectorQuant(8, 16, dim=dim).eval()
    z = torch.randn(2, 5, 6, 8).movedim(-1, dim)
    mask = torch.rand(2, 5, 6) > 0.5

    z_q, out = layer(z, mask=mask)

    expected, unmasked = layer(z)
    assert torch.equal(z_q, torch.where(mask.unsqueeze(dim), expected, 0.0))
    assert torch.equal(out.q, torch.where(mask[..., None], unmasked.q, -1))
    assert torch.equal(layer.lookup(out.q[mask][:, None, None]).flatten(), z_q.movedim(dim, -1)[mask].flatten())


def test_half_precision_autocast_freezing_and_no_vq() -> None:
    """A mask changes nothing about them: no_vq passes all vectors through as they are."""
    torch.manual_seed(0)
    layer = VectorQuant(8, 16, dim=-1, **RECOMMENDED_QUANTIZER)
    layer(padded(0), PREFIX)
    with torch.autocast("cpu"):
        z_q, out = layer(padded(1).half(), PREFIX)
    assert z_q.dtype == torch.half and out.z.dtype == torch.float and out.loss.isfinite()

    before = {name: value.clone() for name, value in state(layer).items()}
    assert layer.freeze().train()(padded(2), PREFIX)[1].loss.isfinite()
    assert all(torch.equal(value, before[name]) for name, value in state(layer).items())

    z = torch.randn(4, 9, 8)
    with no_vq(layer):
        passed, out = layer(z, PREFIX)
    assert torch.equal(passed, z) and out.loss == 0 and out.q is None


def test_masks_that_do_not_fit_are_named() -> None:
    """Shape and dtype are told with what was expected."""
    layer = VectorQuant(8, 16, dim=-1)
    with pytest.raises(ValueError, match=r"dim=-1, \(4, 9\), got \(4, 9, 8\)"):
        layer(torch.randn(4, 9, 8), torch.ones(4, 9, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"bool.*got torch.int64. Pass `mask.bool\(\)`"):
        layer(torch.randn(4, 9, 8), torch.ones(4, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"-1 says that there is no code: pass `q\[mask\]`"):
        layer.lookup(layer(torch.randn(4, 9, 8), PREFIX)[1].q)


class MaskedSigns(SignQuantizer):
    """A kind of somebody's own that knows masks."""

    takes_mask = True

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        z_q, output = super().forward(z)
        if mask is not None:
            output.loss = (z.detach() - z_q).movedim(self.dim, -1)[mask].square().mean()
        return z_q, output


def test_kinds_of_others_take_masks_if_they_say_so() -> None:
    """One without masks says so by name; of one with them, statistics and zeros come from the base class."""
    with pytest.raises(NotImplementedError, match="SignQuantizer takes no mask.*takes_mask = True"):
        SignQuantizer(8, 256, dim=-1)(torch.randn(4, 9, 8), PREFIX)
    layer = MaskedSigns(8, 256, dim=-1).eval()
    z = padded(0)

    z_q, out = layer(z, PREFIX)

    alone, expected = layer(z[PREFIX])
    assert torch.equal(z_q[PREFIX], alone) and (z_q[~PREFIX] == 0).all()
    assert out.perplexity == expected.perplexity and out.usage == expected.usage


class Sequences(nn.Module):
    """A layer between two linear maps; returns the loss of the positions that count."""

    def __init__(self, layer: Quantizer) -> None:
        super().__init__()
        self.encoder, self.layer, self.decoder = nn.Linear(8, 8), layer, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        z_q, out = self.layer(self.encoder(x), mask)
        return (self.decoder(z_q) - x)[mask].square().mean() + out.loss


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["recommended", "batch norm", "residual", "fsq"])
def test_compiled_layers_train_with_masks_as_in_eager(name: str) -> None:
    """Losses and states agree, with another mask in each step."""

    def run(compiled: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(1)
        model = Sequences(LAYERS[name]())
        torch._dynamo.reset()
        step = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses = []
        for _ in range(4):
            loss = step(torch.randn(4, 9, 8), torch.rand(4, 9) > 0.4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model.state_dict()

    (losses, compiled), (expected, eager) = run(True), run(False)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["recommended", "separate groups, running", "residual", "fsq"])
def test_eval_with_a_mask_is_one_graph(name: str) -> None:
    """`torch.compile(fullgraph=True)` and `torch.export` take the mask as an input."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    layer(padded(0), PREFIX)
    layer.eval()
    inputs = (torch.randn(4, 9, 8), PREFIX)
    expected, out = layer(*inputs)

    torch._dynamo.reset()
    compiled, compiled_out = torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs)
    exported, exported_out = torch.export.export(layer, inputs).module()(*inputs)

    assert torch.equal(compiled_out.q, out.q) and torch.equal(exported_out.q, out.q)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
