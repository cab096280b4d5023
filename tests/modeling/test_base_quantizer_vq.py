"""What every quantizer layer offers, also a kind of somebody else that writes three methods and nothing more."""

import pytest
import torch
from torch import nn

from hf_vq import FiniteScalarQuant, VectorQuant, get_vq_layers, no_vq
from hf_vq.modeling.base_quantizer_vq import Quantizer, QuantizerOutput


class Signs(Quantizer):
    """A code for each sign pattern, at a distance that follows the inputs in training."""

    size: torch.Tensor

    def __init__(self, feature_size: int, num_codes: int, dim: int = 1) -> None:
        super().__init__()
        self.feature_size, self.num_codes, self.dim, self.code_dim = feature_size, num_codes, dim, feature_size
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("size", torch.ones(()))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        x = z.moveaxis(self.dim, -1)
        if self.training:
            self.size.lerp_(x.detach().abs().mean(), 0.5)
        q = ((x > 0) * 2 ** torch.arange(self.feature_size)).sum(-1, keepdim=True)
        z_q = self.lookup(q)
        return z_q.detach() + (z - z.detach()), QuantizerOutput(q=q, loss=(z.detach() - z_q).square().mean())

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        signs = (self.check_ids(q) >> torch.arange(self.feature_size)) % 2 * 2.0 - 1
        return (self.scale * self.size * signs).moveaxis(-1, self.dim)

    def get_codebook(self) -> torch.Tensor:
        return self.lookup(torch.arange(self.num_codes)[:, None]).detach()


def test_three_methods_make_a_quantizer() -> None:
    """What a kind leaves out is filled in: vectors, codes, distances, statistics; trainers find empty defaults."""
    layer = Signs(3, 8)
    z = torch.randn(2, 3, 4, 4)
    z_q, out = layer(z)

    assert out["z"].shape == out.z_q.shape == (2, 4, 4, 1, 3) and out.d.shape == out.q.shape == (2, 4, 4, 1)
    torch.testing.assert_close(out.d, (z - z_q).norm(dim=1)[..., None])
    frequency = torch.bincount(out.q.flatten(), minlength=8) / 32
    torch.testing.assert_close(out.perplexity, (-torch.xlogy(frequency, frequency).sum()).exp())
    assert out.usage == (frequency > 0).float().mean()
    assert get_vq_layers(nn.Sequential(layer)) == [layer]
    assert layer.code_parameters() == [layer.scale]
    assert layer.rewritten_rows() == {} and layer.training_state() == {}
    layer.load_training_state({})
    with pytest.raises(KeyError, match="Signs has none"):
        layer.load_training_state({"momentum": torch.zeros(1)})


def test_calls_are_checked_and_made_in_float32() -> None:
    """The input's shape and dtype, float32 under autocast, and the input's dtype again at the end."""
    layer = Signs(3, 8)
    with pytest.raises(ValueError, match="feature_size=3 along dim=1"):
        layer(torch.randn(2, 4, 4))
    with pytest.raises(ValueError, match="floating point"):
        layer(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"ids must be in \[0, 8\)"):
        layer.lookup(torch.tensor([[8]]))
    seen = []
    layer.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, torch.is_autocast_enabled("cpu"))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z_q, out = layer(torch.randn(2, 3, 4, dtype=torch.bfloat16))

    assert seen == [(torch.float32, False)]
    assert z_q.dtype == torch.bfloat16 and out.loss.dtype == out.perplexity.dtype == torch.float32


def test_a_kind_that_gives_no_ids_is_told_so() -> None:
    """Ids are the one thing that cannot be filled in."""

    class Silent(Signs):
        def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
            return z, QuantizerOutput()

    with pytest.raises(ValueError, match="`forward` of Silent must return the ids"):
        Silent(3, 8)(torch.randn(2, 3))


def test_no_vq_holds_for_every_kind() -> None:
    """Under `no_vq` the input passes, the loss is 0 with a gradient of 0 for every parameter, and nothing moves."""
    layer = Signs(3, 8).train()
    z = torch.randn(2, 3, 4)
    with no_vq(layer):
        z_q, out = layer(z)
    out.loss.backward()

    assert z_q is z and out.q is None and out.loss == 0
    assert layer.scale.grad == 0 and layer.size == 1
    assert layer(z)[1].q is not None


def test_what_is_not_written_says_so() -> None:
    """The base class names the method that a kind lacks."""
    layer = Quantizer()
    layer.feature_size = 3
    for call, name in ((lambda: layer(torch.zeros(1, 3)), "forward"), (layer.get_codebook, "get_codebook")):
        with pytest.raises(NotImplementedError, match=f"write its `{name}`"):
            call()


def test_models_keep_a_layer_whole() -> None:
    """Every kind names itself among the modules that must not be split over devices."""
    assert Signs._no_split_modules == ("Signs",) and VectorQuant._no_split_modules == ("VectorQuant",)


@pytest.mark.parametrize(
    ("dim", "shape", "words"),
    [
        (1, (4, 9, 8), r"Did you mean dim=-1: \(batch, positions, features\)\?"),
        (1, (4, 3, 3, 8), r"\(4, 3, 3, 8\). Did you mean dim=-1\?"),
        (-1, (4, 8, 3, 5), r"Did you mean dim=1\?"),
        (2, (4, 8), r"dim=2, got shape \(4, 8\). Did you mean dim=-1\?"),
    ],
)
def test_another_axis_of_the_right_size_is_suggested(dim: int, shape: tuple[int, ...], words: str) -> None:
    """Layers of every kind say which `dim` fits the input."""
    for layer in (VectorQuant(8, 16, dim=dim), FiniteScalarQuant(levels=[3] * 8, dim=dim)):
        with pytest.raises(ValueError, match=f"{words} Pass it when you build the layer"):
            layer(torch.randn(shape))


def test_no_axis_is_suggested_where_none_fits() -> None:
    """A wrong size is told alone."""
    with pytest.raises(ValueError, match=r"got shape \(4, 7, 5\)$"):
        VectorQuant(8, 16)(torch.randn(4, 7, 5))
