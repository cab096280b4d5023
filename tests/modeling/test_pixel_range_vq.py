"""The range of the pixels: a tokenizer in [0, 1] and its twin in [-1, 1] see, paint and measure the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification
from transformers import pipeline as transformers_pipeline

from hf_vq import (
    MaskGitConfig,
    MaskGitModel,
    VQConfig,
    VQImageClassificationConfig,
    VQImageProcessor,
    VQModel,
    VQModelForImageClassification,
)
from hf_vq.modeling.pixel_range_vq import SIGNED, UNIT, convert_pixels, pixel_range_of, require_pixel_range

from ..twin_tokenizers import twin_tokenizers

# Its overloads know the tasks of transformers alone.
pipeline: Any = transformers_pipeline
RANGES = [list(SIGNED), list(UNIT)]
SQVAE: dict[str, Any] = {"architecture": "sqvae", "image_size": 16, "base_channels": 8, "num_codes": 16}
CLASSIFIER: dict[str, Any] = {"image_size": 16, "base_channels": 4, "num_codes": 8, "num_labels": 2}


def photograph(seed: int = 0) -> Image.Image:
    """A picture of random colors."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def generators(**fields: Any) -> list[MaskGitModel]:
    """The same generator with each of the twins inside."""
    models = []
    for tokenizer in twin_tokenizers():
        torch.manual_seed(1)
        config = MaskGitConfig(
            vq_config=tokenizer.config, num_classes=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        models.append(MaskGitModel(config, tokenizer=tokenizer).eval())
    return models


def distance(first: Any, second: Any) -> int:
    """The largest difference of two lists of pictures, in 8-bit levels; they must not be blank."""
    arrays = [np.stack([np.asarray(image) for image in images]).astype(int) for images in (first, second)]
    assert arrays[0].std() > 20
    return int(abs(arrays[0] - arrays[1]).max())


def make_old(folder: Path) -> None:
    """Takes the field out of a folder's configuration, as an older version wrote it."""
    settings = json.loads((folder / "config.json").read_text())
    del settings.get("vq_config", settings)["pixel_range"]
    (folder / "config.json").write_text(json.dumps(settings))


# ---- the field


@pytest.mark.parametrize("config_class", [VQConfig, VQImageClassificationConfig])
def test_the_field(config_class: Callable[..., Any], tmp_path: Path) -> None:
    """[-1, 1] by default, [0, 1] in any spelling, saved as a list; every other range is refused with both that are."""
    assert config_class().pixel_range == [-1.0, 1.0]
    for spelling in ([0.0, 1.0], (0, 1)):
        config = config_class(pixel_range=spelling)
        config.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["pixel_range"] == [0.0, 1.0]
        assert type(config).from_pretrained(tmp_path).pixel_range == [0.0, 1.0]
    for wrong in ([0.0, 255.0], [1.0, -1.0], [0.0], [-1.0, 0.0, 1.0]):
        with pytest.raises(StrictDataclassError, match=r"`pixel_range` must be \[-1.0, 1.0\] or \[0.0, 1.0\], got \["):
            config_class(pixel_range=wrong)
    config.pixel_range = [0.0, 255.0]
    with pytest.raises(StrictDataclassError, match=r"must be \[-1.0, 1.0\] or \[0.0, 1.0\], got \[0.0, 255"):
        config.save_pretrained(tmp_path)


def test_conversions_are_exact() -> None:
    """The same bits as the plain formulas; the same tensor where nothing is to be done."""
    pixels = torch.rand(1000, dtype=torch.float32) * 3 - 1
    assert convert_pixels(pixels, SIGNED, [-1.0, 1.0]) is pixels
    assert torch.equal(convert_pixels(pixels, SIGNED, UNIT), (pixels + 1) / 2)
    assert torch.equal(convert_pixels(pixels, UNIT, SIGNED), 2.0 * pixels - 1.0)


# ---- the image processor


@pytest.mark.parametrize("pixel_range", RANGES)
@pytest.mark.parametrize("make", [lambda config: config, lambda config: MaskGitConfig(vq_config=config)])
def test_the_processor_of_a_configuration(pixel_range: list[float], make: Callable[[VQConfig], Any]) -> None:
    """Size, channels and range are the configuration's, a generator's its tokenizer's; `postprocess` inverts it."""
    processor = VQImageProcessor.for_config(make(VQConfig(image_size=32, num_channels=1, pixel_range=pixel_range)))
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32))
    pixels = processor(levels, return_tensors="pt").pixel_values

    assert pixels.shape == (1, 1, 32, 32) and [pixels.min(), pixels.max()] == pixel_range
    assert pixel_range_of(processor) == pixel_range
    assert np.array_equal(np.asarray(processor.postprocess(pixels)[0]), np.asarray(levels))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]}, [-1.0, 1.0]),
        ({"image_mean": 0.0, "image_std": 1.0}, [0.0, 1.0]),
        ({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, None),
        ({"image_mean": [0.5, 0.5, 0.0], "image_std": [0.5, 0.5, 1.0]}, None),
        ({"do_normalize": False, "do_rescale": False}, None),
    ],
)
def test_the_range_of_a_processor(
    fields: dict[str, Any], expected: list[float] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It follows from what becomes of black and of white. Neither range is a warning, the other one an error."""
    processor = VQImageProcessor(**fields)
    assert pixel_range_of(processor) == expected
    for pixel_range in RANGES:
        config = VQConfig(pixel_range=pixel_range)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="hf_vq.modeling.pixel_range_vq"):
            if expected in (None, pixel_range):
                require_pixel_range(processor, config)
            else:
                with pytest.raises(ValueError, match=r"makes pixels in \[.*configuration says `pixel_range=\["):
                    require_pixel_range(processor, config)
        assert ("a range of its own" in caplog.text) == (expected is None)


# ---- the models


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_twins_see_paint_and_measure_the_same(kind: str) -> None:
    """Tokens, pictures, and a loss that is told on [0, 1] by both."""
    signed, unit = twin_tokenizers(reconstruction_loss=kind)
    outs, pictures = [], []
    for model in (signed, unit):
        processor = VQImageProcessor.for_config(model.config)
        pixels = processor([photograph(seed) for seed in range(4)], return_tensors="pt").pixel_values
        with torch.no_grad():
            outs.append(model(pixels))
            decoded = model.decode(model.encode(pixels).image_tokens).decoded_pixel_values
        pictures.append(processor.postprocess(decoded))

    assert torch.equal(outs[0].image_tokens, outs[1].image_tokens) and outs[0].image_tokens.unique().numel() > 5
    for name in ("reconstruction_loss", "commitment_loss", "loss"):
        torch.testing.assert_close(getattr(outs[0], name), getattr(outs[1], name), rtol=1e-5, atol=1e-6)
    assert distance(*pictures) <= 1


def test_the_sigmoid_of_a_decoder_spans_the_range() -> None:
    """A "sqvae" of the same weights paints the same picture in either range."""
    decoded = []
    for pixel_range in RANGES:
        torch.manual_seed(0)
        model = VQModel(VQConfig(**SQVAE, pixel_range=pixel_range)).eval()
        with torch.no_grad():
            model.get_submodule("decoder.convt")[-2].get_parameter("weight").mul_(1000)  # type: ignore[index]
            decoded.append(model.decode(torch.arange(16).view(1, 4, 4)).decoded_pixel_values)
        assert (decoded[-1].min(), decoded[-1].max()) == pytest.approx(pixel_range, abs=1e-3)
    assert torch.equal(decoded[0], 2.0 * decoded[1] - 1.0)


@pytest.mark.parametrize("pixel_range", RANGES)
def test_wrong_pixels_are_told_the_range(pixel_range: list[float]) -> None:
    """In the error of tokenizers and of classifiers."""
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    for model in (
        VQModel(VQConfig(**SQVAE, pixel_range=pixel_range)),
        VQModelForImageClassification(VQImageClassificationConfig(**CLASSIFIER, pixel_range=pixel_range)),
    ):
        with pytest.raises(ValueError, match=rf"numbers in \[{pixel_range[0]:g}, 1\], got torch.uint8"):
            model(pixels)


@pytest.mark.parametrize("pixel_range", RANGES)
def test_floats_of_an_unscaled_image_are_refused(pixel_range: list[float]) -> None:
    """0 to 255 in any floating dtype, even when most of it is dark; outliers of a scaled image are none of these."""
    unscaled = torch.from_numpy(np.array(photograph())).permute(2, 0, 1).unsqueeze(0).float()
    tokenizer = VQModel(VQConfig(**SQVAE, pixel_range=pixel_range)).eval()
    classifier = VQModelForImageClassification(VQImageClassificationConfig(**CLASSIFIER, pixel_range=pixel_range))
    generator = MaskGitModel(
        MaskGitConfig(vq_config=tokenizer.config, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    for take in (tokenizer.encode, tokenizer, classifier, classifier.eval(), generator.encode):
        for pixels in (unscaled, unscaled.half(), unscaled / 10, torch.full_like(unscaled, 255)):
            with pytest.raises(ValueError, match=rf"must be in \[{pixel_range[0]:g}, 1\], got values of .* 8-bit"):
                take(pixels)
    for pixels in (unscaled / 255, (unscaled / 255 - 0.45) / 0.22, unscaled * 1e4, unscaled - 128):
        assert tokenizer.encode(pixels).image_tokens.shape == (1, 4, 4)


@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_generators_paint_the_same(output_type: str) -> None:
    """New images, and images with a part made anew."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    new, renewed = [], []
    for model in generators():
        seeds: list[dict[str, Any]] = [
            {"generator": torch.Generator().manual_seed(3), "output_type": output_type, "num_steps": 4}
            for _ in range(2)
        ]
        pixels = VQImageProcessor.for_config(model.config)(photograph(), return_tensors="pt").pixel_values
        new.append(model.generate(class_labels=[0, 1], **seeds[0]).images)
        renewed.append(model.generate(pixel_values=pixels, mask=mask, **seeds[1]).images)
    assert distance(*new) <= 1 and distance(*renewed) <= 1


# ---- pipelines


def test_pipelines_paint_the_same(tmp_path: Path) -> None:
    """Loaded from folders by name."""
    results = []
    model: Any
    for number, model in enumerate(twin_tokenizers()):
        model.save_pretrained(tmp_path / str(number))
        VQImageProcessor.for_config(model.config).save_pretrained(tmp_path / str(number))
        pipe = pipeline("image-tokenization", model=str(tmp_path / str(number)))
        results.append(pipe([photograph(0), photograph(1)], return_reconstruction=True))
    assert distance(*([row["reconstruction"] for row in rows] for rows in results)) <= 1
    assert all(torch.equal(a["image_tokens"], b["image_tokens"]) for a, b in zip(*results, strict=True))

    results = []
    for model in generators():
        pipe = pipeline("image-generation", model=model)
        results.append(pipe([0, 1], num_steps=4, generator=torch.Generator().manual_seed(0)))
    assert distance(*([row["image"] for row in rows] for rows in results)) <= 1


def test_a_pipeline_refuses_the_processor_of_the_other_range(tmp_path: Path) -> None:
    """Its tokens would be wrong without a word."""
    twin_tokenizers()[1].save_pretrained(tmp_path)
    VQImageProcessor(image_size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"makes pixels in \[-1.0, 1.0\], but .*`pixel_range=\[0.0, 1.0\]`"):
        pipeline("image-tokenization", model=str(tmp_path))


# ---- older checkpoints


@pytest.mark.parametrize(("do_normalize", "expected"), [(True, [-1.0, 1.0]), (False, [0.0, 1.0]), (None, [-1.0, 1.0])])
def test_an_old_processor_tells_the_range(do_normalize: bool | None, expected: list[float], tmp_path: Path) -> None:
    """Of tokenizers, generators and classifiers; without a processor it is the default."""
    models = (
        VQModel(VQConfig(**SQVAE)),
        generators()[0],
        VQModelForImageClassification(VQImageClassificationConfig(**CLASSIFIER)),
    )
    model: Any
    for number, model in enumerate(models):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        make_old(folder)
        if do_normalize is not None:
            VQImageProcessor(image_size=16, do_normalize=do_normalize).save_pretrained(folder)
        auto: Any = AutoModelForImageClassification if number == 2 else AutoModel
        loaded = [type(model).from_pretrained(folder), auto.from_pretrained(folder)]
        loaded.append(type(model).from_pretrained(folder, output_loading_info=True)[0])
        for found in loaded:
            assert getattr(found.config, "vq_config", found.config).pixel_range == expected
        if isinstance(found, MaskGitModel):
            assert found.tokenizer.config.pixel_range == expected
        found.save_pretrained(folder / "again")
        assert json.loads((folder / "again" / "config.json").read_text()).get("pixel_range", expected) == expected


def test_an_old_generator_paints_as_it_should(tmp_path: Path) -> None:
    """From a folder in which only the image processor knows of [0, 1]; the decoder learns of it, too."""
    signed, unit = generators()
    unit.save_pretrained(tmp_path)
    VQImageProcessor.for_config(unit.config).save_pretrained(tmp_path)
    make_old(tmp_path)
    images = [
        model.eval().generate(class_labels=[0, 1], num_steps=4, generator=torch.Generator().manual_seed(0)).images
        for model in (signed, AutoModel.from_pretrained(tmp_path))
    ]
    assert distance(*images) <= 1


def test_a_range_that_is_said_is_not_overruled(tmp_path: Path) -> None:
    """The processor beside it is asked only where the configuration says nothing."""
    VQModel(VQConfig(**SQVAE)).save_pretrained(tmp_path)
    VQImageProcessor(image_size=16, do_normalize=False).save_pretrained(tmp_path)
    assert VQModel.from_pretrained(tmp_path).config.pixel_range == [-1.0, 1.0]
