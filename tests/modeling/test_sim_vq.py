"""Codes behind a learned map: the same as another library's, trained, masked, and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_vq import SimVectorQuant, VQConfig, VQModel


@pytest.mark.parametrize("rotation", [True, False])
def test_another_library_agrees(rotation: bool) -> None:
    """Ids, output, loss and all gradients are those of vector-quantize-pytorch."""
    vqp = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    theirs = vqp.SimVQ(dim=6, codebook_size=40, rotation_trick=rotation)
    ours = SimVectorQuant(6, 40, dim=-1, gradient_estimator="rotation" if rotation else "ste").train()
    with torch.no_grad():
        ours.codebook.frozen_codes.copy_(theirs.frozen_codebook)
        ours.codebook.map.copy_(theirs.code_transform.weight.T)
    z, direction = torch.randn(2, 30, 6), torch.randn(2, 30, 6)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized, out = ours(x)
    their_quantized, their_ids, their_loss = theirs(y)
    ((quantized * direction).sum() + out.loss).backward()
    ((their_quantized * direction).sum() + their_loss).backward()
    assert torch.equal(out.q[..., 0], their_ids) and len(their_ids.unique()) > 10
    torch.testing.assert_close(quantized, their_quantized)
    torch.testing.assert_close(out.loss, their_loss)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.codebook.map.grad, theirs.code_transform.weight.grad.T)


def test_a_step_moves_all_codes() -> None:
    """The map is the only parameter, and a used code moves the unused ones."""
    torch.manual_seed(0)
    layer = SimVectorQuant(4, 32).train()
    assert [name for name, _ in layer.named_parameters()] == ["codebook.map"]
    before, optimizer = layer.get_codebook(), torch.optim.SGD(layer.parameters(), lr=0.1)
    _, out = layer(torch.randn(1, 4, 1, 1))
    out.loss.backward()
    optimizer.step()
    assert ((layer.get_codebook() - before).abs().sum(1) > 0).all()


def test_masked_vectors_take_no_part() -> None:
    """Loss and gradients are those of the others alone."""
    torch.manual_seed(0)
    layer = SimVectorQuant(4, 32, dim=-1).train()
    z, mask = torch.randn(3, 6, 4), torch.rand(3, 6) > 0.4
    padded = torch.where(mask[..., None], z, torch.nan)
    out, expected = layer(padded, mask)[1], layer(z[mask])[1]
    torch.testing.assert_close(out.loss, expected.loss)
    gradients = [torch.autograd.grad(each.loss, layer.codebook.map)[0] for each in (out, expected)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(out.q[mask], expected.q) and (out.q[~mask] == -1).all()


def test_codes_and_map_are_saved(tmp_path: Path) -> None:
    """Both, and the codes are no parameter."""
    model: Any = VQModel(
        VQConfig(
            quantizer_type="simvq", embed_dim=4, num_codes=32, architecture="sqvae", image_size=16, base_channels=8
        )
    )
    model.save_pretrained(tmp_path)
    again: Any = VQModel.from_pretrained(tmp_path)
    assert torch.equal(again.quantize.codebook.frozen_codes, model.quantize.codebook.frozen_codes)
    assert torch.equal(again.quantize.codebook.map, model.quantize.codebook.map)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.encode(x).image_tokens, model.eval().encode(x).image_tokens)


def test_estimators_without_a_loss_of_the_codes_are_refused() -> None:
    """The error names what fits."""
    with pytest.raises(ValueError, match="gradient_estimator must be 'ste' or 'rotation' .*got 'diveq'"):
        SimVectorQuant(4, 32, gradient_estimator="diveq")
