"""The quantizer layers: shapes, dtypes, values, gradients, options."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_vq import GroupVectorQuant, VectorQuant, get_vq_layers, no_vq
from hf_vq.modeling.residual_vq import ResidualVectorQuant

FULL: dict[str, Any] = dict(sync_nu=0.5, affine_lr=2.0, replace_freq=2, kmeans_init=True, alternating_steps=2)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sync": dict(sync_nu=0.5),
    "affine": dict(affine_lr=2.0, affine_groups=4),
    "running": dict(affine_mode="running"),
    "kmeans": dict(kmeans_init=True),
    "replacement": dict(replace_freq=2),
    "replacement by k-means": dict(replace_freq=2, replace_policy="kmeans"),
    "replacement by busy codes": dict(replace_freq=2, replace_policy="busy"),
    "sgd steps": dict(alternating_steps=1, alternating_kind="sgd"),
    "centroid steps": dict(alternating_steps=1, alternating_kind="centroid"),
    "ema": dict(codebook_update="ema", kmeans_init=True, replace_freq=2),
    "rotation": dict(gradient_estimator="rotation"),
    "l2": dict(norm="l2", cb_norm="l2"),
    "clip": dict(norm="clip", cb_norm="clip"),
    "batch norm": dict(norm="bn"),
    "group norm": dict(norm="gn"),
    "instance norm": dict(norm="in"),
    "full": FULL,
    "full, sgd, l2": dict(FULL, alternating_kind="sgd", norm="l2", cb_norm="l2"),
    "full, running": dict(FULL, affine_lr=0.0, affine_mode="running", gradient_estimator="rotation"),
}
CLASSES = {
    "vector": lambda **kwargs: VectorQuant(8, 32, **kwargs),
    "group shared": lambda **kwargs: GroupVectorQuant(8, 32, groups=2, share=True, **kwargs),
    "group separate": lambda **kwargs: GroupVectorQuant(8, 32, groups=2, share=False, **kwargs),
    "residual shared": lambda **kwargs: ResidualVectorQuant(8, 32, groups=2, share=True, **kwargs),
    "residual separate": lambda **kwargs: ResidualVectorQuant(8, 32, groups=2, share=False, **kwargs),
}
COMBINATIONS = [
    pytest.param(make, kwargs, id=f"{name}-{option}")
    for name, make in CLASSES.items()
    for option, kwargs in OPTIONS.items()
    if not (name == "residual shared" and kwargs.get("affine_mode") == "running")
]


def train(layer: VectorQuant, steps: int = 4, seed: int = 0, shape: tuple[int, ...] = (4, 8, 5, 5)) -> VectorQuant:
    """A few real training steps."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(
        [p for p in layer.parameters() if p.requires_grad] + [nn.Parameter(torch.ones(1))], 0.1
    )
    layer.train()
    for _ in range(steps):
        z_q, out = layer(torch.randn(shape).requires_grad_())
        (z_q.square().mean() + out.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer


@pytest.mark.parametrize(("make", "kwargs"), COMBINATIONS)
def test_eval_changes_nothing_lookup_is_exact_and_reload_is_strict(make, kwargs):
    """In eval the state stays, `lookup(q)` equals the output to the bit, and a strict reload gives the same."""
    torch.manual_seed(0)
    layer = train(make(**kwargs)).eval()
    state = copy.deepcopy(layer.state_dict())
    training_state = layer.training_state()
    z = 3 * torch.randn(4, 8, 5, 5) + 1

    z_q, out = layer(z)

    assert torch.equal(layer.lookup(out.q), z_q)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert all(torch.equal(value, training_state[name]) for name, value in layer.training_state().items())
    assert len(out.q.unique()) > 4  # codes have not collapsed to nothing
    torch.manual_seed(1)
    again = make(**kwargs)
    again.load_state_dict(state, strict=True)
    assert torch.equal(again.eval()(z)[0], z_q)
    with torch.no_grad():
        assert torch.equal(layer(z)[0], z_q)


@pytest.mark.parametrize(("make", "kwargs"), COMBINATIONS)
def test_every_code_is_finite_after_training(make, kwargs):
    """Training with each option keeps parameters, buffers and outputs finite."""
    layer = train(make(**kwargs), steps=6)

    for tensor in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("shape", "dim"), [((6, 8), 1), ((6, 8), -1), ((2, 8, 3), 1), ((2, 3, 8), 2), ((2, 3, 4, 5, 8), -1), ((8, 7), 0)]
)
def test_any_axis_and_any_number_of_axes(name, shape, dim):
    """Shapes come back, ids have the other axes plus one of groups, and transposing commutes with quantizing."""
    torch.manual_seed(0)
    layer = CLASSES[name](dim=dim).eval()
    z = torch.randn(shape)

    z_q, out = layer(z)

    others = list(shape)
    others.pop(dim)
    assert z_q.shape == z.shape
    assert out.q.shape == (*others, layer.groups) and out.q.dtype == torch.int64
    assert out.d.shape == out.q.shape
    last = CLASSES[name](dim=-1).eval()
    last.load_state_dict(layer.state_dict())
    assert torch.equal(last(z.moveaxis(dim, -1))[0], z_q.moveaxis(dim, -1))


