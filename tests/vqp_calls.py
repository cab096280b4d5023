"""What the page for those who come from vector-quantize-pytorch says of its other layers, calls and results."""

import inspect
from typing import Any

import pytest
import torch

from hf_vq import (
    BinarySphericalQuant,
    FiniteScalarQuant,
    LookupFreeQuant,
    ResidualVectorQuant,
    SimVectorQuant,
    VectorQuant,
)
from hf_vq.convert import convert_vector_quantize_pytorch
from hf_vq.modeling.kmeans_vq import kmeans

from .vqp_page import PAGE, assert_same_ids, converted, vqp


@PAGE.row("`num_quantizers=8`")
def _levels() -> None:
    theirs, ours = converted("ResidualVQ", num_quantizers=3)
    assert isinstance(ours, ResidualVectorQuant) and ours.groups == 3 and ours.num_codes == 3 * 16 and not ours.share
    z = torch.randn(2, 7, 8)
    assert torch.equal(ours(z)[1].q - 16 * torch.arange(3), theirs(z)[1])


@PAGE.row("`shared_codebook=True`")
def _shared() -> None:
    theirs, ours = converted("ResidualVQ", num_quantizers=2, shared_codebook=True)
    assert ours.share
    assert_same_ids(theirs, ours, torch.randn(2, 7, 8))
    layer = ResidualVectorQuant(4, 32, groups=2, dim=-1, kmeans_init=True)
    z = torch.randn(500, 4)
    layer(z)
    sizes = layer.get_codebook().norm(dim=-1)
    assert sizes[:16].mean() > 1.5 * sizes[16:].mean()  # the second share stands for what the first leaves over


@PAGE.row("`quantize_dropout=True`")
def _dropout() -> None:
    ours = converted("ResidualVQ", num_quantizers=3, quantize_dropout=True)[1]
    assert ours.quantizer_dropout == 1.0
    seen = {int((ours.train()(torch.randn(2, 7, 8))[1].q[0, 0] >= 0).sum()) for _ in range(40)}
    assert seen == {1, 2, 3}


@PAGE.row("`levels=[8, 5, 5, 5]`")
def _fsq() -> None:
    theirs = vqp.FSQ(levels=[8, 5, 5, 5]).eval()
    z = torch.randn(2, 7, 4)
    assert_same_ids(theirs, FiniteScalarQuant(levels=[8, 5, 5, 5], dim=-1), z)
    images = torch.randn(2, 4, 3, 3)
    assert_same_ids(theirs, FiniteScalarQuant(levels=[8, 5, 5, 5], dim=1), images)
    assert_same_ids(theirs, converted("FSQ", levels=[8, 5, 5, 5])[1], z)


@PAGE.row("`directional_reparam=True`")
def _diveq() -> None:
    """tests/modeling/test_gradient_vq.py compares noise and gradients."""
    theirs, ours = converted(directional_reparam=True, threshold_ema_dead_code=2)
    assert ours.gradient_estimator == "diveq" and ours.beta == 0.5 and ours.codebook.codebook_update == "gradient"
    z = torch.randn(2, 7, 8)
    assert torch.equal(ours(z)[1].q[..., 0], theirs(z)[1]) and torch.equal(ours(z)[0], ours.lookup(ours(z)[1].q))


@PAGE.row("`LFQ(dim=10)`", "`LFQ(dim=10, spherical=True)`", "`num_codebooks=2` of `LFQ`")
def _binary(name: str) -> None:
    """tests/modeling/test_lookup_free_vq.py compares losses and gradients."""
    spherical, groups = "spherical" in name, 2 if "num_codebooks" in name else 1
    theirs = vqp.LFQ(codebook_size=2**10, num_codebooks=groups, dim=10 * groups, spherical=spherical).eval()
    kind = BinarySphericalQuant if spherical else LookupFreeQuant
    z = torch.randn(2, 7, 10 * groups)
    quantized, ids, _ = theirs(z)
    z_q, out = kind(10 * groups, dim=-1, groups=groups).eval()(z)
    places = torch.arange(10)
    mirrored = ((out.q[..., None] >> places & 1) << places.flip(0)).sum(-1)
    torch.testing.assert_close(z_q, quantized)
    assert torch.equal(mirrored if groups == 2 else mirrored[..., 0], ids)


@PAGE.row("`SimVQ(dim=6, codebook_size=40)`")
def _sim_vq() -> None:
    """tests/modeling/test_sim_vq.py compares losses and gradients."""
    theirs, ours = vqp.SimVQ(dim=6, codebook_size=40), SimVectorQuant(6, 40, dim=-1, gradient_estimator="rotation")
    with torch.no_grad():
        ours.codebook.frozen_codes.copy_(theirs.frozen_codebook)
        ours.codebook.map.copy_(theirs.code_transform.weight.T)
    z = torch.randn(2, 7, 6)
    assert torch.equal(ours(z)[1].q[..., 0], theirs(z)[1])


