"""A frozen layer: nothing moves its codes, in whatever way it was frozen, and it trains again once it is thawed."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from hf_vq import GroupVectorQuant, ResidualVectorQuant, VectorQuant, VQConfig, VQModel, get_vq_layers
from hf_vq.modeling.base_quantizer_vq import AveragedParameter, Quantizer, QuantizerOutput

FULL: dict[str, Any] = dict(affine_lr=2.0, sync_nu=0.3, replace_freq=2, kmeans_init=True, alternating_steps=1)
LAYERS = {
    "plain": lambda: VectorQuant(8, 32),
    "full": lambda: VectorQuant(8, 32, **FULL),
    "sgd": lambda: VectorQuant(8, 32, alternating_steps=1, alternating_kind="sgd", replace_freq=2),
    "ema": lambda: VectorQuant(8, 32, codebook_update="ema", replace_freq=2, kmeans_init=True),
    "running": lambda: VectorQuant(8, 32, affine_mode="running", alternating_steps=1),
    "batch norm": lambda: VectorQuant(8, 32, norm="bn", alternating_steps=1),
    "group": lambda: GroupVectorQuant(8, 32, groups=2, share=False, **FULL),
    "residual": lambda: ResidualVectorQuant(8, 32, groups=2, codebook_update="ema"),
}


def freeze_each_parameter(layer: VectorQuant) -> None:
    """As people write it by hand."""
    for parameter in layer.parameters():
        parameter.requires_grad = False


WAYS = {
    "freeze": lambda layer: layer.freeze(),
    "the layer's requires_grad_": lambda layer: layer.requires_grad_(False),
    "a model's requires_grad_": lambda layer: nn.Sequential(nn.Identity(), layer).requires_grad_(False),
    "each parameter's requires_grad": freeze_each_parameter,
}


def batch(seed: int) -> torch.Tensor:
    """Vectors that lie elsewhere for each seed."""
    return torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(seed)) + seed


def state(layer: VectorQuant) -> dict[str, torch.Tensor]:
    """All that could move."""
    return {name: value.clone() for name, value in {**layer.state_dict(), **layer.training_state()}.items()}


def train(layer: VectorQuant, steps: int = 4) -> list[tuple[torch.Tensor, QuantizerOutput]]:
    """A training loop on the layer and on a weight in front of it."""
    layer.train()
    weight = nn.Parameter(torch.ones(8, 1, 1))
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([weight, *trained], 0.1)
    outputs = []
    for seed in range(steps):
        z_q, out = layer(weight * batch(seed))
        (z_q.square().mean() + out.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        outputs.append((z_q, out))
    assert not torch.equal(weight, torch.ones_like(weight))  # the gradient goes through
    return outputs


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_stays_as_it_is(name: str, way: str) -> None:
    """After some steps of training and the freezing, further steps change no parameter, buffer, clock or average."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    before = state(layer)
    train(layer)
    assert not same(before, state(layer))  # it trains until then

    WAYS[way](layer)
    before = state(layer)
    outputs = train(layer)

    assert layer.is_frozen()
    assert same(before, state(layer))
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert layer.rewritten_rows() == {} and all(out.replaced is None for _, out in outputs)


