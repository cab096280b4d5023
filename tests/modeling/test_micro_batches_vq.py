"""Gradient accumulation: a codebook takes the micro batches of a step as one batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hf_vq import RECOMMENDED_QUANTIZER, GroupVectorQuant, ResidualVectorQuant, VectorQuant, micro_batch

FULL: dict[str, Any] = dict(sync_nu=0.5, replace_freq=2, kmeans_init=True, alternating_steps=2)
LAYERS = {
    "recommended": lambda: VectorQuant(8, 32, **{**RECOMMENDED_QUANTIZER, "replace_freq": 2}),
    "ema": lambda: VectorQuant(8, 32, codebook_update="ema", kmeans_init=True, replace_freq=2),
    "separate groups, sgd": lambda: GroupVectorQuant(8, 32, 2, False, norm="l2", alternating_kind="sgd", **FULL),
    "residual, running": lambda: ResidualVectorQuant(8, 32, 2, False, affine_mode="running", **FULL),
    "busy": lambda: VectorQuant(8, 32, replace_freq=1, replace_policy="busy"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_micro_batches_move_a_codebook_as_one_batch_does(name: str) -> None:
    """Codes, clocks, averages, ids and use of the codes are equal to the bit, over several steps with replacement."""
    torch.manual_seed(0)
    whole = LAYERS[name]().train()
    with torch.no_grad():
        whole(torch.randn(6, 8, 4, 4))  # initialized
    parts = copy.deepcopy(whole)
    for step in range(5):
        batch = torch.randn(6, 8, 4, 4) + step
        torch.manual_seed(step)
        expected = whole(batch)[1]
        torch.manual_seed(step)
        for number, part in enumerate((batch[:2], batch[2:4], batch[4:])):
            before = parts.get_codebook()
            with micro_batch(parts, number, 3):
                out = parts(part)[1]
            if number < 2:
                assert torch.equal(parts.get_codebook(), before)
                assert out.replaced is None
        torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(parts.training_state(), whole.training_state(), rtol=0, atol=0)
        assert torch.equal(out.q, expected.q[4:])
        assert out.usage == expected.usage and out.perplexity == expected.perplexity
        assert (out.replaced is None) == (expected.replaced is None)


def test_a_codebook_begins_with_the_vectors_of_the_whole_step() -> None:
    """The first micro batch reads codes of its own vectors, and the last one makes codes of all of them."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 16, kmeans_init=True).train()
    vectors = torch.randn(16, 4)
    for number in range(4):
        with micro_batch(layer, number, 4):
            z_q = layer(vectors[4 * number : 4 * number + 4])[0]
        assert bool(layer.codebook.initialized) == (number == 3)
        if number == 0:
            torch.testing.assert_close(z_q, vectors[:4])
    torch.testing.assert_close(layer.get_codebook().sort(0).values, vectors.sort(0).values)
    assert layer.codebook.num_forwards == 1


def test_a_step_that_was_broken_off_leaves_nothing_to_the_next() -> None:
    """Vectors of micro batches whose step never ended are forgotten; outside of the context all is as without it."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 8, codebook_update="ema").train()
    twin = copy.deepcopy(layer)
    batch = torch.randn(6, 4)
    with pytest.raises(KeyboardInterrupt), micro_batch(layer, 0, 2):
        layer(torch.full((3, 4), 100.0))
        raise KeyboardInterrupt
    for each in (layer, twin):
        each(batch)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"in \[0, 2\), got 2"), micro_batch(layer, 2, 2):
        pass