@PAGE.row("`sync_codebook=True`")
def _without_argument(name: str) -> None:
    """Taken by the conversion and not by our layers; tests/modeling/test_distributed_vq.py runs two processes."""
    argument, value = name.strip("`").split("=")
    state = vqp.VectorQuantize(dim=8, codebook_size=16).state_dict()
    given: dict[str, Any] = {argument: eval(value)}
    assert convert_vector_quantize_pytorch("VectorQuantize", state, dim=8, codebook_size=16, **given).layer
    with pytest.raises(TypeError):
        VectorQuant(8, 16, **given)


@PAGE.row("`kmeans_iters=10`")
def _steps_of_kmeans() -> None:
    _without_argument("`kmeans_iters=10`")
    steps: list[int] = []

    def noted(*arguments: Any, **named: Any) -> torch.Tensor:
        bound = inspect.signature(kmeans).bind(*arguments, **named)
        bound.apply_defaults()
        steps.append(bound.arguments["num_iterations"])
        return kmeans(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_vq.modeling.codebook_updates_vq.kmeans", noted)
        VectorQuant(8, 16, dim=-1, kmeans_init=True)(torch.randn(50, 8))
    assert steps == [10]


@PAGE.row("`quantized, indices, loss = vq(x)`", "`indices`")
def _outputs() -> None:
    theirs, ours = converted()
    z = torch.randn(2, 7, 8)
    z_q, out = ours(z)
    quantized, index, _ = theirs(z)
    torch.testing.assert_close(z_q, quantized)
    assert out.q.dtype == torch.long and out.q.shape == (*index.shape, 1)
    torch.testing.assert_close(out.d[..., 0], (z - z_q).norm(dim=-1))
    assert out.perplexity > 1 and 0 < out.usage <= 1 and out.replaced is None


@PAGE.row("`loss` of `ResidualVQ`, one for each level")
def _residual_loss() -> None:
    theirs, ours = converted("ResidualVQ", num_quantizers=3)
    z = torch.randn(2, 7, 8)
    z_q, out = ours(z)
    assert theirs(z)[2].shape == (3,) and out.loss.ndim == 0
    torch.testing.assert_close(out.loss, (z - z_q).square().mean())


@PAGE.row("`vq(x, mask=mask)`", "`vq(x, lens=lens)`")
def _masks() -> None:
    theirs, ours = converted()
    z, lens = torch.randn(2, 7, 8), torch.tensor([7, 3])
    mask = torch.arange(z.shape[1]) < lens[:, None]
    z_q, out = ours(z, mask=mask)
    for given in ({"mask": mask}, {"lens": lens}):
        quantized, index, _ = theirs(z, **given)
        assert torch.equal(out.q.squeeze(-1), index) and (index[~mask] == -1).all()
        torch.testing.assert_close(z_q, quantized)
        assert (quantized[~mask] == 0).all()
    theirs.train()(z, mask=mask), ours.train()(z, mask=mask)
    torch.testing.assert_close(ours.get_codebook(), theirs.codebook, atol=2e-2, rtol=1e-2)


@PAGE.row("`vq.get_output_from_indices(indices)`")
def _lookup() -> None:
    theirs, ours = converted(codebook_dim=3)
    z = torch.randn(2, 7, 8)
    z_q, out = ours(z)
    torch.testing.assert_close(ours.lookup(out.q), theirs.get_output_from_indices(theirs(z)[1]))
    layer = converted()[1]
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    z_q, out = layer(z, mask)
    assert torch.equal(layer.lookup(out.q[mask]), z_q[mask])
    for wrong in (out.q, torch.tensor([[16]])):
        with pytest.raises(ValueError, match=r"ids must be in \[0, 16\)"):
            layer.lookup(wrong)


@PAGE.row("`rvq.get_output_from_indices(indices[..., :2])`", "`rvq.get_codes_from_indices(indices)`")
def _first_levels() -> None:
    theirs, ours = converted("ResidualVQ", num_quantizers=3, quantize_dropout=True)
    z = torch.randn(2, 7, 8)
    index, q = theirs(z)[1], ours(z)[1].q
    torch.testing.assert_close(ours.lookup(q[..., :2]), theirs.get_output_from_indices(index[..., :2]))
    torch.testing.assert_close(ours.get_codebook()[q].movedim(-2, 0), theirs.get_codes_from_indices(index))
    without, layer = converted("ResidualVQ", num_quantizers=3)
    with pytest.raises(AssertionError, match="quantize dropout"):
        without.get_output_from_indices(index[..., :2])
    assert layer.lookup(q[..., :2]).shape == z.shape


@PAGE.row("`vq.codebook`")
def _codebook() -> None:
    theirs, ours = converted(use_cosine_sim=True)
    torch.testing.assert_close(ours.get_codebook(), theirs.codebook)
    ours.get_codebook().zero_()
    assert ours.get_codebook().any()


@PAGE.row("`vq(x, indices=targets)`", "`vq(x, topk=4)`")
def _calls_without_counterpart(name: str) -> None:
    argument = name.split(", ")[1].split("=")[0]
    with pytest.raises(TypeError):
        converted()[1](torch.randn(2, 7, 8), **{argument: 4})
