"""Residual layers whose first levels alone are a coarser description: lookup of them, and quantizer dropout."""

import copy
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_vq import (
    RECOMMENDED_QUANTIZER,
    GroupVectorQuant,
    ResidualVectorQuant,
    VQConfig,
    VQModel,
)

EMA: dict[str, Any] = dict(codebook_update="ema", replace_freq=3, replace_policy="busy")


def levels_used(q: torch.Tensor) -> int:
    """How many levels these ids have; those left out are the last ones of every vector."""
    used = (q >= 0).flatten(0, -2)
    assert (used == used[:1]).all() and (used[0].long().diff() <= 0).all()
    return int(used[0].sum())


@pytest.mark.parametrize("share", [True, False])
def test_the_first_levels_can_be_looked_up(share: bool) -> None:
    """Fewer ids give the sum of the first codes; groups need all of theirs."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(8, 32, groups=4, share=share).eval()
    z = torch.randn(2, 8, 5)
    q = layer(z)[1].q
    codes = layer.get_codebook()

    for levels in (1, 2, 4):
        expected = codes[q[..., :levels]].sum(-2).movedim(-1, 1)
        torch.testing.assert_close(layer.lookup(q[..., :levels]), expected)

    for kind, words in ((layer, r"\(\.\.\., 1 to 4\), got \(2, 5, 5\)"), (GroupVectorQuant(8, 32, 4), "4")):
        with pytest.raises(ValueError, match=words):
            kind.lookup(torch.zeros(2, 5, 5 if kind is layer else 3, dtype=torch.long))


def test_models_decode_the_first_levels() -> None:
    """`decode` takes tokens with fewer levels, and says which numbers of levels fit."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"architecture": "sqvae", "image_size": 8, "base_channels": 8, "embed_dim": 4}
    model = VQModel(VQConfig(**sizes, num_codes=16, quantizer_type="residual", num_groups=3, kmeans_init=False)).eval()
    tokens = model.encode(torch.rand(2, 3, 8, 8)).image_tokens

    coarse = model.decode(tokens[..., :2]).decoded_pixel_values

    expected = model.decode(quantized_states=model.quantize.lookup(tokens[..., :2])).decoded_pixel_values
    assert torch.equal(coarse, expected) and not torch.equal(coarse, model.decode(tokens).decoded_pixel_values)
    with pytest.raises(ValueError, match=r"\(batch, height, width, 1 to 3\) for 3 groups"):
        model.decode(torch.zeros(2, 2, 2, 4, dtype=torch.long))