@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_in_training_equals_eval(name: str) -> None:
    """Values, ids, distances, loss and statistics, to the bit; the modes of its modules are as they were."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    train(layer, 2)
    layer.freeze().train()
    z = torch.cat([batch(0), batch(5)])
    z_q, out = layer(z)
    assert all(module.training for module in layer.modules())
    expected, expected_out = layer.eval()(z)

    assert torch.equal(z_q, expected) and torch.equal(z_q, layer.lookup(out.q))
    assert out.keys() == expected_out.keys() and all(torch.equal(out[key], expected_out[key]) for key in out)
    assert out.perplexity > 1 and out.usage > 0


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_never_trained_freezes_as_well(name: str) -> None:
    """No initialization, no statistics: the first codes are the last ones."""
    layer = LAYERS[name]()
    before = state(layer)
    layer.freeze()
    train(layer)

    assert same(before, state(layer))


@pytest.mark.parametrize("way", ["the layer's requires_grad_", "a model's requires_grad_"])
@pytest.mark.parametrize("name", LAYERS)
def test_thawing(name: str, way: str) -> None:
    """`requires_grad_(True)` is the way back, without a call of `train()`; EMA codes still require no gradient."""
    torch.manual_seed(0)
    layer = LAYERS[name]().train()
    fresh = [parameter.requires_grad for parameter in layer.parameters()]
    layer.freeze()
    owner = layer if way.startswith("the layer") else nn.Sequential(layer)
    owner.requires_grad_(True)
    before = state(layer)

    assert not layer.is_frozen()
    assert [parameter.requires_grad for parameter in layer.parameters()] == fresh
    train(layer)
    assert not torch.equal(before["codebook.weight"], layer.codebook.weight)


def test_freezing_drops_gradients_that_wait_for_a_step() -> None:
    """A layer frozen between backward and step is not moved by that step."""
    layer = VectorQuant(8, 32)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    layer(batch(0))[1].loss.backward()
    before = state(layer)
    layer.freeze()
    optimizer.step()

    assert torch.equal(before["codebook.weight"], layer.codebook.weight)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_model_freezes_its_codebook_and_trains_on(update: str, tmp_path) -> None:
    """`freeze_codebook` leaves the network trainable; copies are frozen too, a saved model is not."""
    torch.manual_seed(0)
    extra: dict[str, Any] = (
        {"codebook_update": "ema", "alternating_steps": 0, "sync_nu": 0.0} if update == "ema" else {}
    )
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_codes=16, embed_dim=4, **extra)
    model = VQModel(config).train()
    model.freeze_codebook()
    before = state(model.quantize)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    first = model.encoder.conv[0].weight.clone()
    for seed in range(3):
        out = model(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
        out.loss.backward()
        optimizer.step()

    assert same(before, state(model.quantize)) and not torch.equal(first, model.encoder.conv[0].weight)
    assert copy.deepcopy(model).quantize.is_frozen()
    model.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path).train()
    assert not loaded.quantize.is_frozen()
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in VQModel(config).parameters()]
    loaded(torch.rand(2, 3, 16, 16))
    assert not torch.equal(before["codebook.weight"], loaded.quantize.codebook.weight)


class Center(Quantizer):
    """A kind whose only code is a running mean, in a buffer: it has no parameter that could say that it is frozen."""

    mean: torch.Tensor

    def __init__(self, feature_size: int, num_codes: int, dim: int = 1) -> None:
        super().__init__()
        self.feature_size, self.num_codes, self.dim, self.code_dim = feature_size, num_codes, dim, feature_size
        self.register_buffer("mean", torch.zeros(feature_size))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        x = z.moveaxis(self.dim, -1)
        if self.training:
            self.mean.lerp_(x.detach().flatten(0, -2).mean(0), 0.1)
        q = torch.zeros_like(x[..., :1], dtype=torch.long)
        return self.lookup(q) + (z - z.detach()), QuantizerOutput(q=q)

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        return self.mean.expand(*q.shape[:-1], -1).moveaxis(-1, self.dim)


def test_a_kind_without_parameters() -> None:
    """It is frozen by `freeze`, by its own `requires_grad_`, and by that of a model of this package around it."""
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, embed_dim=4)
    for freeze in (
        lambda model: model.freeze_codebook(),
        lambda model: model.quantize.requires_grad_(False),
        lambda model: model.requires_grad_(False),
    ):
        model = VQModel(config).train()
        model.quantize = Center(4, 1)
        layer: Any = get_vq_layers(model)[0]
        freeze(model)
        layer(torch.randn(2, 4, 3) + 1)
        assert layer.is_frozen() and not layer.mean.any()
        model.requires_grad_(True)
        layer(torch.randn(2, 4, 3) + 1)
        assert not layer.is_frozen() and layer.mean.any()


def test_an_averaged_parameter_is_a_parameter_like_others() -> None:
    """It is in state dict, parameters and copies, moves to other dtypes, and never requires a gradient."""
    layer = VectorQuant(8, 32, codebook_update="ema")
    assert isinstance(layer.codebook.weight, AveragedParameter)
    assert (
        "codebook.weight" in dict(layer.named_parameters())
        and type(layer.state_dict()["codebook.weight"]) is torch.Tensor
    )

    layer.codebook.weight.requires_grad = True
    for copied in (layer, copy.deepcopy(layer), layer.double()):
        assert isinstance(copied.codebook.weight, AveragedParameter) and not copied.codebook.weight.requires_grad
    layer.load_state_dict(VectorQuant(8, 32).state_dict())
    assert not layer.is_frozen()
    empty = VectorQuant(8, 32, codebook_update="ema").to("meta").to_empty(device="cpu")
    assert not empty.is_frozen() and not empty.codebook.weight.requires_grad


@pytest.mark.parametrize("frozen", [False, True])
def test_a_pickled_layer_trains_or_rests_as_before(frozen: bool) -> None:
    """An EMA layer that was pickled whole, as processes are handed models, still moves its codes unless frozen."""
    layer = VectorQuant(8, 32, codebook_update="ema")
    if frozen:
        layer.freeze()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)

    before = loaded.codebook.weight.detach().clone()
    loaded.train()(torch.randn(64, 8))
    assert torch.equal(loaded.codebook.weight, before) == frozen
