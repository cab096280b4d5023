"""Arguments of `MaskGitModel.generate`: how many images, and what is refused."""

import pytest
import torch

from hf_vq import MaskGitSampling

from .test_generation_maskgit import make_model, seeded


def test_how_many_images():
    """One entry serves all images; otherwise there is one for each."""
    model = make_model()

    def count(**arguments):
        return len(model.generate(num_steps=1, **arguments).images)

    assert count() == 1 and count(num_images=3) == 3
    assert count(class_labels=1) == 1 and count(class_labels=[1, 2]) == 2
    assert count(class_labels=1, num_images=3) == 3
    assert count(class_labels=1, guidance_scale=[1.0, 2.0]) == 2


TOKENS = torch.zeros(2, 4, 4, dtype=torch.long)


HOLE = torch.ones(4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"class_labels": [3]}, r"must be in \[0, 3\).*got 3 to 3"),
        ({"class_labels": [0, -2]}, r"must be in \[0, 3\).*got -2 to 0"),
        ({"class_labels": [0.5]}, "`class_labels` must be integers"),
        ({"class_labels": []}, "got .*0 in `class_labels`"),
        ({"class_labels": [0, 1], "num_images": 3}, "each of the 3 images.*2 in `class_labels`"),
        ({"num_images": 0}, "`num_images` must be at least 1"),
        ({"num_steps": 0}, "`num_steps` must be a whole number from 1 to the number of tokens of an image, got 0"),
        ({"num_steps": 17}, "`num_steps` must be from 1 to 16, the tokens of an image, got 17"),
        ({"image_tokens": TOKENS}, "need each other"),
        ({"mask": HOLE}, "need each other"),
        ({"image_tokens": TOKENS, "mask": HOLE[:3]}, r"\(4, 4\) or \(batch, 4, 4\).*or \(16, 16\).*got \(3, 4\)"),
        ({"image_tokens": TOKENS, "mask": HOLE.long()}, "must be booleans, True where new tokens"),
        ({"image_tokens": TOKENS, "mask": HOLE.expand(3, 4, 4)}, "3 in `mask`"),
        ({"image_tokens": TOKENS[:, :3], "mask": HOLE[:3]}, "made for grids of 4 x 4 tokens, got 3 x 4"),
        ({"image_tokens": TOKENS + 16, "mask": HOLE & (HOLE.cumsum(0) > 1)}, "has 1 x 16 codes, the ids are 16 to 16"),
        ({"image_tokens": TOKENS, "pixel_values": torch.zeros(1, 3, 16, 16), "mask": HOLE}, "not both"),
        ({"pixel_values": torch.zeros(1, 1, 16, 16), "mask": HOLE}, "images of 3 channels, got 1"),
        ({"guidance_scale": 2.0}, "no effect without `class_labels`"),
        ({"class_labels": 0, "guidance_scale": float("nan")}, "must be finite"),
        ({"num_steps": 2.5}, "`num_steps` must be a whole number.*got 2.5"),
        ({"guidance_power": 2.0}, "`guidance_power` has no effect"),
        ({"guidance_power": 0.0, "guidance_schedule": "power_cosine"}, "`guidance_power` must be above 0, got 0.0"),
        ({"guidance_schedule": "cosine"}, '`guidance_schedule` must be "constant", "linear" or "power_cosine", got'),
        ({"choice_temperature": 1.0, "sampler": "halton"}, "`choice_temperature` has no effect"),
        ({"choice_temperature": -1.0}, "`choice_temperature` must be at least 0"),
        ({"temperature": 0.0}, "`temperature` must be above 0.*top_k=1"),
        ({"temperature": (1.0, 0.0)}, "`temperature` must be above 0"),
        ({"temperature": (1.0,)}, "`temperature` must be one number, or the first and the last"),
        ({"top_k": 0}, "`top_k` must be a whole number of at least 1"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"`top_p` must be in \(0, 1\]"),
        ({"sampler": "random"}, '"confidence" or "halton", got'),
        ({"schedule": "root"}, '`schedule` must be "arccos", "cosine", "linear" or "square", got .root'),
        ({"output_type": "np"}, '"pil" or "pt", got'),
        ({"generator": seeded(0, 1), "num_images": 3}, "one for each of the 3 images, got a list of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    """A message for each mistake, also for arguments that would have no effect; the mode is restored."""
    model = make_model().train()

    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)
    assert model.training


def test_options_come_one_by_one_or_together():
    """A `MaskGitSampling` does what its fields do by keyword, and keywords win over it."""
    model = make_model()
    options = {"num_steps": 4, "guidance_scale": 3.0, "temperature": (2.0, 0.5), "sampler": "halton", "top_k": 5}
    expected = model.generate([0, 1], generator=seeded(0), **options).image_tokens
    together = model.generate([0, 1], generator=seeded(0), sampling=MaskGitSampling(**options)).image_tokens
    other = MaskGitSampling(**options | {"num_steps": 2, "top_k": None})
    mixed = model.generate([0, 1], generator=seeded(0), sampling=other, num_steps=4, top_k=5).image_tokens

    assert torch.equal(expected, together) and torch.equal(expected, mixed)
    assert not torch.equal(expected, model.generate([0, 1], generator=seeded(0), sampling=other).image_tokens)


@pytest.mark.parametrize(
    "name, message",
    [
        ("guidance_scal", "`generate` has no argument 'guidance_scal'. Did you mean 'guidance_scale'"),
        ("class_label", "Did you mean 'class_labels'"),
        ("xyz", "Its arguments are class_labels, num_images, .*top_p"),
    ],
)
def test_an_argument_that_does_not_exist(name, message):
    """The nearest one is named, whether it is an option or not."""
    with pytest.raises(TypeError, match=message):
        make_model().generate(**{name: 3})


def test_a_model_without_classes_takes_no_labels():
    """It says so, and generates without."""
    model = make_model(num_classes=0)

    with pytest.raises(ValueError, match="no classes"):
        model.generate(class_labels=[0])
    assert len(model.generate(num_steps=1).images) == 1
