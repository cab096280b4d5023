"""Layers of other libraries behind the interface of ours: what they say, and that trainers and freezing work."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

vqp = pytest.importorskip("vector_quantize_pytorch")

LAYERS: dict[str, tuple[int, Callable[[], Any]]] = {
    "ema": (32, lambda: vqp.VectorQuantize(dim=8, codebook_size=32)),
    "sim_vq": (32, lambda: vqp.SimVQ(dim=8, codebook_size=32)),
    "fsq": (40, lambda: vqp.FSQ(dim=8, levels=[8, 5])),
    "lfq": (32, lambda: vqp.LFQ(dim=8, codebook_size=32)),
}


@pytest.fixture
def foreign(benchmark: Callable):
    """The module; `benchmark` has put its folder on the path."""
    return importlib.import_module("foreign_quantizers")


@pytest.mark.parametrize("name", LAYERS)
def test_a_foreign_layer_says_what_ours_say(foreign, name: str) -> None:
    """Values are those of the library and of `lookup`; ids, loss, codes, perplexity and usage are true."""
    torch.manual_seed(0)
    num_codes, make = LAYERS[name]
    layer = foreign.ForeignQuantizer(make(), 8, num_codes).eval()
    z = torch.randn(2, 8, 4, 4)
    z_q, out = layer(z)
    expected = layer.layer(z.flatten(2).transpose(1, 2))[0].transpose(1, 2).view_as(z)

    torch.testing.assert_close(z_q, expected)
    torch.testing.assert_close(layer.lookup(out.q), z_q)
    torch.testing.assert_close(layer.get_codebook()[out.q[..., 0]].moveaxis(-1, 1), z_q)
    assert out.q.shape == (2, 4, 4, 1) and out.usage == len(out.q.unique()) / num_codes
    assert 1 < out.perplexity <= len(out.q.unique()) + 1e-3
    assert layer.takes_nearest == (name in ("ema", "sim_vq"))


@pytest.mark.parametrize("name", LAYERS)
def test_a_foreign_layer_freezes(foreign, name: str) -> None:
    """Also the moving averages of a library that knows nothing of it."""
    num_codes, make = LAYERS[name]
    layer = foreign.ForeignQuantizer(make(), 8, num_codes).train()
    layer.freeze()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(2, 8, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("name", LAYERS)
def test_the_experiment_trains_a_foreign_layer(foreign, benchmark: Callable, name: str) -> None:
    """With the trainer that ours have."""
    num_codes, make = LAYERS[name]
    autoencoder = benchmark("quality").module.autoencoder
    model = autoencoder.build(lambda _: make(), 8, 0, num_codes)
    first = model.encoder.conv[0].weight.clone()
    codes = model.quantize.get_codebook()
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clock = autoencoder.train(model, images, commitment_weight=0.5, steps=3)

    assert 0 < clock.seconds and 0 < clock.cpu_seconds
    assert not torch.equal(first, model.encoder.conv[0].weight)
    assert not torch.equal(codes, model.quantize.get_codebook())
    metrics = autoencoder.evaluate(model, images, num_codes)
    assert 0 < metrics["usage"] <= 1 and metrics["mse"] < 1


@pytest.mark.parametrize("size", [3, 8])
def test_nearest_codes(foreign, size: int) -> None:
    """By tree or not, they are the nearest ones."""
    torch.manual_seed(0)
    codes, z = torch.randn(50, size), torch.randn(2, size, 4, 4)
    z_q, out = foreign.NearestCode(codes)(z)
    nearest = torch.cdist(z.movedim(1, -1).reshape(-1, size), codes).argmin(1).view(2, 4, 4, 1)

    assert torch.equal(out.q, nearest) and torch.equal(z_q, codes[nearest[..., 0]].movedim(-1, 1))
    torch.testing.assert_close(out.d[..., 0], (z - z_q).norm(dim=1))
