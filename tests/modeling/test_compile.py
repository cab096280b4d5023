"""Training under `torch.compile`: the updates of the codebook stay out of the graphs and give what eager gives."""

import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_vq import (
    RECOMMENDED_QUANTIZER,
    GroupVectorQuant,
    ResidualVectorQuant,
    VectorQuant,
    VQConfig,
    VQModel,
    get_vq_layers,
)

pytestmark = pytest.mark.compiles

FULL: dict[str, Any] = dict(sync_nu=0.5, replace_freq=1, kmeans_init=True, alternating_steps=2)
LAYERS = {
    "recommended": lambda: VectorQuant(8, 64, **RECOMMENDED_QUANTIZER),
    "ema": lambda: VectorQuant(8, 32, codebook_update="ema", kmeans_init=True, replace_freq=2),
    "separate groups": lambda: GroupVectorQuant(8, 32, 2, False, norm="l2", alternating_kind="sgd", **FULL),
    "residual, running": lambda: ResidualVectorQuant(8, 32, 2, False, affine_mode="running", **FULL),
    "busy, batch norm": lambda: VectorQuant(8, 32, replace_freq=1, replace_policy="busy", norm="bn"),
}


class Autoencoder(nn.Module):
    """A layer between two convolutions; returns the loss."""

    def __init__(self, layer: VectorQuant, checkpointed: bool = False) -> None:
        super().__init__()
        self.encoder, self.layer, self.decoder = nn.Conv2d(3, 8, 3, padding=1), layer, nn.Conv2d(8, 3, 1)
        self.checkpointed = checkpointed

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = self.encoder(pixels)
        z_q, out = checkpoint(self.layer, latents, use_reentrant=False) if self.checkpointed else self.layer(latents)
        return (self.decoder(z_q) - pixels).square().mean() + out.loss


def train(make: Any, backend: str | None, steps: int = 4) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few training steps and the state after them, compiled or (`backend=None`) not."""
    torch.manual_seed(0)
    model = make().train()
    step = model
    if backend is not None:
        torch._dynamo.reset()
        step = torch.compile(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(steps):
        loss = step(torch.rand(4, 3, 8, 8))
        loss = loss if isinstance(loss, torch.Tensor) else loss.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def assert_same_training(make: Any, backend: str) -> None:
    """Losses and everything that the steps leave behind equal those of eager, up to rounding."""
    expected, state = train(make, None)
    losses, compiled_state = train(make, backend)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(compiled_state, state, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_layers_train_as_in_eager(name: str) -> None:
    """Initialization, replacement and inner steps are those of an uncompiled run."""
    assert_same_training(lambda: Autoencoder(LAYERS[name]()), "aot_eager")


def test_a_compiled_model_trains_as_in_eager() -> None:
    """So does a whole tokenizer with the default configuration's quantizer."""
    config = VQConfig(architecture="sqvae", image_size=8, base_channels=16, embed_dim=4, num_codes=32)
    assert config.kmeans_init
    assert_same_training(lambda: VQModel(config), "aot_eager")


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor_trains_as_in_eager() -> None:
    """The default backend compiles the recommended layer."""
    assert_same_training(lambda: Autoencoder(LAYERS["recommended"]()), "inductor")


@pytest.mark.parametrize("norm", [None, "gn", "l2"])
@pytest.mark.parametrize("dim", [1, 2])
def test_graphs_end_with_no_copying_reshape(dim: int, norm: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.13 keeps a dangling pointer to the shape of a reshape that copies and ends a graph."""
    sequences = pytest.importorskip("torch._functorch._aot_autograd.functional_utils")
    if not hasattr(sequences, "ViewMetaSequence"):
        pytest.skip("this version of torch records no views")
    record = sequences.ViewMetaSequence.__init__
    seen: list[str] = []

    def remember(self: Any, tensor: torch.Tensor) -> None:
        record(self, tensor)
        seen.extend(type(view).__name__ for view in self.sequence)

    monkeypatch.setattr(sequences.ViewMetaSequence, "__init__", remember)
    layer = VectorQuant(8, 16, dim=dim, norm=norm, replace_freq=1)
    torch._dynamo.reset()
    shape = (4, 8, 6, 6) if dim == 1 else (4, 6, 8, 6)
    torch.compile(layer.forward, backend="aot_eager")(torch.rand(shape, requires_grad=True))
    assert seen, "no view was recorded"
    assert not [name for name in seen if "unsafe" in name]


def test_recomputed_activations_update_nothing_twice() -> None:
    """Activation checkpointing inside a compiled model leaves codes and clocks as without it."""
    expected, state = train(lambda: Autoencoder(LAYERS["recommended"]()), None)
    losses, checkpointed = train(lambda: Autoencoder(LAYERS["recommended"](), checkpointed=True), "aot_eager")
    assert losses == pytest.approx(expected, rel=1e-4)
    assert checkpointed["layer.codebook.num_forwards"] == state["layer.codebook.num_forwards"] == 4
    torch.testing.assert_close(checkpointed, state, rtol=1e-3, atol=1e-5)


def tokenizer(**fields: Any) -> VQModel:
    return VQModel(VQConfig(architecture="sqvae", image_size=8, base_channels=8, **fields))


MODELS: dict[str, Any] = {
    "sqvae": lambda: tokenizer(embed_dim=4, num_codes=32, replace_freq=4),
    "vqgan, residual": lambda: VQModel(
        VQConfig(
            image_size=8, base_channels=8, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=4, embed_dim=4,
            num_codes=16, norm_num_groups=2, quantizer_type="residual", num_groups=2, replace_freq=4,
        )
    ),
    "fsq": lambda: tokenizer(quantizer_type="fsq", levels=[3, 3], embed_dim=2),
    "lfq": lambda: tokenizer(quantizer_type="lfq", embed_dim=4),
    "simvq": lambda: tokenizer(quantizer_type="simvq", embed_dim=4, num_codes=16),
    "ibq": lambda: tokenizer(quantizer_type="ibq", embed_dim=4, num_codes=16),
    "two layers": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), TensorAlone(LAYERS["recommended"]()), nn.Conv2d(8, 8, 1), TensorAlone(LAYERS["ema"]())
    ),
}  # fmt: skip


class TensorAlone(nn.Module):
    """The quantized tensor of a layer, without the rest."""

    def __init__(self, layer: VectorQuant) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_steady_step_has_few_graphs_and_compiles_nothing(name: str) -> None:
    """At most two breaks for a layer, and from the third step on no compilation, also where codes are replaced."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = MODELS[name]().train()
    layers = get_vq_layers(model)
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    step, replaced = torch.compile(model, backend=count), 0
    for number in range(12):
        with torch._dynamo.config.patch(error_on_recompile=number > 1):
            out = step(torch.rand(4, 3, 8, 8) + number)
            (out if isinstance(out, torch.Tensor) else out.loss).mean().backward()
        if number > 1:
            replaced += sum(int(rows.sum()) for layer in layers for rows in layer.rewritten_rows().values())
        if number == 1:
            compiled = graphs
    assert graphs == compiled
    assert replaced > 0 or name in ("fsq", "lfq", "simvq", "ibq"), "no code was replaced: nothing was tested"
    assert torch._dynamo.explain(model)(torch.rand(4, 3, 8, 8)).graph_break_count <= 2 * len(layers)