@pytest.mark.parametrize("share", [True, False])
def test_training_uses_a_random_number_of_first_levels(share: bool) -> None:
    """All numbers of levels occur about equally often; the output is the sum of the codes in use."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(8, 32, 4, share, quantizer_dropout=1.0)
    seen = []
    for _ in range(80):
        z_q, out = layer(torch.randn(2, 8, 5))
        levels = levels_used(out.q)
        seen.append(levels)
        assert torch.equal(z_q, layer.lookup(out.q[..., :levels]))
        assert torch.equal(out.d[..., levels:], out.d[..., levels - 1 : levels].expand(2, 5, 4 - levels))
        torch.testing.assert_close(out.loss, (out.z - out.z_q).square().mean())
        counts = torch.bincount(out.q[out.q >= 0], minlength=32)
        assert out.usage == (counts > 0).float().mean()
    assert min(seen.count(levels) for levels in (1, 2, 3, 4)) >= 10
    assert levels_used(layer.eval()(torch.randn(2, 8, 5))[1].q) == 4
    assert levels_used(layer.train().freeze()(torch.randn(2, 8, 5))[1].q) == 4

    sometimes = ResidualVectorQuant(8, 32, 4, share, quantizer_dropout=0.4)
    full = [levels_used(sometimes(torch.randn(2, 8, 5))[1].q) == 4 for _ in range(80)]
    assert 40 < sum(full) < 72  # 0.6 + 0.4 / 4 of the batches


def test_without_dropout_nothing_is_drawn() -> None:
    """A layer without it takes no random number and keeps its bits."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(8, 32, 4, alternating_steps=1)
    before = torch.get_rng_state()
    layer(torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kwargs", [EMA, dict(alternating_steps=1, replace_freq=3)], ids=["ema", "alternating"])
def test_levels_left_out_are_neither_moved_nor_counted_as_unused(kwargs: dict[str, Any]) -> None:
    """Their codes, averages, clocks and last counts stay; otherwise many batches without a level would replace it."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(8, 32, 4, False, quantizer_dropout=1.0, **kwargs)
    z = torch.randn(4, 8, 9)
    for _ in range(40):
        before = {**copy.deepcopy(layer.state_dict()), **layer.training_state()}
        out = layer(z)[1]
        kept = torch.arange(32) >= 8 * levels_used(out.q)
        if out.replaced is not None:
            kept &= ~out.replaced
        after = {**layer.state_dict(), **layer.training_state()}
        for name, value in after.items():
            if value.shape[:1] == (32,):
                assert torch.equal(value[kept], before[name][kept]), name
    used = layer.eval()(z)[1].q.unique()
    assert len(used) >= 24


def test_the_first_levels_become_better_alone() -> None:
    """With dropout the first of four levels has a lower error without the others, and each level lowers it."""
    errors = {}
    for dropout in (0.0, 1.0):
        torch.manual_seed(0)
        layer = ResidualVectorQuant(4, 16, 4, False, quantizer_dropout=dropout, dim=-1)
        optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
        for _ in range(300):
            loss = layer(torch.randn(256, 4))[1].loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        z = torch.randn(2000, 4)
        q = layer.eval()(z)[1].q
        errors[dropout] = [(layer.lookup(q[:, :n]) - z).square().mean().item() for n in (1, 2, 3, 4)]
    assert errors[1.0][0] < 0.95 * errors[0.0][0] and errors[1.0][1] < errors[0.0][1]
    assert errors[1.0] == sorted(errors[1.0], reverse=True)


@pytest.mark.parametrize("dropout", [-0.1, 1.5])
def test_values_out_of_range_are_told(dropout: float) -> None:
    """By the layer and by the configuration, which also says to what it belongs."""
    with pytest.raises(ValueError, match=r"quantizer_dropout must be in \[0, 1\].*got"):
        ResidualVectorQuant(8, 32, 4, quantizer_dropout=dropout)
    with pytest.raises(StrictDataclassClassValidationError, match=r"`quantizer_dropout` must be in \[0, 1\].*got"):
        VQConfig(quantizer_type="residual", num_groups=4, quantizer_dropout=dropout)


def test_dropout_belongs_to_several_levels_of_a_residual_quantizer() -> None:
    """Elsewhere it is an error; the configuration hands it to the layer and to the card."""
    with pytest.raises(
        StrictDataclassClassValidationError,
        match='`quantizer_dropout=0.5` needs `quantizer_type="residual"`, got "vector"',
    ):
        VQConfig(quantizer_dropout=0.5)
    with pytest.raises(
        StrictDataclassClassValidationError,
        match="`quantizer_dropout=0.5` needs more than one level, got `num_groups=1`",
    ):
        VQConfig(quantizer_type="residual", quantizer_dropout=0.5)
    config = VQConfig(quantizer_type="residual", num_groups=4, quantizer_dropout=0.5)
    assert VQConfig(**config.to_diff_dict()).quantizer_kwargs()["quantizer_dropout"] == 0.5
    assert "quantizer dropout 0.5" in ResidualVectorQuant.card_words(config)


def test_masks_and_dropout_go_together() -> None:
    """Ids are -1 for both reasons, and codes move as for the vectors alone."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(8, 32, 4, False, quantizer_dropout=1.0, dim=-1, **RECOMMENDED_QUANTIZER)
    alone = copy.deepcopy(layer)
    for step in range(6):
        z = torch.randn(3, 7, 8)
        mask = torch.rand(3, 7) > 0.4
        torch.manual_seed(step)
        out = layer(z, mask)[1]
        torch.manual_seed(step)
        expected = alone(z[mask])[1]
        assert torch.equal(out.q[mask], expected.q) and (out.q[~mask] == -1).all()
        torch.testing.assert_close(out.loss, expected.loss)
    assert torch.equal(layer.codebook.weight, alone.codebook.weight)


class Autoencoder(nn.Module):
    """A layer between two convolutions; returns the loss."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.layer = ResidualVectorQuant(8, 32, 4, False, quantizer_dropout=1.0, **RECOMMENDED_QUANTIZER)
        self.encoder, self.decoder = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.checkpointed = checkpointed

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        z = self.encoder(pixels)
        z_q, out = checkpoint(self.layer, z, use_reentrant=False) if self.checkpointed else self.layer(z)
        return (self.decoder(z_q) - pixels).square().mean() + out.loss


@pytest.mark.compiles
@pytest.mark.parametrize("how", ["compiled", "recomputed"])
def test_compiling_and_recomputation_change_nothing(how: str) -> None:
    """The same levels are left out, and each batch moves the codes once."""

    def run(changed: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = Autoencoder(checkpointed=changed and how == "recomputed")
        torch._dynamo.reset()
        step = torch.compile(model, backend="aot_eager") if changed and how == "compiled" else model
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses = []
        for _ in range(6):
            loss = step(torch.rand(4, 3, 8, 8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model.state_dict()

    (losses, changed), (expected, plain) = run(True), run(False)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-5)
