"""The pipeline "image-generation": classes by number and by name, batches, generators, and what goes wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_vq import ImageGenerationPipeline, MaskGitConfig, MaskGitModel, MaskGitSampling, VQConfig, VQImageProcessor

VQ_CONFIG = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, embed_dim=4, num_codes=16)


@pytest.fixture(scope="module")
def model():
    """A small model with two named classes."""
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = MaskGitConfig(vq_config=VQ_CONFIG, num_classes=2, id2label={0: "cat", 1: "dog"}, **fields)
    model = MaskGitModel(config).eval()
    with torch.no_grad():
        model.transformer.layers[0].modulation.weight.normal_()
        model.head.weight.normal_()
    return model


@pytest.fixture(scope="module")
def pipe(model):
    return ImageGenerationPipeline(model)


def generators(count):
    """One for each image."""
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_it_makes_what_the_model_makes(pipe, model):
    """A list of classes gives a list of images with their tokens, those of `generate`."""
    options = {"num_steps": 3, "guidance_scale": 2.0, "sampler": "halton"}
    expected = model.generate(class_labels=[0, 1, 0], generator=torch.Generator().manual_seed(0), **options)
    outputs = pipe([0, "dog", "cat"], generator=torch.Generator().manual_seed(0), **options)
    sampling = MaskGitSampling(**options)
    outputs += pipe([0, "dog", "cat"], generator=torch.Generator().manual_seed(0), sampling=sampling)

    assert [output.keys() for output in outputs] == [{"image", "image_tokens"}] * 6
    for output, tokens, image in zip(outputs, [*expected.image_tokens] * 2, expected.images * 2, strict=True):
        assert torch.equal(output["image_tokens"], tokens)
        assert output["image"].tobytes() == image.tobytes()


def test_one_class_gives_one_image(pipe):
    """A number, a name, or none."""
    for inputs in (1, "dog", None):
        assert pipe(inputs, num_steps=1)["image"].size == (16, 16)
    assert len(pipe([None, None], num_steps=1)) == 2
    assert pipe([], num_steps=1) == []


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_with_a_generator_each_the_batch_size_does_not_matter(pipe, batch_size):
    """Five images in batches of any size are the same."""
    expected = pipe([0, 1, 0, 1, 1], num_steps=3, generator=generators(5))
    outputs = pipe([0, 1, 0, 1, 1], num_steps=3, generator=generators(5), batch_size=batch_size)

    for output, other in zip(outputs, expected, strict=True):
        assert torch.equal(output["image_tokens"], other["image_tokens"])
    assert not torch.equal(outputs[3]["image_tokens"], outputs[4]["image_tokens"])


def test_a_saved_model_brings_the_pipeline(model, tmp_path):
    """`pipeline` finds it by its task, or by the config alone; so after saving the pipeline again."""
    model.save_pretrained(tmp_path / "model")
    expected = ImageGenerationPipeline(model)([0, 1], num_steps=2, generator=generators(2))
    pipe = pipeline("image-generation", model=str(tmp_path / "model"))
    pipe.save_pretrained(tmp_path / "pipe")
    for loaded in (pipe, pipeline("image-generation", model=str(tmp_path / "pipe"), num_steps=2)):
        outputs = loaded(["cat", "dog"], num_steps=2, generator=generators(2))
        assert isinstance(loaded, ImageGenerationPipeline)
        for output, other in zip(outputs, expected, strict=True):
            assert torch.equal(output["image_tokens"], other["image_tokens"])


def test_seeds_and_how_many(pipe):
    """Image i has the seed `seed + i` in batches of any size; one class serves all, and `num_images` gives a list."""
    expected = pipe(["dog"] * 4, num_steps=3, generator=generators(4))
    for outputs in (
        pipe("dog", num_images=4, seed=0, num_steps=3),
        pipe(["dog"], num_images=4, seed=0, num_steps=3, batch_size=3),
        [pipe(1, seed=0, num_steps=3), *pipe(1, num_images=3, seed=1, num_steps=3)],
    ):
        assert [each["image_tokens"].tolist() for each in outputs] == [e["image_tokens"].tolist() for e in expected]
    assert len(pipe(num_images=2, num_steps=1)) == 2 and len(pipe("dog", num_images=1, num_steps=1)) == 1


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two photographs of 24 x 40 pixels, with files of the first and of a mask whose lower half is white."""
    folder = tmp_path_factory.mktemp("photographs")
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 24, 3), dtype=np.uint8)) for seed in (0, 1)
    ]
    images[0].save(folder / "photo.png")
    mask = Image.new("L", (24, 40))
    mask.paste(255, (0, 20, 24, 40))
    mask.save(folder / "mask.png")
    return images, mask, folder


