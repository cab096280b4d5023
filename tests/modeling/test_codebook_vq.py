"""The codebook: affine maps and their inverse, initialization, replacement, clocks."""

import pytest
import torch

from hf_vq import GroupVectorQuant, VectorQuant
from hf_vq.modeling.residual_vq import ResidualVectorQuant


def set_affine(layer: VectorQuant, seed: int = 0) -> None:
    """A map that is far from the identity, also in its first feature's sign."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (layer.codebook.affine_scale, layer.codebook.affine_bias):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        layer.codebook.affine_scale[:, 0] = -2


def test_learned_affine_map():
    """Effective code = (1 + k s) raw + k b, with s and b of the code's group."""
    layer = VectorQuant(4, 6, affine_lr=3.0, affine_groups=2)
    set_affine(layer)
    book = layer.codebook
    scale = (1 + 3 * book.affine_scale).repeat_interleave(3, 0)
    bias = 3 * book.affine_bias.repeat_interleave(3, 0)

    torch.testing.assert_close(layer.get_codebook(), scale * book.weight + bias)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("layer_class", [GroupVectorQuant, ResidualVectorQuant])
def test_separate_codebooks_have_maps_of_their_own(layer_class, share):
    """One map per group or level where codebooks are separate, one in all where they are shared."""
    layer = layer_class(8, 32, groups=2, share=share, affine_lr=1.0)
    assert layer.codebook.affine_scale.shape[0] == (1 if share else 2)
    if not share:
        before = layer.get_codebook()
        with torch.no_grad():
            layer.codebook.affine_bias[1] += 1
        moved = (layer.get_codebook() - before).abs().amax(1) > 0
        assert moved.tolist() == [False] * 16 + [True] * 16


def test_running_affine_matches_the_moments():
    """After the first batch the effective codes have the vectors' mean and biased variance; then momentum 0.1."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 64, affine_mode="running", dim=-1)
    first, second = 5 + 3 * torch.randn(500, 4), -2 + torch.randn(500, 4)
    layer.train()(first)
    codes = layer.get_codebook()
    torch.testing.assert_close(codes.mean(0), first.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codes.var(0, correction=0), first.var(0, correction=0), rtol=1e-4, atol=1e-4)

    layer(second)
    torch.testing.assert_close(layer.codebook.running_z_mean[0], 0.9 * first.mean(0) + 0.1 * second.mean(0))


@pytest.mark.parametrize("cb_norm", [None, "l2", "clip"])
@pytest.mark.parametrize("mode", ["learned", "running"])
def test_rewriting_goes_through_the_inverse_of_the_map(cb_norm, mode):
    """What is written as an effective code is read back as it, and the other codes stay."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 8, affine_lr=2.0 if mode == "learned" else 0.0, affine_mode=mode, cb_norm=cb_norm).double()
    if mode == "learned":
        set_affine(layer)
    else:
        layer.train()(3 + 2 * torch.randn(100, 4, dtype=torch.double))
    before = layer.get_codebook()
    new = torch.randn(8, 4, dtype=torch.double)
    rows = torch.arange(8) % 2 == 0

    layer.codebook.rewrite(new, rows)

    expected = torch.nn.functional.normalize(new, dim=-1) if cb_norm == "l2" else new
    torch.testing.assert_close(layer.get_codebook()[rows], expected[rows])
    assert torch.equal(layer.get_codebook()[~rows], before[~rows])


def test_a_scale_of_zero_keeps_raw_codes_finite():
    """Writing through a collapsed map gives no infinite raw code."""
    layer = VectorQuant(4, 8, affine_lr=1.0)
    with torch.no_grad():
        layer.codebook.affine_scale.fill_(-1.0)
    layer.codebook.rewrite(torch.randn(8, 4), torch.ones(8, dtype=torch.bool))

    assert layer.codebook.weight.isfinite().all() and layer.codebook.weight.abs().max() < 1e6


