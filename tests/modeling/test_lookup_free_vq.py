"""Binary tokens: the same as another library's, exact entropies, groups, masks, and what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from hf_vq import BinarySphericalQuant, LookupFreeQuant, VQConfig, VQModel
from hf_vq.modeling.entropy_vq import EntropyOfRanks, binary_entropies, softmax_entropies

KINDS = {"lfq": LookupFreeQuant, "bsq": BinarySphericalQuant}


def reversed_bits(ids: torch.Tensor, bits: int) -> torch.Tensor:
    """Ids whose highest bit becomes the lowest."""
    return sum((ids >> bit & 1) << (bits - 1 - bit) for bit in range(bits))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("diversity", [1.0, 0.3])
def test_another_library_agrees(kind: str, diversity: float) -> None:
    """Ids (its highest bit comes first), loss and gradients are those of vector-quantize-pytorch."""
    vqp = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    theirs = vqp.LFQ(
        dim=6, spherical=kind == "bsq", commitment_loss_weight=1.0, diversity_gamma=diversity, entropy_loss_weight=0.1
    ).train()
    ours = KINDS[kind](6, dim=-1, entropy_diversity=diversity, entropy_temperature=0.1).train()
    z = torch.randn(4, 50, 6, dtype=torch.float64) / 3
    gradients, losses = [], []
    for is_ours in (True, False):
        x = z.float().requires_grad_()
        if is_ours:
            quantized, out = ours(x)
            ids, loss = out.q[..., 0], out.loss
        else:
            quantized, their_ids, loss = theirs(x, inv_temperature=10.0)
            ids = reversed_bits(their_ids.long(), 6)
        (quantized.square().sum() / 100 + loss).backward()
        gradients.append(x.grad)
        losses.append(loss)
        if is_ours:
            ours_found = ids, quantized.detach()
    assert torch.equal(ours_found[0], ids) and len(ids.unique()) > 30
    torch.testing.assert_close(ours_found[1], quantized.detach())
    torch.testing.assert_close(losses[0], losses[1], atol=2e-4, rtol=2e-3)  # theirs adds 1e-5 in its logarithms
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-4, rtol=2e-2)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_entropies_are_those_of_all_codes(bits: int) -> None:
    """The halves give what a softmax over all codes gives, with the same gradient, in float64."""
    torch.manual_seed(0)
    x = torch.randn(7, bits, dtype=torch.float64, requires_grad=True)
    codes = LookupFreeQuant(bits).get_codebook().double()
    weight = torch.tensor([1.0, 1, 0, 1, 1, 0, 1], dtype=torch.float64)
    found = []
    for entropies in (
        binary_entropies(4 * x, EntropyOfRanks(), weight),
        softmax_entropies(2 * x @ codes.T, EntropyOfRanks(), weight),
    ):
        sure, even = entropies
        found.append((sure.detach(), even.detach(), *torch.autograd.grad(sure - 2 * even, x)))
    p = (2 * x[weight > 0] @ codes.T).softmax(1)
    mean = p.mean(0)
    expected = -(p * p.log()).sum(1).mean(), -(mean * mean.log()).sum()
    torch.testing.assert_close(found[0][:2], expected)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert (found[0][2][2] == 0).all() and (found[0][2][0] != 0).all()


def test_the_loss_is_what_the_class_says() -> None:
    """Commitment in eval, with entropies in training."""
    torch.manual_seed(0)
    layer = LookupFreeQuant(4, dim=-1, entropy_weight=0.5, entropy_diversity=2.0, entropy_temperature=1.5)
    z = torch.randn(5, 4)
    p = (2 * z @ layer.get_codebook().T / 1.5).softmax(1)
    mean = p.mean(0)
    commitment = F.mse_loss(z, z.sign())
    entropies = -(p * p.log()).sum(1).mean() + 2 * (mean * mean.log()).sum()
    torch.testing.assert_close(layer.eval()(z)[1].loss, commitment)
    torch.testing.assert_close(layer.train()(z)[1].loss, commitment + 0.5 * entropies)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_ids(kind: str) -> None:
    """Each slice of the channels has a token of its own, up to 24 bits, and ids come back as codes."""
    torch.manual_seed(0)
    layer = KINDS[kind](36, groups=2).train()
    z = torch.randn(2, 36, 3, 3, requires_grad=True)
    quantized, out = layer(z)
    assert layer.num_codes == 2**18 and layer.code_dim == 18 and out.q.shape == (2, 3, 3, 2)
    assert out.q.max() >= 2**17 and torch.equal(layer.lookup(out.q), quantized)
    single = KINDS[kind](18).train()(z[:, 18:])[0]
    assert torch.equal(single, quantized[:, 18:])
    out.loss.backward()
    assert z.grad is not None and z.grad.isfinite().all() and quantized.isfinite().all()
    value = 1.0 if kind == "lfq" else 18**-0.5
    torch.testing.assert_close(quantized.abs(), torch.full_like(quantized, value))
    torch.testing.assert_close(layer.unquantized(z.detach()).sign(), z.detach().sign())


def test_codes_are_listed_in_the_order_of_ids() -> None:
    """Up to 2^20 codes."""
    layer = LookupFreeQuant(3)
    assert layer.get_codebook().tolist()[:3] == [[-1, -1, -1], [1, -1, -1], [-1, 1, -1]]
    assert torch.equal(layer.lookup(torch.arange(8)[:, None]).moveaxis(1, -1), layer.get_codebook())
    with pytest.raises(ValueError, match="24 bits make 16,777,216 codes, too many to list: the limit is 1,048,576"):
        LookupFreeQuant(24).get_codebook()


@pytest.mark.parametrize("kind", KINDS)
def test_masked_vectors_take_no_part(kind: str) -> None:
    """Loss and gradient are those of the others alone."""
    torch.manual_seed(0)
    layer = KINDS[kind](8, dim=-1, groups=2).train()
    z, mask = torch.randn(3, 6, 8), torch.rand(3, 6) > 0.4
    padded = torch.where(mask[..., None], z, torch.nan).requires_grad_()
    alone = z[mask].requires_grad_()
    out, expected = layer(padded, mask)[1], layer(alone)[1]
    torch.testing.assert_close(out.loss, expected.loss)
    assert torch.equal(out.q[mask], expected.q) and (out.q[~mask] == -1).all()
    assert torch.equal(out.perplexity, expected.perplexity)
    gradients = torch.autograd.grad(out.loss, padded)[0], torch.autograd.grad(expected.loss, alone)[0]
    torch.testing.assert_close(gradients[0][mask], gradients[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"feature_size": 10, "num_codes": 1000},
            "num_codes must be 2 to the number .* 1000 .* make 1024",
        ),
        ({"feature_size": 10, "groups": 3}, "groups must divide feature_size, got 3 groups and 10 channels"),
        ({"feature_size": 25}, "feature_size must make at most 16,777,216 codes.*got 25 channels"),
        ({"feature_size": 8, "groups": 0}, "groups must be at least 1, got 0"),
        ({"feature_size": 8, "entropy_weight": -1.0}, "entropy_weight must be at least 0"),
        ({"feature_size": 8, "entropy_temperature": 0.0}, "entropy_temperature must be above 0, got 0.0"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    """Each error names the argument."""
    with pytest.raises(ValueError, match=message):
        LookupFreeQuant(**arguments)


def test_configurations() -> None:
    """The number of codes may be left out; what does not fit is named by the configuration's fields."""
    config = VQConfig(quantizer_type="bsq", embed_dim=36, num_groups=2, architecture="sqvae", image_size=16)
    assert config.num_codes == 2**18 and config.code_dim == 18
    model = VQModel(VQConfig(quantizer_type="lfq", embed_dim=8, architecture="sqvae", image_size=16, base_channels=8))
    assert model(torch.rand(1, 3, 16, 16)).image_tokens.shape == (1, 4, 4) and model.config.num_codes == 256
    with pytest.raises(StrictDataclassError, match="`embed_dim` must make at most .* got 64 channels"):
        VQConfig(quantizer_type="lfq", embed_dim=64)
    with pytest.raises(StrictDataclassError, match='`share_codebook=False` needs a codebook, and "lfq" has none'):
        VQConfig(quantizer_type="lfq", embed_dim=8, share_codebook=False)
    with pytest.raises(StrictDataclassError, match="`num_groups=2` needs `quantizer_type` among .*'bsq'.*got 'simvq'"):
        VQConfig(quantizer_type="simvq", embed_dim=8, num_groups=2)