def test_parts_of_an_image_are_made_anew(pipe, model, photographs):
    """The half outside the mask keeps its tokens, and its pixels on request; files and images in memory are alike."""
    images, mask, folder = photographs
    seen = VQImageProcessor(image_size=16)(images, return_tensors="pt").pixel_values
    given = model.encode(seen)
    options = {"num_steps": 3, "seed": 0}
    expected = pipe("dog", image=images[0], mask=mask, **options)

    assert torch.equal(expected["image_tokens"][:2], given[0, :2])
    assert not torch.equal(expected["image_tokens"][2:], given[0, 2:])
    small, boolean = mask.resize((12, 20), Image.Resampling.NEAREST), np.asarray(mask) > 0
    for image, each in ((folder / "photo.png", str(folder / "mask.png")), (np.asarray(images[0]), boolean)):
        for own in (each, small):
            assert torch.equal(pipe("dog", image=image, mask=own, **options)["image_tokens"], expected["image_tokens"])
    two = pipe(["dog", "cat"], image=images, mask=mask, keep_pixels=True, batch_size=1, **options)
    assert torch.equal(two[0]["image_tokens"], expected["image_tokens"])
    for output, pixels in zip(two, VQImageProcessor(image_size=16).postprocess(seen, "np"), strict=True):
        assert np.array_equal(np.asarray(output["image"])[:8], pixels[:8])
        assert not np.array_equal(np.asarray(output["image"])[8:], pixels[8:])
    assert len(pipe(image=images[0], mask=mask, num_images=3, num_steps=1)) == 3


def test_other_formats(pipe, model, tmp_path):
    """Arrays, and text that JSON holds and the image processor reads; also as a setting of the pipeline."""
    expected = pipe(["dog", "cat"], num_steps=2, seed=0)
    arrays = pipe(["dog", "cat"], num_steps=2, seed=0, output_format="numpy")
    model.save_pretrained(tmp_path)
    text = pipeline("image-generation", model=str(tmp_path), output_format="json", seed=0)(["dog", "cat"], num_steps=2)
    for output, array, own in zip(expected, arrays, json.loads(json.dumps(text)), strict=True):
        assert array["image"].dtype == np.uint8 and np.array_equal(array["image"], np.asarray(output["image"]))
        assert np.array_equal(array["image_tokens"], output["image_tokens"].numpy())
        assert own["image_tokens"] == output["image_tokens"].tolist()
        assert VQImageProcessor().fetch_images(own["image"]).tobytes() == output["image"].tobytes()


@pytest.mark.parametrize(
    "inputs, arguments, message",
    [
        ("cow", {}, r"no class 'cow'. .*The classes are 'cat', 'dog'; numbers work"),
        ("Dogs", {}, "no class 'Dogs'. Did you mean 'dog'?"),
        (2, {}, r"must be in \[0, 2\)"),
        ([0, None], {}, "cannot be mixed"),
        ([0, 1], {"generator": generators(3)}, "each of the 2 images, got 3"),
        (0, {"mask": torch.ones(4, 4) > 0}, "`image` and `mask` need each other"),
        (0, {"image": Image.new("RGB", (9, 9)), "mask": Image.new("L", (9, 9))}, "mask is black"),
        (
            0,
            {"image": Image.new("RGB", (9, 9)), "mask": Image.new("L", (9, 18), 255)},
            "9 x 18 pixels, the image 9 x 9",
        ),
        ([0, 1, 0], {"image": [Image.new("RGB", (9, 9))] * 2, "mask": Image.new("L", (9, 9), 255)}, "3 images.*got 2"),
        ([0, 1], {"num_images": 3}, "one of `classes` for each of the 3 images, or a single one, got 2"),
        (0, {"num_images": 0}, "`num_images` must be at least 1"),
        (0, {"seed": 0, "generator": torch.Generator()}, "`seed` or `generator`, not both"),
        (0, {"keep_pixels": True}, "`keep_pixels` needs the pixels"),
        (0, {"output_format": "pt"}, '`output_format` must be "numpy" or "json".*got .pt'),
        (0, {"steps": 3}, r"does not know \['steps'\]. Its arguments are .*'image', 'mask', 'num_images', 'seed'"),
        (0, {"num_steps": 0}, "`num_steps` must be a whole number from 1"),
        (0, {"num_steps": 17}, "`num_steps` must be from 1 to 16"),
    ],
)
def test_what_makes_no_sense_is_refused(pipe, inputs, arguments, message):
    """A message for each mistake."""
    with pytest.raises(ValueError, match=message):
        pipe(inputs, **arguments)