@pytest.mark.parametrize("affine", [{}, dict(affine_lr=2.0), dict(affine_mode="running")])
def test_kmeans_initializes_before_the_first_codes_are_read(affine):
    """The first training batch is already quantized with fitted codes, effective ones, also under an affine map."""
    torch.manual_seed(0)
    layer = VectorQuant(8, 64, kmeans_init=True, dim=-1, **affine)
    if "affine_lr" in affine:
        set_affine(layer)
    centers = 50 + 10 * torch.randn(64, 8)
    z = centers.repeat(20, 1) + 0.01 * torch.randn(64 * 20, 8)

    out = layer.train()(z)[1]

    assert out.d.max() < 0.2
    assert out.usage == 1 and out.replaced.all()
    assert layer.codebook.initialized
    assert layer(z)[1].replaced is None


def test_eval_before_training_does_not_initialize():
    """An untrained layer in eval stays untrained."""
    layer = VectorQuant(8, 64, kmeans_init=True).eval()
    layer(torch.randn(100, 8))

    assert not layer.codebook.initialized


def test_too_few_vectors_are_collected_until_there_are_enough():
    """With 24 vectors a batch and 64 codes, three batches are collected; meanwhile the vectors seen are the codes."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 64, kmeans_init=True, dim=-1).train()
    batches = [torch.randn(24, 4) + 10 * i for i in range(3)]
    for i, batch in enumerate(batches):
        assert not layer.codebook.initialized
        assert layer.codebook.samples.shape == (64, 4)  # the store does not grow
        out = layer(batch)[1]
        assert len(layer.get_codebook().unique(dim=0)) == 64
        if i < 2:
            torch.testing.assert_close(out.d, torch.zeros(24, 1), rtol=0, atol=1e-5)
    assert layer.codebook.initialized
    assert all(torch.cdist(batch, layer.get_codebook()).amin(1).mean() < 1 for batch in batches)


def test_collected_samples_survive_a_checkpoint():
    """Interrupted while collecting, training goes on with what had been collected."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 64, kmeans_init=True, dim=-1).train()
    layer(torch.randn(40, 4) + 100)
    resumed = VectorQuant(4, 64, kmeans_init=True, dim=-1).train()
    resumed.load_state_dict(layer.state_dict())
    resumed.load_training_state(layer.training_state())
    resumed(torch.randn(40, 4))

    assert resumed.codebook.initialized
    assert (resumed.get_codebook().mean(1) > 50).sum() > 20
    with pytest.raises(KeyError, match="this codebook needs"):
        VectorQuant(4, 64).load_training_state(layer.training_state())


@pytest.mark.parametrize("share", [True, False])
def test_residual_levels_are_initialized_on_their_residuals(share):
    """Each level's codes have the scale of what it quantizes, so the error falls from level to level."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(4, 128, groups=2, share=share, kmeans_init=True, dim=-1).train()
    out = layer(torch.randn(2000, 4))[1]
    codes = layer.get_codebook().norm(dim=1)

    assert codes[64:].mean() < 0.7 * codes[:64].mean()
    assert out.d[:, 1].mean() < 0.6 * out.d[:, 0].mean()


def dead_layer(**kwargs) -> VectorQuant:
    """Codes 4 to 7 are far away from any vector."""
    layer = VectorQuant(4, 8, dim=-1, replace_freq=3, **kwargs).train()
    codes = torch.eye(4).repeat(2, 1)
    codes[4:] += 1000
    layer.codebook.rewrite(codes, torch.ones(8, dtype=torch.bool))
    return layer


@pytest.mark.parametrize("policy", ["input", "kmeans", "busy"])
@pytest.mark.parametrize("affine", [{}, dict(affine_lr=2.0)])
def test_codes_unused_for_replace_freq_batches_become_vectors_in_use(policy, affine):
    """At the start of the fourth forward, not sooner, dead codes move next to the batch, as effective codes."""
    torch.manual_seed(0)
    layer = dead_layer(replace_policy=policy, **affine)
    if affine:
        codes = layer.get_codebook()
        set_affine(layer)
        layer.codebook.rewrite(codes, torch.ones(8, dtype=torch.bool))
    z = torch.eye(4).repeat(10, 1) + 0.01 * torch.randn(40, 4)
    for _ in range(3):
        assert layer(z)[1].replaced is None
    assert layer.codebook.unused_steps.tolist() == [0] * 4 + [3] * 4

    out = layer(z)[1]

    assert out.replaced.tolist() == [False] * 4 + [True] * 4
    new = layer.get_codebook()[4:]
    assert torch.cdist(new, torch.eye(4)).amin(1).max() < 0.6
    assert len(layer.get_codebook().unique(dim=0)) == 8
    assert (layer.codebook.unused_steps[4:] <= 1).all()


def test_codes_are_not_replaced_in_eval():
    """Eval neither counts nor replaces."""
    layer = dead_layer().eval()
    for _ in range(10):
        layer(torch.eye(4))

    assert layer.codebook.unused_steps.sum() == 0


def test_more_dead_codes_than_vectors_replaces_as_many_as_there_are():
    """Each vector is used once, the codes left over wait for the next batch."""
    torch.manual_seed(0)
    layer = dead_layer()
    for _ in range(3):
        layer(torch.eye(4)[:2])
    assert layer(torch.eye(4)[:2])[1].replaced.sum() == 2
    assert layer(torch.eye(4)[:2])[1].replaced.sum() == 2


def test_residual_replacement_inserts_the_levels_own_residuals():
    """A dead code of the second level becomes small like the residuals, not like z."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(4, 64, groups=2, share=False, kmeans_init=True, replace_freq=1, dim=-1).train()
    z = 100 * torch.randn(500, 4)
    layer(z)
    codes = layer.get_codebook()
    codes[40:] = 1e5
    layer.codebook.rewrite(codes, torch.arange(64) >= 40)
    layer.codebook.unused_steps[40:] = 5
    layer(z)
    residual_scale = layer(z)[1].d[:, 0].max()

    assert layer.get_codebook()[40:].norm(dim=1).max() < 1.2 * residual_scale
    assert layer.get_codebook()[:32].norm(dim=1).mean() > 1.5 * layer.get_codebook()[32:].norm(dim=1).mean()


