"""The mathematics of drawing tokens: Halton order, probabilities, draws, noise, guidance."""

import math

import pytest
import torch

from hf_vq.modeling.sampling_maskgit import (
    draw_tokens,
    guidance_scales,
    gumbel,
    halton_order,
    halton_ranks,
    sampling_probabilities,
)


def test_the_halton_order_of_16_x_16_starts_as_published():
    """The first points have the published (row, column)."""
    cells = [divmod(cell, 16) for cell in halton_order(16, 16)[:6]]

    assert cells == [(8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3)]


@pytest.mark.parametrize("height, width", [(64, 64), (16, 16), (1, 1), (1, 5), (9, 27), (8, 24), (27, 8)])
def test_the_halton_order_covers_the_grid(height, width):
    """Every cell comes once, also on 64 x 64 cells, where the first 10,000 points leave out six."""
    assert sorted(halton_order(height, width)) == list(range(height * width))


def test_halton_points_on_a_border_are_not_rounded_down():
    """phi_3(1) = 1/3 and phi_3(2) = 2/3 lie on the borders of 27 columns: columns 9 and 18, whatever rounding does."""
    assert [cell % 27 for cell in halton_order(1, 27)[:5]] == [9, 18, 3, 12, 21]


def test_the_halton_order_spreads():
    """The first quarter of the order has four cells in each quarter of each quarter. Rows in sequence would not."""
    counts = torch.zeros(4, 4)
    for cell in halton_order(16, 16)[:64]:
        counts[cell // 16 // 4, cell % 16 // 4] += 1

    assert counts.min() >= 3 and counts.max() <= 5


def test_hidden_tokens_take_turns_in_halton_order():
    """Known tokens have no turn, and the second group comes after all of the first."""
    mask = torch.ones(2, 4, 4, 2, dtype=torch.bool)
    mask[1, :, :2] = False
    turns = halton_ranks(mask)
    order = [turns[0, ..., group].flatten().argsort().tolist() for group in range(2)]

    assert order == [list(halton_order(4, 4))] * 2
    assert turns[0, ..., 0].max() == 15 and turns[0, ..., 1].min() == 16
    assert sorted(turns[1][mask[1]].tolist()) == list(range(16)) and turns[1][~mask[1]].min() == 16


def test_temperature_divides_logits():
    """A temperature below 1 sharpens the distribution."""
    logits = torch.tensor([0.0, 1.0, 3.0])

    assert torch.allclose(sampling_probabilities(logits, 0.5), (2 * logits).softmax(-1))
    assert sampling_probabilities(logits, 0.5).max() > sampling_probabilities(logits, 2.0).max()


def test_top_k_and_top_p_keep_the_likeliest():
    """Of the probabilities .5, .3, .15 and .05, those cut away are 0, and the rest sums to 1."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()

    assert torch.allclose(sampling_probabilities(logits, top_k=2), torch.tensor([0, 0.625, 0, 0.375]))
    assert torch.allclose(sampling_probabilities(logits, top_p=0.7), torch.tensor([0, 0.625, 0, 0.375]))
    assert torch.allclose(sampling_probabilities(logits, top_p=0.81), torch.tensor([0.15, 0.5, 0, 0.3]) / 0.95)
    assert torch.equal(sampling_probabilities(logits, top_p=1e-6), torch.tensor([0.0, 1, 0, 0]))
    assert torch.equal(sampling_probabilities(logits, top_k=1), torch.tensor([0.0, 1, 0, 0]))
    assert torch.equal(sampling_probabilities(logits, top_k=9), sampling_probabilities(logits))


def test_draws_follow_the_probabilities():
    """100,000 draws have the frequencies of the probabilities."""
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    counts = draw_tokens(probabilities.expand(100_000, -1), uniform).bincount(minlength=4)

    assert torch.allclose(counts / 100_000, probabilities, atol=0.006)
    assert counts[1] == 0


def test_impossible_codes_are_never_drawn():
    """Codes of probability 0 are not drawn, even at both ends of the random numbers."""
    edges = torch.tensor([0.0, 1 - 2**-24])
    for total in torch.linspace(0.9, 1.1, 1001).tolist():
        probabilities = torch.tensor([0.0, 0.5, total - 0.5, 0.0])
        assert draw_tokens(probabilities.expand(2, -1), edges).tolist() == [1, 2]


def test_gumbel_noise():
    """The noise has the mean and variance of the distribution, and is finite at both ends."""
    noise = gumbel(torch.rand(100_000, generator=torch.Generator().manual_seed(0)))

    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert gumbel(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


def test_guidance_schedules_by_hand():
    """In 4 steps, scale 5 gives 1 + 4 f(step / 4), and scale 1 always gives 1."""
    scale = torch.tensor([5.0, 1.0])

    assert guidance_scales(scale, 4)[:, 0].tolist() == [5, 5, 5, 5]
    assert guidance_scales(scale, 4, "linear")[:, 0].tolist() == [1, 2, 3, 4]
    cosine = [1 + 2 * (1 - math.cos(math.pi * (step / 4) ** 3)) for step in range(4)]
    assert guidance_scales(scale, 4, "power_cosine", 3.0)[:, 0].tolist() == pytest.approx(cosine)
    for schedule in ("constant", "linear", "power_cosine"):
        assert guidance_scales(scale, 4, schedule)[:, 1].tolist() == [1, 1, 1, 1]


def test_wrong_guidance_is_refused():
    """An unknown schedule is an error."""
    with pytest.raises(ValueError, match="`guidance_schedule` must be .* got 'cosine'"):
        guidance_scales(torch.ones(1), 4, "cosine")
