"""Classifiers with a quantized layer: what the layer does in each kind of network."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_vq import VQImageClassificationConfig, VQImageProcessor, VQModelForImageClassification, no_vq

RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
TOKENS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
VIT: dict[str, Any] = {"model_type": "vit", **TOKENS, "intermediate_size": 24, "patch_size": 4}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 1],
    "image_size": 16,
    "patch_size": 2,
    "window_size": 4,
}
CONVNEXT: dict[str, Any] = {
    "model_type": "convnext",
    "patch_size": 2,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1] * 4,
}
# Name -> backbone, channels of the middle layer, shape of the tokens of an image.
BACKBONES: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "alexnet": (None, 24, (2, 2)),
    "resnet": (RESNET, 8, (4, 4)),
    "convnext": (CONVNEXT, 8, (4, 4)),
    "vit": (VIT, 16, (17,)),
    "dinov2": ({"model_type": "dinov2", **TOKENS, "patch_size": 4}, 16, (17,)),
    "vitdet": ({"model_type": "vitdet", **TOKENS, "patch_size": 4}, 16, (4, 4)),
    "swin": (SWIN, 16, (16,)),
    "pvt_v2": (  # its blocks return tuples in tuples
        {
            "model_type": "pvt_v2",
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1] * 4,
            "num_attention_heads": [1] * 4,
            "sr_ratios": [1] * 4,
        },
        8,
        (4,),
    ),
    "lw_detr_vit": (  # puts windows in the place of images
        {**TOKENS, "model_type": "lw_detr_vit", "patch_size": 4, "num_windows": 4, "window_block_indices": [0]},
        16,
        (16,),
    ),
    "vitpose_backbone": ({"model_type": "vitpose_backbone", **TOKENS, "patch_size": 8}, 16, (4,)),
}


def make(backbone: Any = None, seed: int = 0, **fields: Any) -> VQModelForImageClassification:
    """Makes a tiny classifier of three classes for images of 16 pixels."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"num_labels": 3, "image_size": 16, "base_channels": 4, "num_codes": 16, **fields}
    return VQModelForImageClassification(VQImageClassificationConfig(backbone_config=backbone, **settings))


def pixels(seed: int = 7) -> torch.Tensor:
    """Draws four random images."""
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", BACKBONES)
def test_the_layer_in_the_middle_gives_codes_and_nothing_else(name: str) -> None:
    """In every kind of network the layers after it see codes, and the gradient reaches the layers before it."""
    backbone, size, grid = BACKBONES[name]
    model = make(backbone, commitment_weight=3.0).train()
    assert model.config.quantized_size == size
    for _ in range(30):  # so that batch norms know their statistics; k-means makes codes of the first vectors
        model(pixels(seed=8))
    out = model(pixels(), labels=torch.tensor([0, 1, 2, 0]))
    out.loss.backward()
    assert out.image_tokens.shape == (4, *grid)
    assert out.loss.item() == pytest.approx(out.classification_loss.item() + 3 * out.commitment_loss.item(), rel=1e-6)
    assert out.commitment_loss > 0 and out.perplexity > 1
    first = model.get_input_embeddings().weight
    assert first.grad is not None and first.grad.abs().sum() > 0
    assert model.quantize.codebook.weight.grad.abs().sum() > 0

    model.eval()
    with torch.no_grad():
        before = model(pixels()).logits
        # With one code for everything all images look the same, because nothing goes around the codes.
        model.quantize.codebook.weight.copy_(
            model.quantize.codebook.weight[:1].expand_as(model.quantize.codebook.weight)
        )
        after = model(pixels()).logits
    assert before.std(0).max() > 100 * after.std(0).max() + 1e-8


@pytest.mark.parametrize("name", ["alexnet", "resnet", "vit"])
def test_without_quantization_the_backbone_is_as_it_is(name: str) -> None:
    """Under `no_vq` the features are those of the backbone alone, with its weights under its own names."""
    backbone = BACKBONES[name][0]
    model = make(backbone).eval()
    with torch.no_grad():
        with no_vq(model):
            out = model(pixels(), labels=torch.zeros(len(pixels()), dtype=torch.long))
        quantized = model(pixels())
    assert out.image_tokens is None and out.perplexity is None and out.commitment_loss == 0
    assert not torch.equal(out.logits, quantized.logits)
    if name == "resnet":
        alone = AutoBackbone.from_config(AutoConfig.for_model(**RESNET)).eval()
        alone.load_state_dict(model.backbone.state_dict())
        with torch.no_grad():
            features = alone(pixels()).feature_maps[-1].mean((2, 3))
        torch.testing.assert_close(model.classifier(features), out.logits)


