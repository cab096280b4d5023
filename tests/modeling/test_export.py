"""Exported and traced models take batches of any size, and give the tokens of the model itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_vq import (
    MaskGitConfig,
    MaskGitModel,
    VectorQuant,
    VQConfig,
    VQImageClassificationConfig,
    VQModel,
    VQModelForImageClassification,
)

SQVAE: dict[str, Any] = dict(architecture="sqvae", base_channels=16)
VQGAN: dict[str, Any] = dict(base_channels=8, channel_multiplier=[1, 1, 2], num_res_blocks=1, latent_channels=12)
TOKENIZERS: dict[str, dict[str, Any]] = {
    "sqvae": SQVAE | dict(norm="bn"),
    "vqgan": VQGAN | dict(norm="l2", cb_norm="l2", affine_lr=0.0),
    "group": SQVAE | dict(quantizer_type="group", num_groups=2),
    "residual": SQVAE | dict(quantizer_type="residual", num_groups=2, share_codebook=False),
    "fsq": SQVAE | dict(quantizer_type="fsq", levels=[5, 5, 2, 2]),
    "bsq": SQVAE | dict(quantizer_type="bsq", num_groups=2, num_codes=4),
    "residual_fsq": SQVAE | dict(quantizer_type="residual_fsq", levels=[5, 4, 3, 2], num_groups=2, num_codes=240),
    "residual_lfq": SQVAE | dict(quantizer_type="residual_lfq", num_groups=2, num_codes=32),
    "simvq": SQVAE | dict(quantizer_type="simvq"),
    "ibq": SQVAE | dict(quantizer_type="ibq"),
}
VIT: dict[str, Any] = dict(model_type="vit", hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
SIZES = (1, 2, 20)  # 20 images have 1,280 vectors, more than the search takes at once in eager


class Encode(nn.Module):
    """Pixels to tokens."""

    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode(pixels).image_tokens


class Decode(Encode):
    """Tokens to pixels."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.decode(tokens).decoded_pixel_values


class Logits(nn.Module):
    """The logits of a generator or a classifier, and the tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(self.model, VQModelForImageClassification):
            out = self.model(inputs)
        else:
            out = self.model(image_tokens=inputs, mask=inputs == 0)
        return out.logits, out.image_tokens


def make_tokenizer(name: str) -> VQModel:
    """A tokenizer of 100 codes, if they are free, with 8 x 8 tokens for an image."""
    torch.manual_seed(0)
    return VQModel(VQConfig(**dict(image_size=32, embed_dim=4, num_codes=100) | TOKENIZERS[name])).eval()


def images(model: Any, batch: int) -> torch.Tensor:
    size = model.config.image_size
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)) * 2 - 1


def exported(module: nn.Module, example: torch.Tensor) -> Any:
    free = {0: torch.export.Dim("batch")}
    return torch.export.export(module, (example,), dynamic_shapes=(free,)).module()


def traced(module: nn.Module, example: torch.Tensor) -> Any:
    return torch.jit.trace(module, example, check_trace=False)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("make", [pytest.param(exported, marks=pytest.mark.compiles), traced])
@pytest.mark.parametrize("name", TOKENIZERS)
@torch.no_grad()
def test_tokenizers_with_a_free_batch(name: str, make: Any) -> None:
    """`encode` gives the same tokens for other batch sizes, and `decode` the same pixels."""
    model = make_tokenizer(name)
    encode, decode = Encode(model), Decode(model)
    encoder = make(encode, images(model, 2))
    decoder = make(decode, encode(images(model, 2)))
    for size in SIZES:
        tokens = encode(images(model, size))
        assert tokens.shape[:3] == (size, 8, 8)
        assert torch.equal(encoder(images(model, size)), tokens)
        torch.testing.assert_close(decoder(tokens), decode(tokens))


@pytest.mark.parametrize("kind", ["generator", "classifier"])
@pytest.mark.compiles
def test_generators_and_classifiers_with_a_free_batch(kind: str) -> None:
    """Their logits follow the batch, too."""
    torch.manual_seed(0)
    model: Any
    if kind == "generator":
        config = make_tokenizer("sqvae").config
        model = MaskGitModel(
            MaskGitConfig(vq_config=config, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        ).eval()
        inputs = {size: torch.randint(100, (size, 8, 8)) for size in SIZES}
    else:
        backbone = VIT | dict(image_size=16, patch_size=4, intermediate_size=24)
        model = VQModelForImageClassification(
            VQImageClassificationConfig(backbone_config=backbone, image_size=16, num_labels=3)  # type: ignore[call-arg]
        ).eval()
        inputs = {size: images(model, size) for size in SIZES}
    module = Logits(model)
    program = exported(module, inputs[2])
    for size in SIZES:
        for found, expected in zip(program(inputs[size]), module(inputs[size]), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_traced_layer_finds_the_nearest_of_many_vectors() -> None:
    """A trace of more vectors than a chunk, and one of fewer, serve both."""
    torch.manual_seed(0)
    layer = VectorQuant(8, 100, dim=-1).eval()

    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.layer(z)[1].q

    few, many = torch.randn(10, 8), torch.randn(3000, 8)
    for example in (few, many):
        program: Any = torch.jit.trace(Ids(), example, check_trace=False)
        assert torch.equal(program(few), layer(few)[1].q) and torch.equal(program(many), layer(many)[1].q)


@pytest.mark.compiles
@torch.no_grad()
def test_onnx_with_a_free_batch(tmp_path: Path) -> None:
    """The ONNX exporter writes the encoder; the reference runtime gives the same tokens."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_tokenizer("sqvae")
    free: Any = ({0: torch.export.Dim("batch")},)
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(
        Encode(model), (images(model, 2),), path, dynamo=True, input_names=["pixels"], dynamic_shapes=free
    )
    session = onnxruntime.InferenceSession(path)
    for size in SIZES:
        (tokens,) = session.run(None, {"pixels": images(model, size).numpy()})
        assert (torch.from_numpy(tokens) == Encode(model)(images(model, size))).float().mean() > 0.99


@torch.no_grad()
def test_the_tracing_onnx_exporter_is_refused(tmp_path: Path) -> None:
    """It leaves tokens behind that are all one and the same."""
    model = make_tokenizer("sqvae")
    with pytest.raises(NotImplementedError, match="dynamo=True"):
        torch.onnx.export(Encode(model), (images(model, 2),), tmp_path / "encoder.onnx", dynamo=False)
