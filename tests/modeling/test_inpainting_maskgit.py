"""What `MaskGitModel.generate` takes beside tensors: names of classes, masks that are pictures, pixels to keep."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.modeling.inpainting_maskgit import keep_outside

from .test_generation_arguments import HOLE, TOKENS
from .test_generation_maskgit import GROUPED, TOKENIZER, make_model, seeded


@pytest.mark.parametrize("labels", ["dog", ["dog"], np.array(["dog"]), "1", 1, [1], np.array([1]), torch.tensor(1)])
def test_classes_have_names(labels):
    """A name makes the images of its number, as does a number in any form."""
    model = make_model(id2label={0: "cat", 1: "dog", 2: "7"})
    expected = model.generate(1, num_steps=2, generator=seeded(0)).image_tokens

    assert torch.equal(model.generate(labels, num_steps=2, generator=seeded(0)).image_tokens, expected)


def test_names_go_before_numbers_and_mix_with_them():
    """Text that is a name is that class, even if it looks like a number; others count from 0."""
    model = make_model(id2label={0: "cat", 1: "dog", 2: "0"})
    expected = model.generate([2, 0, 1, -1], num_steps=2, generator=seeded(0)).image_tokens

    assert torch.equal(model.generate(["0", "cat", 1, "-1"], num_steps=2, generator=seeded(0)).image_tokens, expected)


def test_a_name_that_two_classes_have_is_refused():
    """Which one is meant cannot be told, but the numbers can."""
    model = make_model(id2label={0: "crane", 1: "dog", 2: "crane"})
    with pytest.raises(ValueError, match=r"Several classes have the name 'crane': give one of the numbers \[0, 2\]"):
        model.generate(["dog", "crane"])
    with pytest.raises(ValueError, match="no class 'cat'. The model has no classes"):
        make_model(num_classes=0, id2label={}).generate("cat")


def picture(white, size=(16, 16)):
    """A black picture, width x height, with a white box (left, top, right, bottom)."""
    image = Image.new("L", size)
    image.paste(255, white)
    return image


@pytest.mark.parametrize("tokenizer", [TOKENIZER, GROUPED, TOKENIZER | {"pixel_range": [0.0, 1.0]}])
def test_a_mask_that_is_a_picture(tokenizer):
    """White is made anew, whatever the mode and the size; a list has one for each image."""
    model = make_model(tokenizer)
    pixel_values = torch.rand(1, 3, 16, 16, generator=seeded(1))
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, 8:] = True

    def tokens(mask, **arguments):
        return model.generate(
            pixel_values=pixel_values, mask=mask, num_steps=2, generator=seeded(0), **arguments
        ).image_tokens

    expected = tokens(mask)
    large = picture((24, 0, 48, 48), (48, 48))
    for each in (picture((8, 0, 16, 16)), large, large.convert("1"), large.convert("RGB"), [large], mask.numpy()):
        assert torch.equal(tokens(each), expected)
    two = tokens([picture((8, 0, 16, 16)), picture((0, 0, 16, 8))], num_images=2)
    given = model.encode(pixel_values)[0]
    assert torch.equal(two[0][:, :2], given[:, :2]) and torch.equal(two[1][2:], given[2:])
    assert not torch.equal(two[0], given) and not torch.equal(two[1], given)


@pytest.mark.parametrize(
    "mask, message",
    [
        (Image.new("L", (16, 16)), "The mask is black where the model sees it"),
        (picture((0, 0, 1, 1), (512, 512)), "The mask is black where the model sees it.*16 x 16 pixels: thin lines"),
        (picture((0, 0, 9, 9), (32, 16)), r"another aspect ratio than the images: it has 32 x 16 pixels, .* 16 x 16"),
        (picture((0, 0, 9, 9), (4, 5)), "it has 4 x 5 pixels, the images 16 x 16"),
        ([picture((0, 0, 9, 9)), Image.new("L", (16, 16))], "The mask is black"),
        ([picture((0, 0, 9, 9))] * 3, "2 images.*3 in `mask`"),
    ],
)
def test_pictures_that_are_no_masks_are_told(mask, message):
    """All black, vanishing, of another aspect ratio, or too many."""
    with pytest.raises(ValueError, match=message):
        make_model().generate(pixel_values=torch.zeros(2, 3, 16, 16), mask=mask, num_images=2)


def test_a_mask_that_is_false_everywhere_is_told(caplog):
    """Code may come to it, so it is a warning; where some image has a token to renew there is none."""
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    model = make_model()
    out = model.generate(image_tokens=TOKENS, mask=mask)
    assert torch.equal(out.image_tokens, TOKENS) and "`mask` is False everywhere" in caplog.text
    caplog.clear()
    mask[1, 0, 0] = True
    model.generate(image_tokens=TOKENS, mask=mask)
    assert not caplog.text


@pytest.mark.parametrize("tokenizer", [TOKENIZER, GROUPED, TOKENIZER | {"pixel_range": [0.0, 1.0]}])
@pytest.mark.parametrize("kind", ["pixels", "cells", "picture"])
def test_pixels_outside_the_mask_come_back(tokenizer, kind):
    """They are those of the photograph to the bit, while those inside are the model's."""
    model = make_model(tokenizer)
    photograph = torch.randint(0, 256, (2, 3, 16, 16), generator=seeded(3), dtype=torch.uint8)
    low, high = model.config.vq_config.pixel_range
    pixel_values = photograph / 255 * (high - low) + low
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 4:12] = True
    masks = {"pixels": mask, "cells": mask[::4, ::4], "picture": picture((4, 4, 12, 12))}
    arguments = {"pixel_values": pixel_values, "mask": masks[kind], "num_steps": 2, "output_type": "pt"}
    kept = model.generate(**arguments, keep_pixels=True, generator=seeded(0))
    plain = model.generate(**arguments, generator=seeded(0))

    assert torch.equal(kept.image_tokens, plain.image_tokens)
    assert torch.equal(kept.images[..., ~mask], photograph[..., ~mask])
    assert not torch.equal(plain.images[..., ~mask], photograph[..., ~mask])
    assert not torch.equal(kept.images[..., mask], photograph[..., mask])
    single = model.generate(**arguments | {"pixel_values": pixel_values[:1]}, keep_pixels=True, num_images=3)
    assert torch.equal(single.images[..., ~mask], photograph[:1, ..., ~mask].expand(3, -1, -1))


