"""One bad batch, or few codes, do not spoil a codebook and the statistics around it for good."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_vq import GroupVectorQuant, ResidualVectorQuant, VectorQuant, VQConfig, VQModel
from hf_vq.modeling.batch_norm_vq import BatchNorm1d, BatchNorm2d

OUTLIERS = [1e5, 1e10, 1e15, 1e20, 3e38, torch.inf, torch.nan]


def _batch(outlier: float | None = None, size: int = 256) -> torch.Tensor:
    z = torch.randn(size, 4)
    if outlier is not None:
        z[3] = outlier
    return z


# --- the default inner step by gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("code_dim", [1, 4, 8])
@pytest.mark.parametrize("num_codes", [1, 2, 16, 64])
@pytest.mark.parametrize("kwargs", [{}, dict(affine_mode="running"), dict(affine_lr=2.0), dict(cb_norm="l2")])
def test_the_default_gradient_step_is_stable(num_codes, code_dim, kwargs):
    """With any number of codes, vectors of any size and any share for one code, the loss stays below the variance."""
    for scale, offset in ((1.0, 0.0), (100.0, 50.0), (0.01, 5.0)):
        if "cb_norm" in kwargs and scale != 1:
            continue
        torch.manual_seed(0)
        layer = VectorQuant(code_dim, num_codes, dim=-1, alternating_steps=1, alternating_kind="sgd", **kwargs).train()
        for _ in range(80):
            out = layer(scale * torch.randn(256, code_dim) + offset)[1]

        assert layer.codebook.weight.isfinite().all()
        assert out.loss < 4 * scale**2 + 0.02 * offset**2


def test_the_gradient_step_is_as_it_was_where_it_is_stable():
    """Where no code takes many vectors, the default is a step of 50, to the bit; and 50 asked for is never less."""

    def train(num_codes: int, **kwargs: Any) -> torch.Tensor:
        torch.manual_seed(0)
        layer = VectorQuant(32, num_codes, dim=-1, alternating_steps=1, alternating_kind="sgd", **kwargs).train()
        for _ in range(5):
            layer(torch.randn(4096, 32))
        return layer.codebook.weight.detach()

    assert torch.equal(train(1024), train(1024, alternating_lr=50.0))
    assert not torch.equal(train(2), train(2, alternating_lr=50.0))


# --- vectors that are far too large -------------------------------------------------------------------------------


@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("kind", ["centroid", "sgd", "ema", "none"])
def test_running_moments_stay_finite(kind, outlier):
    """One such vector leaves no NaN in the running affine map, and the codes serve the next batches."""
    torch.manual_seed(0)
    steps: dict[str, Any] = dict(codebook_update="ema") if kind == "ema" else {}
    if kind in ("centroid", "sgd"):
        steps = dict(alternating_steps=1, alternating_kind=kind)
    layer = VectorQuant(4, 16, dim=-1, affine_mode="running", **steps).train()
    for index in range(30):
        out = layer(_batch(outlier if index == 10 else None))[1]

    assert all(value.isfinite().all() for value in layer.state_dict().values())
    assert layer.get_codebook().isfinite().all()
    assert out.loss.isfinite()


CASES: dict[str, tuple[type[VectorQuant], dict[str, Any]]] = {
    "plain": (VectorQuant, {}),
    "k-means": (VectorQuant, dict(kmeans_init=True)),
    "replacement": (VectorQuant, dict(replace_freq=5)),
    "k-means, replacement": (VectorQuant, dict(kmeans_init=True, replace_freq=5)),
    "policy k-means": (VectorQuant, dict(kmeans_init=True, replace_freq=5, replace_policy="kmeans")),
    "policy busy": (VectorQuant, dict(kmeans_init=True, replace_freq=5, replace_policy="busy")),
    "ema": (VectorQuant, dict(kmeans_init=True, replace_freq=5, codebook_update="ema", alternating_steps=0)),
    "separate": (GroupVectorQuant, dict(groups=2, share=False, kmeans_init=True, replace_freq=5)),
    "residual": (ResidualVectorQuant, dict(groups=2, share=False, kmeans_init=True, replace_freq=5)),
}


@pytest.mark.parametrize("when", [0, 10])
@pytest.mark.parametrize("outlier", [1e5, 1e15, 3e38, torch.nan])
@pytest.mark.parametrize("case", CASES)
def test_no_code_takes_everything_forever(case, outlier, when):
    """After a batch with such a vector the codes are used again as without, and all of them are finite."""
    kind, kwargs = CASES[case]
    usage, loss = {}, {}
    for bad in (None, outlier):
        torch.manual_seed(0)
        layer = kind(4, 32, dim=-1, **(dict(alternating_steps=1) | kwargs)).train()
        for index in range(40):
            out = layer(_batch(bad if index == when else None))[1]
        usage[bad], loss[bad] = out.usage.item(), out.loss.item()
        assert layer.get_codebook().isfinite().all()

    # Without replacement, codes that k-means had to share with the outlier stay unused.
    assert usage[outlier] > (0.8 if "replace_freq" in kwargs else 0.4) * usage[None]
    assert loss[outlier] < (1.5 if "replace_freq" in kwargs else 4) * loss[None]


@pytest.mark.parametrize("value", [1e15, 3e38, torch.inf, torch.nan])
def test_codes_that_are_lost_already_are_found(value):
    """A codebook that was trained into such a state, as one from a checkpoint may be, recovers in two forwards."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 32, dim=-1, kmeans_init=True).train()
    layer(_batch())
    with torch.no_grad():
        layer.codebook.weight[5] = value
    for _ in range(2):
        out = layer(_batch())[1]

    assert out.usage > 0.9
    assert layer.codebook.rewritten is not None and layer.codebook.rewritten.nonzero().tolist() == [[5]]


def test_a_far_code_that_does_no_harm_is_left_alone():
    """A code at 50 times the spread stays, also while one code holds everything; equal vectors lose no code."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 8, dim=-1).train()
    with torch.no_grad():
        layer.codebook.weight.fill_(3.0)
        layer.codebook.weight[5] = 50.0
    before = layer.codebook.weight.clone()
    for _ in range(3):
        layer(_batch())
        layer(torch.ones(64, 4))

    assert torch.equal(layer.codebook.weight, before)


# --- batch norm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("make", [lambda: BatchNorm1d(4), lambda: BatchNorm2d(4)])
def test_a_batch_that_is_not_finite_changes_no_statistics(make, value):
    """The statistics, and the count of batches, are those without the bad batch; a good batch counts as in torch."""
    torch.manual_seed(0)
    norm = make().train()
    shape = (8, 4, 5) if isinstance(norm, BatchNorm1d) else (8, 4, 5, 5)
    reference = (nn.BatchNorm1d if isinstance(norm, BatchNorm1d) else nn.BatchNorm2d)(4).train()
    good = torch.randn(shape)
    bad = good.clone()
    bad[0, 0] = value
    for batch in (good, bad, 2 * good):
        x = batch.clone().requires_grad_()
        norm(x).square().sum().backward()
        if batch is not bad:
            reference(batch)

    state = reference.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in norm.state_dict().items())


def test_models_evaluate_after_a_bad_batch():
    """A quantizer with norm "bn" and the SQ-VAE backbone give finite images after a batch of NaN."""
    torch.manual_seed(0)
    model = VQModel(VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_codes=16, norm="bn")).train()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    model(pixels)
    before = copy.deepcopy(model.state_dict())
    model(torch.full_like(pixels, torch.nan))

    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in statistics)
    assert model.eval()(pixels).decoded_pixel_values.isfinite().all()
