"""The quantizer layers: what they refuse."""

import pytest
import torch

from hf_vq import GroupVectorQuant, VectorQuant
from hf_vq.modeling.residual_vq import ResidualVectorQuant


def test_norms():
    """Unit norm and clipped norm hold for inputs and for effective codes."""
    torch.manual_seed(0)
    z = 30 * torch.randn(100, 8)
    unit, clip = VectorQuant(8, 32, norm="l2", cb_norm="l2"), VectorQuant(8, 32, norm="clip", cb_norm="clip")
    with torch.no_grad():
        clip.codebook.weight.mul_(30)
    torch.testing.assert_close(unit(z)[1].z.norm(dim=-1), torch.ones(100, 1))
    torch.testing.assert_close(unit.get_codebook().norm(dim=-1), torch.ones(32))
    assert clip(z)[1].z.norm(dim=-1).amax() <= 10.0001 and clip.get_codebook().norm(dim=-1).amax() <= 10.0001
    small = torch.full((1, 8), 0.1)
    torch.testing.assert_close(clip(small)[1].z.squeeze(1), small)
    for norm in ("bn", "gn", "in"):
        x = VectorQuant(8, 32, norm=norm)(z.view(4, 25, 8).transpose(1, 2))[1].z.squeeze(-2)
        assert abs(x.mean()) < 1e-4 and abs(x.var(correction=0) - 1) < 1e-2


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(beta=1.5), "beta must be in"),
        (dict(beta=-0.1), "beta must be in"),
        (dict(affine_lr=1.0, affine_groups=5), "must divide the 32 codes"),
        (dict(norm="l2c"), "'clip' for a norm"),
        (dict(cb_norm="l2c"), "'l2' for unit norm"),
        (dict(cb_norm="bn"), "cb_norm must be one of"),
        (dict(norm="unit"), "norm must be one of"),
        (dict(inplace_optimizer=torch.optim.SGD), "alternating_steps"),
        (dict(codebook_update="ema", sync_nu=0.1), "receive no gradient"),
        (dict(codebook_update="ema", alternating_steps=1), "already moves"),
        (dict(affine_mode="running", affine_groups=2), "whole codebook"),
        (dict(alternating_kind="newton"), "alternating_kind must be one of"),
        (dict(replace_policy="oldest"), "replace_policy must be one of"),
        (dict(replace_freq=-1), "must not be negative"),
        (dict(codebook_decay=1.0), "codebook_decay must be in"),
    ],
)
def test_arguments_that_make_no_sense_raise_and_say_why(kwargs, words):
    """Each error names the argument, or the way out."""
    with pytest.raises(ValueError, match=words):
        VectorQuant(8, 32, **kwargs)


def test_group_arguments_are_checked():
    """Codes and features must split evenly, levels of a shared residual codebook have no common moments."""
    with pytest.raises(ValueError, match="divisible by the 3 separate codebooks"):
        GroupVectorQuant(9, 32, groups=3, share=False)
    with pytest.raises(ValueError, match="must divide feature_size"):
        GroupVectorQuant(8, 32, groups=3)
    with pytest.raises(ValueError, match="share=False"):
        ResidualVectorQuant(8, 32, groups=2, affine_mode="running")
    with pytest.raises(ValueError, match="number of levels"):
        ResidualVectorQuant(8, 2, groups=4)


def test_bad_input_is_named():
    """Wrong sizes and dtypes of inputs and ids raise with what was expected."""
    layer = VectorQuant(8, 32)
    with pytest.raises(ValueError, match="feature_size=8 along dim=1"):
        layer(torch.randn(4, 7, 5))
    with pytest.raises(ValueError, match="floating point"):
        layer(torch.ones(4, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[0, 32\), got 0 to 32"):
        layer.lookup(torch.tensor([[0], [32]]))
    with pytest.raises(ValueError, match="got -1"):
        layer.lookup(torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="integer ids"):
        layer.lookup(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 1\)"):
        layer.lookup(torch.zeros(2, 3, dtype=torch.long))


def test_lookup_takes_small_integer_types():
    """Tokens as stored (uint8, int16, uint16) need no cast by the caller."""
    layer = VectorQuant(8, 32)
    ids = torch.randint(32, (3, 5, 1))
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(layer.lookup(ids.to(dtype)), layer.lookup(ids))
