"""Inner steps of the codebook, and codes that are moving averages."""

import pytest
import torch

from hf_vq import VectorQuant
from hf_vq.modeling.codebook_vq import Codebook

from .test_codebook_vq import set_affine


def test_sgd_step_is_the_references_inplace_step():
    """Two steps with lr 50 and momentum 0.9 equal torch's SGD on mean((z_q - sg z)^2), assignments kept."""
    torch.manual_seed(0)
    steps = dict(alternating_steps=1, alternating_kind="sgd", alternating_lr=50.0)
    layer = VectorQuant(4, 8, beta=1.0, dim=-1, affine_lr=2.0, **steps).double().train()
    weight = layer.codebook.weight.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=50.0, momentum=0.9)
    for _ in range(2):
        z = torch.randn(30, 4, dtype=torch.double)
        out = layer(z)[1]
        (weight[out.q.squeeze(-1)] - z).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(layer.codebook.weight.detach(), weight.detach())
    assert layer.codebook.affine_scale.grad is None  # the inner step leaves no gradients behind


def test_the_output_is_read_from_the_updated_codes():
    """The task step sees the codes after the inner step."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 8, alternating_steps=1, alternating_kind="centroid", alternating_lr=1.0, dim=-1).train()
    before = layer.get_codebook()
    z = torch.randn(30, 4)
    z_q, out = layer(z)
    index = out.q.squeeze(-1)
    assert torch.equal(z_q, layer.get_codebook()[index])
    assert not torch.equal(z_q, before[index])
    means = torch.stack([z[index == k].mean(0) for k in index.unique()])
    torch.testing.assert_close(layer.get_codebook()[index.unique()], means)


@pytest.mark.parametrize("affine", [{}, dict(affine_lr=2.0)])
def test_centroid_step_moves_effective_codes_a_fraction_of_the_way(affine):
    """Used codes move 0.3 of the way to the mean of their vectors, unused ones stay."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 16, alternating_steps=1, alternating_kind="centroid", dim=-1, **affine).double().train()
    if affine:
        set_affine(layer)
    before = layer.get_codebook()
    z = torch.randn(30, 4, dtype=torch.double)
    index = layer(z)[1].q.squeeze(-1)
    expected = before.clone()
    for k in index.unique():
        expected[k] += 0.3 * (z[index == k].mean(0) - before[k])

    torch.testing.assert_close(layer.get_codebook(), expected)
    assert len(index.unique()) < 16


def test_several_inner_steps_assign_anew_and_lower_the_error():
    """Eight full centroid steps on one batch are Lloyd's algorithm: the error falls below that of one."""
    z = torch.randn(1000, 4, generator=torch.Generator().manual_seed(1))

    def error(steps: int) -> float:
        torch.manual_seed(0)
        layer = VectorQuant(4, 32, alternating_steps=steps, alternating_lr=1.0, dim=-1).train()
        layer(z)
        return layer.eval()(z)[1].d.square().mean().item()

    assert error(8) < 0.97 * error(1)


def test_ema_codes_are_ratios_of_moving_averages():
    """After n batches a code is the decayed sum of its vectors over their decayed count; no bias of the start."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 4, codebook_update="ema", codebook_decay=0.9, dim=-1).train()
    count, total = torch.zeros(4), torch.zeros(4, 4)
    for _ in range(3):
        z = torch.randn(50, 4)
        index = layer(z)[1].q.squeeze(-1)
        batch_count = torch.bincount(index, minlength=4).float()
        count = 0.9 * count + 0.1 * batch_count
        total = 0.9 * total + 0.1 * torch.zeros(4, 4).index_add(0, index, z)
    used = count > 0

    torch.testing.assert_close(layer.get_codebook()[used], (total / count[:, None])[used])
    assert not layer.codebook.weight.requires_grad


def test_rewritten_codes_start_with_a_clean_slate():
    """Momentum, moving averages and clocks of a rewritten code forget its past."""
    for kwargs in (dict(alternating_steps=1, alternating_kind="sgd"), dict(codebook_update="ema")):
        book = Codebook(8, 4, **kwargs)
        for name in book.training_state():
            getattr(book, name).fill_(7.0)
        book.unused_steps.fill_(7)
        rows = torch.arange(8) < 3
        new = torch.randn(8, 4)
        book.rewrite(new, rows)

        assert book.unused_steps.tolist() == [0] * 3 + [7] * 5
        if book.momentum is not None:
            assert (book.momentum[:3] == 0).all() and (book.momentum[3:] == 7).all()
        else:
            assert torch.equal(book.ema_sum[:3] / book.ema_count[:3, None], new[:3])
            assert (book.ema_sum[3:] == 7).all()


def test_training_only_state_is_not_published():
    """Momentum, moving averages and samples are in `training_state()`, not in `state_dict()`."""
    book = Codebook(8, 4, kmeans_init=True, alternating_steps=1, alternating_kind="sgd", replace_freq=2)

    assert set(book.training_state()) == {"momentum", "samples", "num_samples"}
    assert set(book.state_dict()) == {"weight", "unused_steps", "num_forwards", "initialized"}


def test_a_reloaded_ema_codebook_goes_on_from_its_codes():
    """Published weights hold no averages; training on from them moves the codes little, not to the batch's means."""
    torch.manual_seed(0)
    z = torch.randn(500, 4)
    layer = VectorQuant(4, 32, codebook_update="ema", kmeans_init=True, dim=-1).train()
    for _ in range(20):
        layer(z)
    reloaded = VectorQuant(4, 32, codebook_update="ema", kmeans_init=True, dim=-1).train()
    reloaded.load_state_dict(layer.state_dict())
    before = layer.get_codebook()
    other = z + 0.5
    layer(other)
    reloaded(other)
    live, again = ((each.get_codebook() - before).norm() for each in (layer, reloaded))

    assert live > 0
    assert again < 0.3 * (before - before.roll(1, 0)).norm()
    assert again < 20 * live
