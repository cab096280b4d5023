"""docs/coming-from-vector-quantize-pytorch.md is true, row by row."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_vq import (
    FiniteScalarQuant,
    GroupVectorQuant,
    ProjectedQuant,
    ResidualVectorQuant,
    VectorQuant,
)
from hf_vq.convert import convert_vector_quantize_pytorch

from .pages import Page

vqp = pytest.importorskip("vector_quantize_pytorch")
PAGE = Page("coming-from-vector-quantize-pytorch.md")
LEARNED: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}


def converted(class_name: str = "VectorQuantize", settings: Any = None, **arguments: Any) -> tuple[Any, Any]:
    """Their layer, after two batches, and ours."""
    torch.manual_seed(0)
    if class_name != "FSQ":
        arguments = {"dim": 8, "codebook_size": 16} | arguments
    theirs = getattr(vqp, class_name)(**arguments)
    is_image = arguments.get("accept_image_fmap")
    for _ in range(2 if class_name != "FSQ" else 0):
        theirs(torch.randn(2, 8, 5, 5) if is_image else torch.randn(2, 25, 8))
    axis = -1 if class_name == "FSQ" else None
    ours = convert_vector_quantize_pytorch(class_name, theirs.state_dict(), axis=axis, settings=settings, **arguments)
    return theirs.eval(), ours.layer


def assert_same_ids(theirs: Any, ours: Any, z: torch.Tensor) -> None:
    index = theirs(z)[1]
    q = ours(z)[1].q
    assert torch.equal(q.squeeze(-1) if q.ndim > index.ndim else q, index)


@PAGE.row("`dim=256`")
def _size() -> None:
    theirs, ours = converted(dim=8)
    assert ours.feature_size == 8 and ours.dim == -1


@PAGE.row("`codebook_size=512`")
def _codes() -> None:
    assert converted()[1].num_codes == 16
    assert converted(heads=2, codebook_dim=4, separate_codebook_per_head=True)[1].num_codes == 2 * 16


@PAGE.row("`codebook_dim=16`")
def _projections() -> None:
    theirs, ours = converted(codebook_dim=3)
    by_hand = ProjectedQuant(VectorQuant(3, 16, dim=-1), nn.Linear(8, 3), nn.Linear(3, 8)).eval()
    assert {name for name in ours.state_dict()} == {name for name in by_hand.state_dict()}
    by_hand.load_state_dict(ours.state_dict())
    z = torch.randn(2, 7, 8)
    assert_same_ids(theirs, by_hand, z)
    torch.testing.assert_close(by_hand(z)[0], theirs(z)[0])


@PAGE.row("`heads=4`")
def _heads() -> None:
    theirs, ours = converted(heads=2, codebook_dim=4)
    assert isinstance(ours, GroupVectorQuant) and ours.groups == 2 and ours.share
    assert_same_ids(theirs, ours, torch.randn(2, 7, 8))
    assert isinstance(converted(heads=2)[1], ProjectedQuant)


@PAGE.row("`separate_codebook_per_head=True`")
def _separate() -> None:
    theirs, ours = converted(heads=2, codebook_dim=4, separate_codebook_per_head=True)
    z = torch.randn(2, 7, 8)
    assert not ours.share and torch.equal(ours(z)[1].q - torch.tensor([0, 16]), theirs(z)[1])


@PAGE.row("`channel_last=True`")
def _channel_last() -> None:
    assert converted(channel_last=True)[1].dim == -1 and VectorQuant(8, 16).dim == 1
    with pytest.raises(ValueError, match="Did you mean dim=-1"):
        VectorQuant(8, 16)(torch.randn(2, 7, 8))


@PAGE.row("`accept_image_fmap=True`")
def _images() -> None:
    theirs, ours = converted(accept_image_fmap=True)
    assert ours.dim == 1
    images = torch.randn(2, 8, 3, 5)
    assert_same_ids(theirs, ours, images)
    assert (ours(images, torch.zeros(2, 3, 5, dtype=torch.bool))[1].q == -1).all()
    with pytest.raises(AssertionError):
        theirs(images, mask=torch.zeros(2, 15, dtype=torch.bool))


@PAGE.row("`decay=0.8`")
def _averages() -> None:
    theirs, ours = converted(decay=0.9)
    assert ours.codebook.codebook_update == "ema" and ours.codebook.codebook_decay == 0.9
    assert converted()[1].codebook.codebook_decay == 0.8
    z = torch.randn(4, 100, 8)
    before = ours.get_codebook()
    quantized, index, _ = theirs.train()(z)
    z_q, out = ours.train()(z)
    torch.testing.assert_close(before[index], quantized)
    torch.testing.assert_close(ours.get_codebook()[out.q[..., 0]], z_q)
    torch.testing.assert_close(ours.get_codebook(), theirs.codebook, atol=1e-3, rtol=1e-3)  # theirs is smoothed


@PAGE.row("`learnable_codebook=True, ema_update=False`")
def _learned() -> None:
    ours = converted(**LEARNED)[1]
    assert ours.codebook.codebook_update == VectorQuant(8, 16).codebook.codebook_update == "gradient"
    assert ours.codebook.weight.requires_grad


@PAGE.row("`commitment_weight=1.0`")
def _commitment() -> None:
    z = torch.randn(2, 25, 8)
    cases: list[tuple[dict[str, Any], float, int]] = [({}, 0.0, 1), (LEARNED, 0.5, 2)]
    for arguments, beta, factor in cases:
        theirs, ours = converted(rotation_trick=False, commitment_weight=0.25, **arguments)
        assert ours.beta == beta
        for layer in (theirs.train(), ours.train()):
            x = z.clone().requires_grad_()
            quantized, second, *loss = layer(x)
            (loss[0] if loss else factor * 0.25 * second.loss).backward()
            torch.testing.assert_close(x.grad, 2 * 0.25 * (z - quantized.detach()) / z.numel())
    torch.testing.assert_close(ours.codebook.weight.grad, theirs._codebook.embed.grad[0])


@PAGE.row("`kmeans_init=True`")
def _kmeans() -> None:
    few = torch.randn(1, 10, 8)
    theirs = vqp.VectorQuantize(dim=8, codebook_size=16, kmeans_init=True).eval()
    ours = VectorQuant(8, 16, dim=-1, kmeans_init=True).eval()
    before = ours.get_codebook()
    theirs(few), ours(few)
    assert bool(theirs._codebook.initted) and torch.equal(ours.get_codebook(), before)
    ours.train()(few)
    assert not ours.codebook.initialized and len(ours.get_codebook().unique(dim=0)) == 16
    ours(few)
    assert ours.codebook.initialized


@PAGE.row("`use_cosine_sim=True`")
def _cosine() -> None:
    theirs, ours = converted(use_cosine_sim=True)
    by_hand = VectorQuant(8, 16, dim=-1, norm="l2", cb_norm="l2").eval()
    by_hand.load_state_dict(ours.state_dict())
    assert_same_ids(theirs, by_hand, torch.randn(2, 7, 8))
    with pytest.raises(AssertionError, match="not compatible with learnable"):
        vqp.VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=True, **LEARNED)


@PAGE.row("`threshold_ema_dead_code=2`")
def _replacement() -> None:
    layer = VectorQuant(2, 4, dim=-1, replace_freq=2)
    nn.init.constant_(layer.codebook.weight[3], 100)
    replaced = [layer(torch.randn(50, 2))[1].replaced for _ in range(3)]
    assert replaced[0] is replaced[1] is None and replaced[2].tolist() == [False, False, False, True]
    assert converted(threshold_ema_dead_code=2, settings={"replace_freq": 20})[1].codebook.replace_freq == 20


@PAGE.row("`rotation_trick=True`")
def _rotation() -> None:
    assert converted()[1].gradient_estimator == "rotation" and VectorQuant(8, 16).gradient_estimator == "ste"
    assert converted(rotation_trick=False)[1].gradient_estimator == "ste"


@PAGE.row("`sync_update_v=0.2`")
def _synchronized() -> None:
    theirs, ours = converted(rotation_trick=False, commitment_weight=0.0, sync_update_v=0.2, **LEARNED)
    z = torch.randn(2, 25, 8, requires_grad=True)
    theirs.train()(z)[0].sum().backward()
    assert (
        theirs._codebook.embed.grad is None and z.grad is not None and z.grad.unique().tolist() == pytest.approx([1.2])
    )
    layer = VectorQuant(8, 16, dim=-1, sync_nu=0.2)
    z = torch.randn(2, 25, 8, requires_grad=True)
    layer(z)[0].sum().backward()
    assert z.grad is not None and layer.codebook.weight.grad is not None
    assert z.grad.unique().tolist() == [1.0] and layer.codebook.weight.grad.sum() == pytest.approx(0.2 * 50 * 8)


@PAGE.row("`affine_param=True`")
def _affine() -> None:
    layer = VectorQuant(8, 16, dim=-1, affine_mode="running")
    for _ in range(3):
        layer(3 * torch.randn(2, 25, 8) + 5)
    before = {name: value.clone() for name, value in layer.eval().state_dict().items()}
    z_q, out = layer(torch.randn(2, 25, 8))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(layer.lookup(out.q), z_q)
    with pytest.raises(ValueError, match="affine_param"):
        converted(affine_param=True)


@PAGE.row("`in_place_codebook_optimizer=...`")
def _inner_steps() -> None:
    make: dict[str, Any] = {
        "alternating_steps": 1,
        "alternating_kind": "sgd",
        "affine_lr": 1.0,
        "sync_nu": 0.2,
        "replace_freq": 2,
    }
    layer = VectorQuant(8, 16, dim=-1, **make)
    before = layer.get_codebook()
    layer(torch.randn(2, 25, 8))
    assert not torch.equal(layer.get_codebook(), before) and layer.training_state()["momentum"].any()


@PAGE.row("`freeze_codebook=True`", "`vq(x, freeze_codebook=True)`")
def _freezing() -> None:
    ours = converted(freeze_codebook=True)[1].train()
    before = ours.get_codebook()
    ours(torch.randn(2, 25, 8))
    assert torch.equal(ours.get_codebook(), before)
    ours.requires_grad_(True).eval()(torch.randn(2, 25, 8))
    assert torch.equal(ours.get_codebook(), before)
    ours.train()(torch.randn(2, 25, 8))
    assert not torch.equal(ours.get_codebook(), before)


NOTED: dict[str, dict[str, Any]] = {
    "`stochastic_sample_codes=True`": {"stochastic_sample_codes": True},
    "`straight_through=True`": {"straight_through": True, "rotation_trick": False},
    "`orthogonal_reg_weight=1.0`": {"orthogonal_reg_weight": 1.0},
    "`codebook_diversity_loss_weight=1.0`": {"codebook_diversity_loss_weight": 1.0},
    "`commitment_use_cross_entropy_loss=True`": {"commitment_use_cross_entropy_loss": True},
    "`directional_reparam=True`": {"directional_reparam": True, "threshold_ema_dead_code": 2},
    "`quantize_dropout_cutoff_index=1`": {"quantize_dropout": True, "quantize_dropout_cutoff_index": 1},
}


@PAGE.row(*NOTED)
def _without_counterpart(name: str) -> None:
    """The conversion says so, and gives the same ids all the same."""
    argument = name.strip("`").split("=")[0]
    class_name = "ResidualVQ" if "dropout" in name else "VectorQuantize"
    arguments: dict[str, Any] = {"dim": 8, "codebook_size": 16, **NOTED[name]}
    if class_name == "ResidualVQ":
        arguments |= {"num_quantizers": 2, "shared_codebook": True}
    theirs = getattr(vqp, class_name)(**arguments).eval()
    conversion = convert_vector_quantize_pytorch(class_name, theirs.state_dict(), **arguments)
    assert any(note.startswith(f"`{argument}=") and "no counterpart" in note for note in conversion.notes)
    assert_same_ids(theirs, conversion.layer, torch.randn(2, 7, 8))
    with pytest.raises(TypeError):
        VectorQuant(8, 16, **{argument: True})  # type: ignore[arg-type]


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "`vq_bridge=...`": ("VectorQuantize", {"vq_bridge": nn.Identity()}),
    "`implicit_neural_codebook=True`": ("ResidualVQ", {"implicit_neural_codebook": True}),
    "`beam_size=2`": ("ResidualVQ", {"beam_size": 2}),
    "`preserve_symmetry=True`": ("FSQ", {"preserve_symmetry": True}),
    "`num_codebooks=2`": ("FSQ", {"num_codebooks": 2}),
}


@PAGE.row(*REFUSED)
def _refused(name: str) -> None:
    class_name, arguments = REFUSED[name]
    given: dict[str, Any] = {"dim": 8, "codebook_size": 16, "num_quantizers": 2}
    if class_name == "FSQ":
        given = {"levels": [3, 3]}
    if class_name == "VectorQuantize":
        del given["num_quantizers"]
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=.*cannot be converted"):
        convert_vector_quantize_pytorch(class_name, {}, axis=-1, **given, **arguments)


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


@PAGE.row("`sync_codebook=True`", "`kmeans_iters=10`")
def _without_argument(name: str) -> None:
    """Taken by the conversion and not by our layers; tests/modeling/test_distributed_vq.py runs two processes."""
    argument, value = name.strip("`").split("=")
    state = vqp.VectorQuantize(dim=8, codebook_size=16).state_dict()
    given: dict[str, Any] = {argument: eval(value)}
    assert convert_vector_quantize_pytorch("VectorQuantize", state, dim=8, codebook_size=16, **given).layer
    with pytest.raises(TypeError):
        VectorQuant(8, 16, **given)


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


def test_every_row_has_a_case() -> None:
    """Or says why not."""
    PAGE.assert_complete()
    assert len(PAGE.rows) > 40


@pytest.mark.parametrize("name", list(PAGE.cases))
def test_row(name: str) -> None:
    """What a row says holds for the installed library and for ours."""
    PAGE.cases[name]()


@pytest.mark.parametrize("block", PAGE.code(), ids=range(len(PAGE.code())))
def test_code(block: str) -> None:
    """Each `print(...)  # text` prints that text."""
    PAGE.assert_prints(block)


def test_ours_are_arguments_of_our_layers() -> None:
    """What stands in the second column is taken by the layers, as it stands there."""
    for name, (ours, *_) in PAGE.rows.items():
        code = ours.strip("`")
        if "=" in code and "(" not in code and "nothing" not in code and ":" not in code:
            given = eval(f"dict({code})")
            make: Any = ResidualVectorQuant if {"share", "quantizer_dropout"} & set(given) else VectorQuant
            groups = {"groups": 2} if make is ResidualVectorQuant else {}
            defaults = {} if {"feature_size", "num_codes"} & set(given) else {"feature_size": 8, "num_codes": 16}
            if "feature_size" in given or "num_codes" in given:
                defaults = {"feature_size": 8, "num_codes": 16} | given
                given = {}
            assert make(**defaults, **given, **groups), name