def test_input_that_is_not_contiguous():
    """A transposed view gives what its contiguous copy gives."""
    layer = VectorQuant(8, 32).eval()
    z = torch.randn(5, 4, 6, 8).permute(1, 3, 0, 2)

    assert torch.equal(layer(z)[0], layer(z.contiguous())[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_output_has_the_dtype_of_the_input_and_arithmetic_is_float32_or_better(dtype):
    """Half precision input is searched in float32; gradients come back in the input's dtype."""
    torch.manual_seed(0)
    layer = VectorQuant(8, 512)
    z = torch.randn(64, 8).to(dtype).requires_grad_()

    z_q, out = layer(z)
    (z_q.float().sum() + out.loss).backward()

    assert z_q.dtype == dtype and z.grad.dtype == dtype
    assert out.loss.dtype == torch.promote_types(dtype, torch.float32)
    exact = torch.cdist(z.detach().double(), layer.codebook.weight.detach().double()).argmin(1)
    assert torch.equal(out.q.squeeze(-1), exact)
    assert torch.equal(z_q, layer.lookup(out.q).to(dtype))


def test_autocast_does_not_lower_the_precision():
    """Under bfloat16 autocast the ids are those without."""
    torch.manual_seed(0)
    layer = VectorQuant(8, 512).eval()
    z = torch.randn(256, 8)
    with torch.autocast("cpu", torch.bfloat16):
        _, out = layer(z)

    assert torch.equal(out.q, layer(z)[1].q)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("options", [{}, FULL, dict(codebook_update="ema")], ids=["plain", "full", "ema"])
def test_empty_batches(name, options):
    """No vectors: loss 0 with zero gradients, empty ids, in training and eval, before and after initialization."""
    layer = CLASSES[name](**options)
    for mode in (True, False):
        z = torch.randn(0, 8, 5, 5, requires_grad=True)
        z_q, out = layer.train(mode)(z)
        if z_q.requires_grad or out.loss.requires_grad:
            (z_q.sum() + out.loss).backward()
        assert z_q.shape == z.shape and out.q.shape == (0, 5, 5, layer.groups)
        assert out.loss == 0 and out.perplexity == 0 and out.usage == 0
    train(layer)
    assert layer.train()(torch.randn(0, 8, 5, 5))[1].loss == 0


def test_the_value_is_the_code_to_the_bit_in_training_too():
    """The straight-through output carries no rounding error of z + (z_q - z)."""
    torch.manual_seed(0)
    for estimator in ("ste", "rotation"):
        layer = VectorQuant(8, 32, sync_nu=0.3, gradient_estimator=estimator)
        z_q, out = layer(1000 * torch.randn(64, 8, requires_grad=True))

        assert torch.equal(z_q, layer.lookup(out.q))


def test_straight_through_and_synchronized_gradients():
    """The encoder receives the task gradient as it is; each code nu times the sum over its vectors."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 16, beta=1.0, sync_nu=0.5)
    z = torch.randn(50, 4, requires_grad=True)
    task = torch.randn(50, 4)

    z_q, out = layer(z)
    (task * z_q).sum().backward()

    torch.testing.assert_close(z.grad, task)
    expected = torch.zeros(16, 4).index_add(0, out.q.squeeze(-1), 0.5 * task)
    torch.testing.assert_close(layer.codebook.weight.grad, expected)


def test_beta_weights_the_codebooks_term():
    """With beta 1 the encoder gets no commitment gradient, with beta 0 the codebook gets none."""
    for beta in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        layer = VectorQuant(4, 16, beta=beta)
        z = torch.randn(50, 4, requires_grad=True)
        out = layer(z)[1]
        out.loss.backward()
        difference = 2 * (z.detach() - out.z_q.squeeze(-2).detach()) / z.numel()

        grad = torch.zeros_like(z) if z.grad is None else z.grad
        torch.testing.assert_close(grad, (1 - beta) * difference)
        expected = torch.zeros(16, 4).index_add(0, out.q.squeeze(-1), -beta * difference)
        torch.testing.assert_close(layer.codebook.weight.grad, expected)


def test_rotation_gradient_is_the_rotation():
    """The Jacobian maps e to q, keeps angles, and scales lengths by |q| / |e| (Fifty et al. 2024)."""
    torch.manual_seed(0)
    layer = VectorQuant(6, 16, gradient_estimator="rotation").double()
    z = torch.randn(1, 6, dtype=torch.double, requires_grad=True)

    z_q, _ = layer(z)
    jacobian = torch.stack([torch.autograd.grad(z_q[0, i], z, retain_graph=True)[0][0] for i in range(6)])

    torch.testing.assert_close(jacobian @ z[0].detach(), z_q[0].detach())
    ratio = z_q.detach().norm() / z.detach().norm()
    torch.testing.assert_close(jacobian.T @ jacobian, ratio**2 * torch.eye(6, dtype=torch.double))
    assert torch.linalg.det(jacobian) > 0


def test_statistics_are_those_of_the_batch():
    """Distance, perplexity and usage follow from the ids."""
    layer = VectorQuant(2, 4, dim=-1).eval()
    with torch.no_grad():
        layer.codebook.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [50.0, 50.0]]))
    out = layer(torch.tensor([[3.0, 4.0], [10.0, 1.0], [9.0, 0.0], [0.0, 1.0]]))[1]

    assert out.q.squeeze(-1).tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(out.d.squeeze(-1), torch.tensor([5.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(out.perplexity, torch.tensor(2.0))
    torch.testing.assert_close(out.usage, torch.tensor(0.5))


@pytest.mark.parametrize("name", ["group separate", "residual separate"])
def test_ids_of_separate_codebooks_are_global(name):
    """Group g uses ids of its own codebook only, which start at g * num_codes / groups."""
    out = CLASSES[name]().eval()(torch.randn(200, 8))[1]

    assert out.q[..., 0].max() < 16 <= out.q[..., 1].min()


def test_residual_distance_shrinks_level_by_level():
    """`d` of a residual layer is the error after each level; the last is that of the output."""
    torch.manual_seed(0)
    layer = train(ResidualVectorQuant(8, 128, groups=4, share=False, kmeans_init=True), 2).eval()
    z = torch.randn(300, 8)
    z_q, out = layer(z)

    assert (out.d.mean(0).diff() < 0).all()
    torch.testing.assert_close(out.d[:, -1], (z - z_q).norm(dim=1))


def test_no_vq_nests_and_restores_what_was_also_after_an_exception():
    """Quantizers are off within, and afterwards as they were before."""
    model = nn.Sequential(VectorQuant(8, 32), nn.Identity(), VectorQuant(8, 32))
    first, second = get_vq_layers(model)
    z = torch.randn(4, 8)
    second.enabled = False
    with pytest.raises(RuntimeError), no_vq(model):
        with no_vq([first]):
            pass
        z_q, out = first(z)
        assert z_q is z and out.loss == 0 and out.q is None
        raise RuntimeError
    assert first.enabled and not second.enabled


def test_recomputation_under_checkpointing_updates_once():
    """Activation checkpointing gives the gradients and the state of a run without it."""

    def run(use_reentrant: bool | None) -> tuple[torch.Tensor, dict]:
        torch.manual_seed(0)
        layer = VectorQuant(4, 16, **FULL)
        z = torch.randn(64, 4)
        for _ in range(3):
            scaled = (z * 1.0).requires_grad_()

            def block(x: torch.Tensor) -> torch.Tensor:
                z_q, out = layer(x)
                return z_q.square().sum() + out.loss

            loss = block(scaled) if use_reentrant is None else checkpoint(block, scaled, use_reentrant=use_reentrant)
            loss.backward()
        assert scaled.grad is not None
        return scaled.grad, layer.state_dict() | layer.training_state()

    gradient, state = run(None)
    for use_reentrant in (True, False):
        again, state_again = run(use_reentrant)
        torch.testing.assert_close(again, gradient)
        assert all(torch.equal(value, state[name]) for name, value in state_again.items())


@pytest.mark.parametrize("kwargs", [{}, FULL, dict(norm="bn")], ids=["plain", "full", "batch norm"])
def test_a_layer_called_twice_before_backward_is_recomputed_with_each_calls_own_codes(kwargs):
    """Two checkpointed calls in one graph give the gradients and the state of two calls without checkpointing."""

    def run(checkpointed: bool) -> tuple[list[torch.Tensor], dict]:
        torch.manual_seed(0)
        layer = VectorQuant(4, 16, **kwargs).train()
        inputs = [torch.randn(64, 4).requires_grad_() for _ in range(2)]

        def block(x: torch.Tensor) -> torch.Tensor:
            z_q, out = layer(x)
            return (z_q**3).sum() + out.loss

        losses = [checkpoint(block, z, use_reentrant=False) if checkpointed else block(z) for z in inputs]
        # The codes of a second call's inner step serve its own recomputation only, so compare the second in that case.
        torch.stack(losses[1:] if kwargs is FULL else losses).sum().backward()
        gradients = [z.grad for z in inputs if z.grad is not None]
        return gradients, layer.state_dict() | layer.training_state()

    expected, state = run(False)
    found, state_again = run(True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(torch.equal(value, state[name]) for name, value in state_again.items())


def test_one_vector_under_batch_norm():
    """A batch of a single vector has no moments; it is normalized by the running ones instead of failing."""
    layer = VectorQuant(4, 16, norm="bn").train()

    assert layer(torch.randn(1, 4))[0].isfinite().all()


@pytest.mark.parametrize("cb_norm", [None, "l2"])
def test_lookup_is_exact_for_input_of_higher_precision_too(cb_norm):
    """Float64 input to a float32 layer is quantized with the very codes that a lookup gives."""
    layer = VectorQuant(8, 32, cb_norm=cb_norm, affine_lr=1.0).eval()
    z_q, out = layer(torch.randn(50, 8, dtype=torch.double))

    assert z_q.dtype == torch.double
    assert torch.equal(layer.lookup(out.q).double(), z_q)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("option", ["plain", "full", "full, sgd, l2", "ema"])
@pytest.mark.compiles
def test_compiles_whole_and_exports_in_eval(name, option):
    """`torch.compile(fullgraph=True)` and `torch.export` give the ids and values of the eager layer."""
    layer = train(CLASSES[name](**OPTIONS[option])).eval()
    z = torch.randn(2, 8, 4, 4)
    expected, out = layer(z)

    torch._dynamo.reset()
    compiled, compiled_out = torch.compile(layer, fullgraph=True, backend="aot_eager")(z)
    exported, exported_out = torch.export.export(layer, (z,)).module()(z)

    assert torch.equal(compiled_out.q, out.q) and torch.equal(exported_out.q, out.q)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)


@pytest.mark.compiles
def test_exported_layer_survives_inductor():
    """The default compiler backend agrees too, on more vectors than one chunk holds."""
    torch.manual_seed(0)
    layer = VectorQuant(8, 100, dim=-1).eval()
    z = torch.randn(3000, 8)

    torch._dynamo.reset()
    compiled, out = torch.compile(layer, fullgraph=True)(z)

    assert (out.q == layer(z)[1].q).double().mean() > 0.999
    torch.testing.assert_close(compiled, layer.lookup(out.q))