def test_kept_pixels_leave_no_seam():
    """Where the tokenizer paints darker than the photograph, the step at the border goes; nothing is kept inside."""
    given = torch.full((1, 1, 32, 32), 0.5)
    given[..., 8:24, 8:24] = -1  # what is to be replaced
    made = torch.full((1, 1, 32, 32), 0.2)  # everywhere 0.3 too dark
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    row = keep_outside(given, made, mask, width=4)[0, 0, 16]

    assert torch.equal(row[:8], given[0, 0, 16, :8]) and torch.equal(row[24:], given[0, 0, 16, 24:])
    assert (row[7:25].diff().abs() < 0.1).all() and row[12:20] == pytest.approx(0.2)
    given = torch.full((1, 1, 32, 32), 0.5)
    given[..., 16, :] = -1
    line = given[:, 0] < 0  # a line of one pixel is replaced as well
    assert keep_outside(given, made, line, width=4)[0, 0, 16] == pytest.approx(0.5)


def test_pixels_can_only_be_kept_if_given():
    """Tokens alone have none, and without a mask there is no outside."""
    for arguments in ({}, {"image_tokens": TOKENS, "mask": HOLE}):
        with pytest.raises(ValueError, match="`keep_pixels` needs the pixels that are kept: pass `pixel_values`"):
            make_model().generate(keep_pixels=True, **arguments)
