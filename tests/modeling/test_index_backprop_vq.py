"""Index backpropagation: its formulas, masks and memory."""

from __future__ import annotations

import torch

from hf_vq import IndexBackpropQuant
from hf_vq.modeling import index_backprop_vq


def reference(z: torch.Tensor, codes: torch.Tensor, temperature: float, entropy: float) -> tuple[torch.Tensor, ...]:
    """Output, ids and loss, written out with one-hot rows."""
    logits = z @ codes.T
    p = logits.softmax(1)
    hard = torch.nn.functional.one_hot(logits.argmax(1), len(codes)).to(z.dtype)
    quantized = (hard + p - p.detach()) @ codes
    z_q = hard @ codes
    loss = (quantized - z).square().mean() + (z_q.detach() - z).square().mean()
    loss = loss + 0.25 * (z_q - z.detach()).square().mean()
    soft = (logits / temperature).softmax(1)
    mean = soft.mean(0)
    loss = loss + entropy * (-(soft * soft.log()).sum(1).mean() + (mean * mean.log()).sum())
    return quantized, logits.argmax(1), loss


def test_the_formulas_of_the_paper() -> None:
    """Ids, loss, and the gradients of vectors and of all codes."""
    torch.manual_seed(0)
    layer = IndexBackpropQuant(4, 24, dim=-1, entropy_temperature=0.5, entropy_weight=0.2).double().train()
    z, direction = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    x = z.clone().requires_grad_()
    quantized, out = layer(x)
    ((quantized * direction).sum() + out.loss).backward()

    y, codes = z.clone().requires_grad_(), layer.codebook.weight.detach().clone().requires_grad_()
    expected, ids, loss = reference(y, codes, 0.5, 0.2)
    ((expected * direction).sum() + loss).backward()
    assert torch.equal(out.q[:, 0], ids) and len(ids.unique()) > 5
    assert torch.equal(quantized, layer.lookup(out.q))
    torch.testing.assert_close(quantized, expected)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(x.grad, y.grad)
    assert layer.codebook.weight.grad is not None and (layer.codebook.weight.grad.abs().sum(1) > 0).all()
    torch.testing.assert_close(layer.codebook.weight.grad, codes.grad)


def test_evaluation_has_no_entropies_and_bounded_memory(monkeypatch) -> None:
    """The ids do not depend on how many products there are at once."""
    torch.manual_seed(0)
    layer = IndexBackpropQuant(4, 24, dim=-1, entropy_weight=0.2).eval()
    z = torch.randn(30, 4)
    with torch.no_grad():
        _, out = layer(z)
        monkeypatch.setattr(index_backprop_vq, "_SCORES", 48)
        _, few = layer(z)
    layer.entropy_loss.weight = 0.0
    assert torch.equal(out.q, few.q)
    torch.testing.assert_close(layer.train()(z)[1].loss, out.loss)


def test_masked_vectors_take_no_part() -> None:
    """Loss and gradients are those of the others alone."""
    torch.manual_seed(0)
    layer = IndexBackpropQuant(4, 24, dim=-1, entropy_temperature=0.5).train()
    z, mask = torch.randn(3, 6, 4), torch.rand(3, 6) > 0.4
    padded = torch.where(mask[..., None], z, torch.nan)
    out, expected = layer(padded, mask)[1], layer(z[mask])[1]
    torch.testing.assert_close(out.loss, expected.loss)
    gradients = [torch.autograd.grad(each.loss, layer.codebook.weight)[0] for each in (out, expected)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(out.q[mask], expected.q) and (out.q[~mask] == -1).all()
