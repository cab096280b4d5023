"""What the app asks its models, without the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import MaskGitConfig, MaskGitModel, VQImageProcessor
from hf_vq.app.generator_view import MAX_IMAGES, NO_CLASS, GeneratorView, painted_mask, sampling_of
from hf_vq.app.tokenizer_view import TokenizerView
from hf_vq.commands.app import AppArguments, load_views
from hf_vq.data import load_images
from hf_vq.modeling.outputs_vq import VQEncoderOutput

from ...tiny_tokens import PROCESSOR, picture, save, tiny


@pytest.fixture(scope="module")
def view() -> TokenizerView:
    """A tokenizer with a data set of the pictures that its codes are vectors of."""
    return TokenizerView(tiny(), PROCESSOR, [{"image": picture(number)} for number in range(40)])


@pytest.fixture(scope="module")
def generator() -> GeneratorView:
    """A generator of two classes."""
    torch.manual_seed(0)
    tokenizer = tiny()
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {0: "cat", 1: "dog"}
    config = MaskGitConfig(vq_config=tokenizer.config, num_classes=2, id2label=names, **sizes)
    return GeneratorView(MaskGitModel(config, tokenizer=tokenizer).eval())


def test_tokens_are_the_models_and_decode_to_its_reconstruction(view: TokenizerView, tmp_path: Path) -> None:
    """An image of another size is shown as the model sees it; a file that is no image is told."""
    picture(3).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no picture")
    seen, tokens = view.tokenize(str(tmp_path / "image.png"))
    pixels = PROCESSOR(picture(3), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = view.model(pixels, return_loss=False)

    decoded: Any = PROCESSOR.postprocess(expected.decoded_pixel_values, "np")
    plain: Any = PROCESSOR.postprocess(pixels, "np")
    assert np.array_equal(tokens, expected.image_tokens[0])
    assert np.array_equal(np.asarray(view.decode(tokens)), decoded[0])
    assert np.array_equal(np.asarray(seen), plain[0])
    with pytest.raises((OSError, ValueError), match="text.png"):
        view.tokenize(str(tmp_path / "text.png"))


def test_a_swap_changes_one_cell(view: TokenizerView) -> None:
    """And pixels near it; the tokens before stay. A code that there is not is told."""
    tokens = view.tokenize(picture(3))[1]
    before = tokens.copy()
    changed = view.swapped(tokens, (1, 2), (int(tokens[1, 2]) + 7) % 300)

    assert np.argwhere(changed != tokens).tolist() == [[1, 2]] and np.array_equal(tokens, before)
    assert not np.array_equal(np.asarray(view.decode(changed)), np.asarray(view.decode(tokens)))
    with pytest.raises(ValueError, match="no code 300: this tokenizer has the codes 0 to 299"):
        view.swapped(tokens, (0, 0), 300)


def test_the_nearest_images_are_those_with_the_code(view: TokenizerView) -> None:
    """In order of distance, each once, with a frame in the cell; those that have the code come first."""
    uses = view.uses()
    code = int(uses.argmax())
    near = view.nearest(code, 5)
    distances = [each.distance for each in near]

    assert uses.sum() == 40 * 16 and distances == sorted(distances) and near[0].is_code
    assert all(each.image.size == (160, 160) for each in near)
    vectors, tokens = view._look()
    book = view.model.quantize.get_codebook()
    best = torch.cdist(vectors.movedim(1, -1).reshape(40, 16, -1), book[code][None]).flatten(1).min(1).values
    assert distances == pytest.approx(best.sort().values[:5].tolist(), abs=1e-4)
    assert sum(each.is_code for each in view.nearest(code, 40)) >= int((tokens == code).flatten(1).any(1).sum())


def test_without_a_data_set_nothing_is_near() -> None:
    """And no code is in use."""
    view = TokenizerView(tiny(), PROCESSOR)

    assert view.nearest(3) == [] and view.uses().sum() == 0 and len(view.uses()) == 300


def test_the_data_set_is_encoded_once(view: TokenizerView, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many codes are looked at."""
    fresh = TokenizerView(view.model, PROCESSOR, view.rows)
    calls = []
    encode = fresh.model.encode

    def counted(pixels: torch.Tensor) -> VQEncoderOutput:
        calls.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(fresh.model, "encode", counted)
    for code in range(3):
        fresh.nearest(code)
    fresh.uses()

    assert calls == [32, 8]