@pytest.mark.parametrize(
    ("which", "size", "tokens"),
    [(0, 4, (4, 4)), (-2, 64, ()), (6, 64, ()), ("layers.1.norm", 12, (4, 4)), ("layers.1.pool", 12, (2, 2))],
)
def test_the_layer_can_be_chosen(which: int | str, size: int, tokens: tuple[int, ...]) -> None:
    """A block is chosen by number, also from the end. Any module is chosen by name, also one without positions."""
    model = make(quantized_layer=which).eval()
    out = model(pixels())
    assert model.config.quantized_size == size
    assert out.image_tokens.shape == (4, *tokens)


@pytest.mark.parametrize("kind", ["dinov2", "beit"])
def test_the_last_layer_is_quantized_before_it_is_recorded(kind: str) -> None:
    """transformers' own hooks take the feature maps from the layer's output, so other codes give other logits."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 8}
    backbone = {"model_type": kind, "intermediate_size": 16, **sizes}
    torch.manual_seed(0)
    config = VQImageClassificationConfig(backbone_config=backbone, image_size=32, num_codes=4, quantized_layer=-1)
    model = VQModelForImageClassification(config).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = model(images).logits
        model.quantize.codebook.weight.normal_()
        assert (model(images).logits - before).abs().max() > 1e-3


def test_features_that_lie_last_are_the_channels() -> None:
    """ConvNeXt has channels behind height and width inside its blocks, for images of any shape."""
    model = make(CONVNEXT, quantized_layer="encoder.stages.1.layers.0.act").eval()
    assert (model.config.quantized_size, model.config.quantized_axis) == (32, -1)
    assert model(pixels()).image_tokens.shape == (4, 4, 4)
    assert model(torch.cat([pixels(), pixels()], -1)).image_tokens.shape == (4, 4, 8)
    # With as many channels as rows and columns: normalization and linear layers have channels last, convolutions not.
    square = {**CONVNEXT, "hidden_sizes": [8, 4, 16, 16]}
    assert make(square, quantized_layer="encoder.stages.1.layers.0.layernorm").config.quantized_axis == -1
    assert make(square, quantized_layer="encoder.stages.1.layers.0").config.quantized_axis == 1


def test_a_layer_that_shrinks_everything_still_counts() -> None:
    """Fresh PP-LCNets shrink their features to 1e-34 in evaluation and still depend on their first blocks."""
    assert make({"model_type": "pp_lcnet"}, image_size=32, quantized_layer=0).config.quantized_size == 32


def test_the_size_of_another_layer_is_told_of() -> None:
    """A configuration that has made a model gets an error if another layer is chosen later."""
    config = make().config
    config.quantized_layer = 0
    with pytest.raises(ValueError, match=r"quantized_layer=0` has 4 channels.*`quantized_size=24`.*`quantized_size=N"):
        VQModelForImageClassification(config)(pixels())


def test_another_backbone_in_its_place_is_told_of() -> None:
    """Another backbone has no quantized layer, which is an error."""
    model = make(RESNET)
    model.backbone = AutoBackbone.from_config(model.config.backbone_config)
    with pytest.raises(ValueError, match=r"ran without its quantized layer.*`model.backbone`"):
        model(pixels())


class Labeled(Dataset[dict[str, Any]]):
    """Random images of three classes."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index)) * 2 - 1
        return {"pixel_values": image, "labels": index % 3}


