"""Levels of rounding and of signs, from coarse to fine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_vq import FiniteScalarQuant, LookupFreeQuant, ResidualFiniteScalarQuant, ResidualLookupFreeQuant, VQConfig

LAYERS = {
    "fsq": lambda groups: ResidualFiniteScalarQuant(levels=[5, 4, 3], groups=groups, dim=-1),
    "lfq": lambda groups: ResidualLookupFreeQuant(3, groups=groups, dim=-1),
}
ALONE = {"fsq": lambda: FiniteScalarQuant(levels=[5, 4, 3], dim=-1), "lfq": lambda: LookupFreeQuant(3, dim=-1)}


@pytest.mark.parametrize("kind", LAYERS)
def test_one_level_is_the_layer_itself(kind: str) -> None:
    """Ids, output, loss and gradient."""
    torch.manual_seed(0)
    z = torch.randn(50, 3)
    found = []
    for layer in (LAYERS[kind](1).train(), ALONE[kind]().train()):
        x = z.clone().requires_grad_()
        quantized, out = layer(x)
        (quantized.square().sum() + out.loss).backward()
        found.append((quantized.detach(), out.q, out.loss.detach(), x.grad, layer.get_codebook()))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_level_refines(kind: str) -> None:
    """The error falls with every level; the first levels alone can be looked up; ids say their level."""
    torch.manual_seed(0)
    layer = LAYERS[kind](4).eval()
    z = torch.randn(400, 3).clamp(-1.9, 1.9)
    quantized, out = layer(z)
    target = layer.unquantized(z)
    assert torch.equal(layer.lookup(out.q), quantized) and len(layer.get_codebook()) == layer.num_codes
    errors = [(layer.lookup(out.q[:, :count]) - target).square().mean().item() for count in range(1, 5)]
    assert all(fine < 0.6 * coarse for coarse, fine in zip(errors, errors[1:], strict=False))
    assert torch.equal(out.q // layer.level_size, torch.arange(4).expand(400, 4))
    by_list = layer.get_codebook()[out.q].sum(1)
    torch.testing.assert_close(by_list, quantized)
    with pytest.raises(ValueError, match="ids of level g must be in"):
        layer.lookup(out.q.flip(-1))


def test_levels_of_fsq_cut_their_interval_evenly() -> None:
    """Two levels of five are as fine as one of 25 between the outermost codes: every error is below half a step."""
    layer = ResidualFiniteScalarQuant(levels=[5], groups=2, dim=-1).eval()
    z = torch.linspace(-3, 3, 1001)[:, None]
    quantized, out = layer(z)
    assert (layer.unquantized(z) - quantized).abs().max() <= 0.5 * 0.5 / 5 + 2e-3
    assert len(out.q.unique(dim=0)) == 21  # the outermost of the five intervals reach beyond the bound
    assert torch.equal(quantized.flatten().sort().values, quantized.flatten())


def test_the_loss_of_signs() -> None:
    """The commitment to the sum, and the levels' entropies; masked vectors take no part."""
    torch.manual_seed(0)
    layer = ResidualLookupFreeQuant(3, groups=2, dim=-1, entropy_weight=0.5, entropy_temperature=0.7).train()
    z, mask = torch.randn(4, 6, 3), torch.rand(4, 6) > 0.4
    first = LookupFreeQuant(3, dim=-1, entropy_weight=0.5, entropy_temperature=0.7).train()
    kept = z[mask]
    left = kept - kept.sign()
    entropies = [first(each)[1].loss - (each - each.sign()).square().mean() for each in (kept, 2 * left)]
    expected = (left - left.sign() / 2).square().mean() + sum(entropies) / 2
    torch.testing.assert_close(layer(kept)[1].loss, expected)
    torch.testing.assert_close(layer(torch.where(mask[..., None], z, torch.nan), mask)[1].loss, expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"quantizer_type": "residual_fsq", "levels": [5, 4, 3], "num_groups": 3, "embed_dim": 3}, 180),
        ({"quantizer_type": "residual_lfq", "num_groups": 3, "embed_dim": 5}, 96),
    ],
)
def test_configurations(fields: dict[str, Any], expected: int) -> None:
    """The number of codes follows, and ids count on."""
    config = VQConfig(**fields)
    assert config.num_codes == expected and not config.share_codebook
    for wrong, message in (({"num_codes": 77}, f"which\\s+make {expected}"), ({"num_groups": 0}, "at least 1, got 0")):
        with pytest.raises(StrictDataclassError, match=message):
            VQConfig(**fields | wrong)
