"""The pipeline "image-generation": classes by number and by name, batches, generators, and what goes wrong."""

import pytest
import torch
from transformers import pipeline

from hf_vq import ImageGenerationPipeline, MaskGitConfig, MaskGitModel, MaskGitSampling, VQConfig

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


@pytest.mark.parametrize(
    "inputs, arguments, message",
    [
        ("cow", {}, r"no class 'cow'. The classes are \['cat', 'dog'\]"),
        (2, {}, r"must be in \[0, 2\)"),
        ([0, None], {}, "cannot be mixed"),
        ([0, 1], {"generator": generators(3)}, "each of the 2 images, got 3"),
        (0, {"mask": torch.ones(4, 4) > 0}, r"does not know \['mask'\]"),
        (0, {"num_steps": 0}, "`num_steps` must be a whole number from 1"),
        (0, {"num_steps": 17}, "`num_steps` must be from 1 to 16"),
    ],
)
def test_what_makes_no_sense_is_refused(pipe, inputs, arguments, message):
    """A message for each mistake."""
    with pytest.raises(ValueError, match=message):
        pipe(inputs, **arguments)