def test_separate_groups_draw_replacements_from_their_own_vectors():
    """Group 1's dead codes become vectors of group 1."""
    torch.manual_seed(0)
    layer = GroupVectorQuant(8, 16, groups=2, share=False, replace_freq=1, dim=-1).train()
    z = torch.cat([torch.randn(100, 4), 100 + torch.randn(100, 4)], 1)
    layer(z)
    layer(z)

    assert (layer.get_codebook()[:8].mean(1).abs() < 20).all()
    assert (layer.get_codebook()[8:].mean(1) > 50).sum() >= 7


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(alternating_steps=1, alternating_kind="sgd"),
        dict(alternating_steps=1, alternating_kind="centroid"),
        dict(codebook_update="ema"),
        dict(affine_mode="running"),
        dict(replace_freq=1, replace_policy="input"),
        dict(replace_freq=1, replace_policy="kmeans"),
        dict(kmeans_init=True),
    ],
    ids=str,
)
def test_a_vector_that_is_not_finite_spoils_no_code(kwargs):
    """A NaN or infinite vector leaves every code and statistic finite; the loss tells of it."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 64, dim=-1, **kwargs).train()
    for value in (torch.nan, torch.inf):
        z = torch.randn(100, 4)
        z[3] = value
        for _ in range(3):
            out = layer(z)[1]
        assert not out.loss.isfinite()
        for tensor in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
            assert tensor.isfinite().all()


def test_residual_levels_share_what_small_batches_collect():
    """Collected over several batches, the second level is fitted to residuals, not to the zeros met meanwhile."""
    torch.manual_seed(0)
    layer = ResidualVectorQuant(4, 128, groups=2, share=False, kmeans_init=True, dim=-1).train()
    for _ in range(8):
        assert not layer.codebook.initialized
        layer(torch.randn(16, 4))
    assert layer.codebook.initialized
    fitted = layer.get_codebook()[64:].norm(dim=1)

    torch.manual_seed(0)
    layer = ResidualVectorQuant(4, 128, groups=2, share=False, kmeans_init=True, dim=-1).train()
    layer(torch.randn(128, 4))
    at_once = layer.get_codebook()[64:].norm(dim=1)
    assert (fitted < 0.05).double().mean() <= (at_once < 0.05).double().mean() + 0.1
    assert (fitted < 0.05).double().mean() < 0.5
