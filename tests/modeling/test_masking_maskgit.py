"""Schedules and masks: values worked out by hand, exact counts, and random masks of the right share."""

import math

import pytest
import torch

from hf_vq import draw_mask
from hf_vq.modeling import mask_ratio
from hf_vq.modeling.masking_maskgit import MASK_SCHEDULES, draw_uniform, masked_counts

# 16 tokens, 4 steps: 16 times the schedule at 1/4, 1/2, 3/4 and 1, rounded down.
BY_HAND = {
    "arccos": (13, 10, 7, 0),  # 16 * (0.8391, 0.6667, 0.4601, 0) = 13.4, 10.7, 7.4, 0
    "cosine": (14, 11, 6, 0),  # 16 * (0.9239, 0.7071, 0.3827, 0) = 14.8, 11.3, 6.1, 0
    "linear": (12, 8, 4, 0),
    "square": (15, 12, 7, 0),  # 16 * (15/16, 3/4, 7/16, 0)
}


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_the_schedule_for_16_tokens_and_4_steps(schedule):
    """What is hidden after each step equals the table worked out by hand."""
    assert masked_counts(16, 4, schedule) == BY_HAND[schedule]


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_every_step_has_something_to_do(schedule):
    """Counts fall strictly to 0 for any number of tokens and steps, even with fewer tokens than steps."""
    for num_tokens in (0, 1, 2, 7, 10, 64, 257):
        for num_steps in (1, 2, 3, 8, 10, 64):
            counts = (num_tokens, *masked_counts(num_tokens, num_steps, schedule))
            assert len(counts) == num_steps + 1 and counts[-1] == 0
            assert all(after < before or before == 0 for before, after in zip(counts, counts[1:], strict=False))
            assert min(counts) >= 0


def test_rounding_does_not_lose_tokens():
    """10 linear steps reveal one of 10 tokens each, although 1 - 0.9 is less than 0.1 in floating point."""
    assert masked_counts(10, 10, "linear") == (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_ratios_fall_from_1_to_0(schedule):
    """Ratios are 1 and 0 at the ends, up to rounding, and never rise in between."""
    ratios = mask_ratio(torch.linspace(0, 1, 101), schedule)

    assert ratios[0] == 1 and abs(ratios[-1]) < 1e-6
    assert (ratios.diff() < 0).all()


def test_ratios_by_hand():
    """The four formulas have their values at one half."""
    half = torch.tensor(0.5)
    values = [mask_ratio(half, schedule).item() for schedule in MASK_SCHEDULES]

    assert values == pytest.approx([2 / 3, math.sqrt(0.5), 0.5, 0.75])


def test_exact_masks_hide_the_share_exactly():
    """Each image hides its own share, and at least one token."""
    ratio = torch.tensor([0.0, 0.25, 0.5, 1.0])
    mask = draw_mask((4, 8, 8), ratio, generator=torch.Generator().manual_seed(0))

    assert mask.shape == (4, 8, 8) and mask.dtype == torch.bool
    assert mask.flatten(1).sum(1).tolist() == [1, 16, 32, 64]


def test_exact_masks_favor_no_place():
    """Over many masks every token is hidden about as often as any other."""
    mask = draw_mask((4000, 4, 4), 0.25, generator=torch.Generator().manual_seed(0))

    assert (mask.float().mean(0) - 0.25).abs().max() < 0.03


def test_bernoulli_masks_hide_the_share_on_average():
    """Counts scatter like those of a binomial, and no image is without a hidden token."""
    mask = draw_mask((4000, 64), 0.25, "bernoulli", torch.Generator().manual_seed(0)).sum(1).float()

    assert mask.mean().item() == pytest.approx(16, abs=0.3)
    assert mask.var().item() == pytest.approx(12, abs=1.5)
    assert draw_mask((100, 64), 0.0, "bernoulli").sum(1).tolist() == [1] * 100


def test_masks_are_reproducible():
    """The same seed gives the same mask, another seed another mask."""
    masks = [draw_mask((2, 8, 8), 0.5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]

    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_unknown_names_are_refused():
    """A schedule or a count that does not exist is an error."""
    with pytest.raises(ValueError, match="no mask schedule 'root'.*arccos"):
        mask_ratio(torch.tensor(0.5), "root")
    with pytest.raises(ValueError, match='"exact" or "bernoulli", got \'poisson\''):
        draw_mask((1, 4), 0.5, "poisson")


def test_uniform_numbers_come_from_the_generator():
    """Numbers are drawn where the generator lives, on whichever device they are wanted."""
    drawn = draw_uniform((5,), torch.Generator().manual_seed(3), "cpu")

    assert torch.equal(drawn, torch.rand(5, generator=torch.Generator().manual_seed(3)))
