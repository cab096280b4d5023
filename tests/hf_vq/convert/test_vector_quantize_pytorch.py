"""Layers of vector-quantize-pytorch give the same ids and vectors after conversion, and train on."""

from typing import Any

import pytest
import torch

from hf_vq import GroupVectorQuant, ProjectedQuant, VectorQuant, get_vq_layers
from hf_vq.convert import convert_vector_quantize_pytorch

vqp = pytest.importorskip("vector_quantize_pytorch")

LEARNED: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}
VECTOR: dict[str, dict[str, Any]] = {
    "ema": {},
    "learnable": LEARNED,
    "cosine": {"use_cosine_sim": True},
    "small codes": {"codebook_dim": 3},
    "small cosine codes": {"codebook_dim": 3, "use_cosine_sim": True},
    "small codes behind a layer norm": {"codebook_dim": 3, "layernorm_after_project_in": True},
    "heads": {"heads": 2, "codebook_dim": 4},
    "heads of their own": {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
    "projected heads": {"heads": 4, "codebook_dim": 3, "use_cosine_sim": True},
    "projected heads of their own": {"heads": 3, "separate_codebook_per_head": True, **LEARNED},
    "one head of its own": {"separate_codebook_per_head": True},
    "k-means": {"kmeans_init": True, "threshold_ema_dead_code": 2},
    "images": {"accept_image_fmap": True},
    "channels first": {"channel_last": False, "codebook_dim": 3},
    "orthogonal": {"orthogonal_reg_weight": 1.0},
}
RESIDUAL: dict[str, dict[str, Any]] = {
    "levels": {},
    "one codebook": {"shared_codebook": True},
    "learnable": LEARNED,
    "cosine": {"use_cosine_sim": True},
    "one cosine codebook": {"use_cosine_sim": True, "shared_codebook": True},
    "small codes": {"codebook_dim": 3, "kmeans_init": True},
    "dropout": {"quantize_dropout": True},
    "sizes": {"codebook_size": (16, 16, 16)},
}
FSQ: dict[str, dict[str, Any]] = {
    "bare": {"levels": [8, 5, 5]},
    "projected": {"levels": [8, 6, 5], "dim": 8},
    "without bias": {"levels": (4, 4), "dim": 8, "projection_has_bias": False},
    "channels first": {"levels": [8, 5, 5], "channel_first": True},
}


def inputs(arguments: dict[str, Any], size: int) -> torch.Tensor:
    z = torch.randn(3, 5, 6, size)
    if arguments.get("accept_image_fmap"):
        return z.movedim(-1, 1)
    z = z.flatten(1, 2)
    is_first = arguments.get("channel_last") is False or arguments.get("channel_first")
    return z.movedim(-1, 1) if is_first else z


def local_ids(q: torch.Tensor, offset: int) -> torch.Tensor:
    """Their ids: each codebook counts from 0, and a single group has no axis of its own."""
    return (q - offset * torch.arange(q.shape[-1])).squeeze(-1)


def assert_same(theirs: Any, ours: Any, z: torch.Tensor, offset: int = 0) -> None:
    """Ids, quantized vectors and lookups."""
    with torch.no_grad():
        expected, index, *_ = theirs.eval()(z)
        z_q, out = ours(z)
    assert torch.equal(local_ids(out.q, offset), index)
    torch.testing.assert_close(z_q, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.lookup(out.q), expected, rtol=1e-5, atol=1e-6)
    assert len(index.unique()) > 4


@pytest.mark.parametrize("name", VECTOR)
def test_vector_quantize_becomes_a_layer_with_the_same_ids(name: str) -> None:
    """Also after training, with heads, projections and any layout; `prefix` finds it inside a model."""
    torch.manual_seed(0)
    arguments = {"dim": 8, "codebook_size": 32, **VECTOR[name]}
    theirs = vqp.VectorQuantize(**arguments)
    for _ in range(5):
        theirs(inputs(arguments, 8))
    state = {f"model.vq.{key}": value for key, value in theirs.state_dict().items()} | {"model.weight": torch.ones(1)}

    ours = convert_vector_quantize_pytorch("VectorQuantize", state, prefix="model.vq.", **arguments).layer

    offset = 32 if arguments.get("separate_codebook_per_head") and arguments.get("heads", 1) > 1 else 0
    assert_same(theirs, ours, inputs(arguments, 8), offset)
    assert isinstance(ours, ProjectedQuant) == theirs.has_projections
    assert not ours.training and len(get_vq_layers(ours)) == 1


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_vq_becomes_a_layer_with_the_same_ids(name: str) -> None:
    """With one codebook or one for each level, and cosine search of every residual."""
    torch.manual_seed(0)
    arguments = {"dim": 8, "codebook_size": 16, "num_quantizers": 3, **RESIDUAL[name]}
    theirs = vqp.ResidualVQ(**arguments)
    for _ in range(5):
        theirs(inputs(arguments, 8))

    ours = convert_vector_quantize_pytorch("ResidualVQ", theirs.state_dict(), **arguments).layer

    assert_same(theirs, ours, inputs(arguments, 8), 0 if arguments.get("shared_codebook") else 16)
    layer = ours.quantizer if isinstance(ours, ProjectedQuant) else ours
    assert layer.quantizer_dropout == float(arguments.get("quantize_dropout", False))


def test_residual_layers_of_images() -> None:
    """Version 1.32 fails at images in ResidualVQ; ours takes them, and gives the ids of their vectors."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}
    theirs = vqp.ResidualVQ(**arguments).eval()
    images = torch.randn(2, 8, 5, 6)
    ours = convert_vector_quantize_pytorch(
        "ResidualVQ", theirs.state_dict(), accept_image_fmap=True, **arguments
    ).layer
    index = theirs(images.flatten(2).transpose(1, 2))[1]
    assert torch.equal(local_ids(ours(images)[1].q, 16).flatten(1, 2), index)


@pytest.mark.parametrize("name", FSQ)
@pytest.mark.parametrize("images", [False, True])
def test_fsq_becomes_a_layer_with_the_same_ids(name: str, images: bool) -> None:
    """Of sequences and images, which FSQ tells apart by their number of axes."""
    torch.manual_seed(0)
    arguments = FSQ[name]
    theirs = vqp.FSQ(**arguments)
    size = arguments.get("dim", len(arguments["levels"]))
    z = 2 * (torch.randn(2, size, 5, 6) if images else inputs(arguments, size))
    axis: dict[str, Any] = {} if arguments.get("channel_first") else {"axis": 1 if images else -1}

    ours = convert_vector_quantize_pytorch("FSQ", theirs.state_dict(), **axis, **arguments).layer

    assert_same(theirs, ours, z)


@pytest.mark.parametrize("arguments", [{}, {"use_cosine_sim": True}, {"codebook_dim": 3}], ids=str)
def test_an_ema_codebook_goes_on_as_theirs(arguments: dict[str, Any]) -> None:
    """Moving averages are taken over: after three more batches the codes are still the same."""
    torch.manual_seed(0)
    arguments = {"dim": 8, "codebook_size": 16, "decay": 0.9, **arguments}
    theirs = vqp.VectorQuantize(**arguments)
    for _ in range(20):
        theirs(torch.randn(8, 30, 8))
    ours = convert_vector_quantize_pytorch("VectorQuantize", theirs.state_dict(), **arguments).layer
    layer = ours.quantizer if isinstance(ours, ProjectedQuant) else ours
    before = layer.get_codebook()
    theirs.train(), ours.train()
    for _ in range(3):
        z = torch.randn(8, 30, 8, requires_grad=True)
        expected, _, their_loss = theirs(z)
        z_q, out = ours(z)
    torch.testing.assert_close(layer.get_codebook(), theirs.codebook, rtol=1e-3, atol=1e-3)
    assert (layer.get_codebook() - before).abs().max() > 0.02


@pytest.mark.parametrize("learned", [False, True])
def test_loss_and_gradients_are_theirs_with_the_weight_of_the_note(learned: bool) -> None:
    """`alpha * out.loss` has the gradients of their commitment loss; so does the rotation trick, their default."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"dim": 8, "codebook_size": 16, "commitment_weight": 0.25}
    arguments |= LEARNED if learned else {"decay": 1.0}
    theirs = vqp.VectorQuantize(**arguments)
    converted = convert_vector_quantize_pytorch(
        "VectorQuantize", theirs.state_dict(), settings={} if learned else {"codebook_decay": 0.999999}, **arguments
    )
    ours: Any = converted.layer.train()
    alpha = 0.5 if learned else 0.25
    assert any(note.startswith(f"Add `{alpha:g} * out.loss`") for note in converted.notes)
    z = torch.randn(4, 30, 8)
    gradients = []
    for layer in (theirs, ours):
        x = z.clone().requires_grad_()
        z_q, second, *loss = layer(x)
        ((z_q**3).sum() / 100 + (loss[0] if loss else alpha * second.loss)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    if learned:
        torch.testing.assert_close(ours.codebook.weight.grad, theirs._codebook.embed.grad[0], rtol=1e-3, atol=1e-6)


def test_settings_for_the_training_to_come() -> None:
    """They go to our layer; what has no counterpart is told; a frozen codebook stays frozen."""
    arguments: dict[str, Any] = {
        "dim": 8,
        "codebook_size": 16,
        "heads": 2,
        "codebook_dim": 4,
        "threshold_ema_dead_code": 2,
    }
    theirs = vqp.VectorQuantize(**arguments, freeze_codebook=True)
    converted = convert_vector_quantize_pytorch(
        "VectorQuantize", theirs.state_dict(), settings={"replace_freq": 20}, **arguments, freeze_codebook=True
    )

    layer = converted.layer
    assert isinstance(layer, GroupVectorQuant) and layer.codebook.replace_freq == 20 and layer.is_frozen()
    assert "`threshold_ema_dead_code=2` has no counterpart: it changes training alone." in converted.notes
    assert layer.codebook.codebook_update == "ema" and layer.codebook.codebook_decay == 0.8


@pytest.mark.parametrize(
    ("class_name", "arguments"),
    [
        ("VectorQuantize", {"affine_param": True}),
        ("VectorQuantize", {"use_cosine_sim": True, "orthogonal_reg_weight": 10.0}),
        ("ResidualVQ", {"num_quantizers": 2, "implicit_neural_codebook": True}),
        ("ResidualVQ", {"num_quantizers": 2, "beam_size": 3}),
        ("ResidualVQ", {"num_quantizers": 2, "diveq": True}),
        ("ResidualVQ", {"codebook_size": (8, 16)}),
        ("FSQ", {"levels": [3, 3], "num_codebooks": 2}),
        ("FSQ", {"levels": [3, 3], "preserve_symmetry": True}),
        ("FSQ", {"levels": [3, 3], "bound_hard_clamp": True}),
        ("FSQ", {"levels": [3, 3], "orthogonal_rotation": True}),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(class_name: str, arguments: dict[str, Any]) -> None:
    """The message names the argument and says why."""
    torch.manual_seed(0)
    if class_name != "FSQ":
        arguments = {"dim": 8, "codebook_size": 16} | arguments
    theirs = getattr(vqp, class_name)(**arguments)
    if "orthogonal_reg_weight" in arguments:
        torch.nn.init.normal_(theirs._codebook.embed)
    harmless = {"dim", "num_quantizers", "levels", "orthogonal_reg_weight"}
    culprit = next(name for name, value in arguments.items() if name not in harmless and value != 16)

    with pytest.raises(ValueError, match=f"{culprit}=.*cannot be converted"):
        convert_vector_quantize_pytorch(class_name, theirs.state_dict(), axis=-1, **arguments)


def test_what_is_not_said_is_asked_for() -> None:
    """Arguments that no state dict holds, and the ones that contradict it."""
    state = vqp.VectorQuantize(dim=8, codebook_size=16).state_dict()

    def convert(class_name: str = "VectorQuantize", found: Any = state, **arguments: Any) -> Any:
        return convert_vector_quantize_pytorch(class_name, found, **arguments)

    with pytest.raises(ValueError, match="built with, at least 'dim', 'codebook_size'"):
        convert()
    with pytest.raises(ValueError, match=r"'_codebook.embed' has the shape \(1, 16, 8\), expected \(1, 32, 8\)"):
        convert(dim=8, codebook_size=32)
    with pytest.raises(ValueError, match="missing: 'project_in.weight'"):
        convert(dim=8, codebook_size=16, codebook_dim=4)
    with pytest.raises(ValueError, match="no argument 'codebok_dim'"):
        convert(dim=8, codebook_size=16, codebok_dim=4)
    with pytest.raises(ValueError, match=r"'inner._codebook.embed': pass what stands before as `prefix`"):
        convert(found={f"inner.{key}": value for key, value in state.items()}, dim=8, codebook_size=16)
    with pytest.raises(ValueError, match="`num_quantizers`"):
        convert("ResidualVQ", dim=8, codebook_size=16)
    with pytest.raises(ValueError, match="waits for its first batch"):
        convert(
            found=vqp.VectorQuantize(dim=8, codebook_size=16, kmeans_init=True).state_dict(), dim=8, codebook_size=16
        )
    with pytest.raises(ValueError, match="`axis=1` or `axis=-1`"):
        convert("FSQ", {}, levels=[3, 3])
    with pytest.raises(ValueError, match="at least 'levels'"):
        convert("FSQ", {}, axis=1)
    with pytest.raises(ValueError, match="not known: 'mystery'"):
        convert(found=state | {"mystery": torch.ones(1)}, dim=8, codebook_size=16)
    levels = vqp.ResidualVQ(dim=8, codebook_size=16, num_quantizers=2).state_dict()
    with pytest.raises(
        ValueError, match="`shared_codebook=True`, but the levels in the state dict have different codes"
    ):
        convert("ResidualVQ", levels, dim=8, codebook_size=16, num_quantizers=2, shared_codebook=True)
    with pytest.raises(ValueError, match="'VectorQuantize', 'ResidualVQ', 'FSQ', got 'LFQ'"):
        convert("LFQ")


def test_every_argument_of_theirs_is_known() -> None:
    """Of the three classes in the installed version: converted, refused, told of, or without effect."""
    import inspect

    from hf_vq.convert import vector_quantize_pytorch as convert

    known = {*convert._REFUSED, *convert._TRAINING_ONLY, *convert._WITHOUT_EFFECT, *convert._LAYOUT}
    for name in ("VectorQuantize", "ResidualVQ", "FSQ"):
        parameters = inspect.signature(getattr(vqp, name)).parameters
        theirs = {each.name for each in parameters.values() if each.kind is not each.VAR_KEYWORD}
        assert not theirs - known - set(convert._ARGUMENTS[name])
        for parameter in theirs & set(convert._TRAINING_ONLY):
            assert parameters[parameter].default == convert._TRAINING_ONLY[parameter]
    assert isinstance(VectorQuant, type)


def test_projections_take_masks() -> None:
    """Masked places are zero behind the projection's bias, too, and NaN there reaches no weight."""
    torch.manual_seed(0)
    theirs = vqp.VectorQuantize(dim=8, codebook_size=16, codebook_dim=3)
    ours = convert_vector_quantize_pytorch(
        "VectorQuantize", theirs.state_dict(), dim=8, codebook_size=16, codebook_dim=3
    ).layer.train()
    mask = torch.rand(2, 7) > 0.5
    z = torch.randn(2, 7, 8).masked_fill(~mask[..., None], torch.nan)

    z_q, out = ours(z, mask)
    (z_q.sum() + out.loss).backward()

    expected, index, _ = theirs.eval()(z.nan_to_num(), mask=mask)
    assert (z_q[~mask] == 0).all() and torch.equal(out.q[..., 0], index)
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
