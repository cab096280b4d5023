"""What the page for those who come from vector-quantize-pytorch says of arguments of `VectorQuantize`."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_vq import GroupVectorQuant, ProjectedQuant, VectorQuant
from hf_vq.convert import convert_vector_quantize_pytorch

from .vqp_page import LEARNED, PAGE, assert_same_ids, converted, vqp


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