def test_images_fill_in_step_by_step(generator: GeneratorView) -> None:
    """One picture after each step, less gray each time; the last one is what `generate` makes with these seeds."""
    sampling = sampling_of("confidence", 4, 2.0, 0.9)
    frames = [np.asarray(frame) for frame in generator.draw("dog", 4, 5, sampling)]
    gray = [(np.abs(frame.astype(int) - 128).max(-1) <= 1).mean() for frame in frames]
    out = generator.model.generate(
        class_labels=[1] * 4, generator=[torch.Generator().manual_seed(5 + i) for i in range(4)], sampling=sampling
    )

    assert len(frames) == 4 and gray == sorted(gray, reverse=True) and gray[0] > 0.3 and gray[-1] < 0.1
    factor = frames[0].shape[0] // 32
    assert np.array_equal(frames[-1][::factor, ::factor][:16, 16:], np.asarray(out.images[1]))


def test_an_image_of_no_class_can_be_asked_for(generator: GeneratorView) -> None:
    """The names come from the model; too many images are refused."""
    assert generator.classes == ["cat", "dog", NO_CLASS]
    assert len(list(generator.draw(NO_CLASS, 1, 0, sampling_of("halton", 3, 1.0, 1.0)))) == 3
    with pytest.raises(ValueError, match=f"from 1 to {MAX_IMAGES}, got 17"):
        next(generator.draw("cat", 17, 0, sampling_of("halton", 3, 1.0, 1.0)))


def test_only_what_is_painted_changes(generator: GeneratorView) -> None:
    """With `keep_pixels` the rest is the image as the model sees it; another seed makes another patch."""
    image = picture(7, (32, 32))
    layer = Image.new("RGBA", (32, 32))
    layer.paste((255, 0, 170, 255), (0, 0, 16, 16))
    mask = painted_mask([None, layer], image.size)
    sampling = sampling_of("confidence", 4, 1.0, 1.0)
    one, other = (np.asarray(generator.inpaint(image, mask, "cat", seed, sampling, True)) for seed in (0, 1))
    seen = np.asarray(PROCESSOR.postprocess(PROCESSOR(image, return_tensors="pt").pixel_values, "pil")[0])
    factor = one.shape[0] // 16
    one, other = one[::factor, ::factor], other[::factor, ::factor]

    assert (
        np.asarray(mask).sum() == 256 and np.array_equal(one[8:], seen[8:]) and np.array_equal(one[:, 8:], seen[:, 8:])
    )
    assert not np.array_equal(one[:8, :8], other[:8, :8])
    with pytest.raises(ValueError, match="white"):
        generator.inpaint(image, painted_mask([], image.size), "cat", 0, sampling, True)


def test_a_command_loads_generators_and_tokenizers(tmp_path: Any, generator: GeneratorView) -> None:
    """A generator's own tokenizer is shown; images are evenly spaced, or none; classifiers are refused by name."""
    generator.model.save_pretrained(tmp_path / "generator")
    save(tiny(), tmp_path / "tokenizer")
    tokenizer, found = load_views(AppArguments(str(tmp_path / "generator"), dataset="noto-emoji-32", max_images=5))
    alone, none = load_views(AppArguments(str(tmp_path / "tokenizer"), dataset=None))

    assert found is not None and found.classes == generator.classes and tokenizer.model is found.model.tokenizer
    rows = load_images("noto-emoji-32")
    assert [row["label"] for row in tokenizer.rows] == [rows[i * 340]["label"] for i in range(5)]
    assert none is None and len(alone.rows) == 0 and isinstance(alone.processor, VQImageProcessor)
    assert AppArguments().host == "127.0.0.1"
    with pytest.raises(ValueError, match="max_images must be at least 1"):
        AppArguments(max_images=0)