def test_the_trainer_of_transformers_trains_and_measures_it(tmp_path: Path) -> None:
    """With accumulation the whole loss is divided, and only the logits are predicted."""
    losses = []
    for accumulated in (1, 4):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(accumulated)),
            max_steps=1,
            per_device_train_batch_size=16 // accumulated,
            gradient_accumulation_steps=accumulated,
            per_device_eval_batch_size=5,
            learning_rate=0.0,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(
            make(dropout=0.0, kmeans_init=False, alternating_steps=0, replace_freq=0, commitment_weight=50.0),
            arguments,
            train_dataset=Labeled(),
            eval_dataset=Labeled(),
            compute_metrics=lambda found: {
                "accuracy": float((np.argmax(found.predictions, axis=1) == found.label_ids).mean())
            },
        )
        losses.append(trainer.train().training_loss)
        assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
        assert np.asarray(trainer.predict(Labeled()).predictions).shape == (16, 3)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # but for the moments of smaller batches


def test_a_layer_without_effect_is_refused() -> None:
    """The last stage of Swin returns its feature map beside its output, so its output has no effect."""
    backbone = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2}
    with pytest.raises(ValueError, match="do not depend on the output of `quantized_layer=-1`"):
        VQModelForImageClassification(
            VQImageClassificationConfig(backbone_config=backbone, image_size=32, quantized_layer=-1)
        )


@pytest.mark.parametrize(("kind", "share"), [("group", True), ("residual", False)])
def test_several_groups(kind: str, share: bool) -> None:
    """Tokens have a last axis of groups."""
    model = make(quantizer_type=kind, num_groups=2, share_codebook=share).eval()
    assert model(pixels()).image_tokens.shape == (4, 2, 2, 2)


@pytest.mark.compiles
def test_compiled_it_gives_the_same() -> None:
    """torch.compile includes the hook in one graph."""
    model = make().eval()
    with torch.no_grad():
        expected = model(pixels())
        out = torch.compile(model, backend="eager", fullgraph=True)(pixels())
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.image_tokens, expected.image_tokens)


def _checkpoint(model: Any, *settings: Any) -> None:
    """The second name is that of older versions of transformers."""
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(*settings)


@pytest.mark.parametrize("layer", [None, pytest.param("layers.0.mlp", marks=pytest.mark.module_names)])
def test_checkpointed_activations_change_no_gradient(layer: str | None) -> None:
    """Gradients are the same for a whole block, and inside one, where backward runs the quantizer again."""
    gradients = []
    for checkpointed in (False, True):
        model = make(VIT, quantized_layer=layer).train()
        if checkpointed:
            _checkpoint(model)
        torch.manual_seed(1)
        model(pixels(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        assert model.quantize.codebook.initialized and model._quantized is None
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.module_names
def test_checkpointing_that_loses_the_commitment_is_refused() -> None:
    """A quantizer inside a block that is checkpointed with reentry would have no gradient for its loss."""
    model = make(VIT, quantized_layer="layers.0.mlp").train()
    _checkpoint(model, {"use_reentrant": True})
    with pytest.raises(ValueError, match=r'"use_reentrant": False'):
        model(pixels(), labels=torch.tensor([0, 1, 2, 0]))


def test_the_quantizer_stays_in_float32(tmp_path: Path) -> None:
    """A half-precision network has float32 codes."""
    make(RESNET).save_pretrained(tmp_path)
    model = VQModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.quantize.codebook.weight.dtype == torch.float32
    assert model(pixels()).logits.dtype == torch.bfloat16


def test_gray_images_and_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline takes any picture for a network of one channel, also in batches, and asks nothing."""
    model = make({**VIT, "num_channels": 1}, num_channels=1).eval()
    model.save_pretrained(tmp_path)
    VQImageProcessor(image_size=16, num_channels=1).save_pretrained(tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("asked whether to run code"))
    picture = Image.effect_noise((24, 20), 80).convert("RGB")
    pipe = pipeline("image-classification", model=str(tmp_path))
    (best, *others) = pipe(picture)

    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        chances = model(processor(picture, return_tensors="pt").pixel_values).logits.softmax(-1)[0]
    assert best["label"] == f"LABEL_{int(chances.argmax())}" and len(others) == 2
    assert best["score"] == pytest.approx(float(chances.max()), rel=1e-5)
    answers = pipe([picture.rotate(90), picture, picture.rotate(90)], batch_size=2)
    assert [answer[0]["score"] == pytest.approx(best["score"], rel=1e-5) for answer in answers] == [False, True, False]
