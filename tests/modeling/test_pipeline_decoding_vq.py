"""The pipeline "image-tokenization": tokens back to images, in any form."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import VQImageProcessor

from .test_pipeline_vq import make_images, make_pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.mark.parametrize("quantizer", [{}, {"quantizer_type": "residual", "num_groups": 2}], ids=["one", "two"])
def test_decode_takes_tokens_in_any_form(images, quantizer):
    """One grid gives an image. A list, a batch and the pipeline's results give lists, also as NumPy or lists."""
    pipe = make_pipe(**quantizer)
    results = pipe(images, return_reconstruction=True)
    grids = [result["image_tokens"] for result in results]
    batch = torch.stack(grids)
    assert grids[0].shape == ((4, 4, 2) if quantizer else (4, 4))
    expected = [np.asarray(result["reconstruction"]) for result in results]

    many = (results, grids, batch, tuple(grids), batch.numpy(), batch.numpy().astype(np.uint16), batch.tolist())
    for tokens in (*many, [grid.numpy() for grid in grids], pipe(image for image in images)):
        decoded = pipe.decode(tokens)
        assert isinstance(decoded, list) and all(isinstance(image, Image.Image) for image in decoded)
        assert all(np.array_equal(*pair) for pair in zip(decoded, expected, strict=True))
    for tokens in (results[0], grids[0], grids[0].numpy(), grids[0].tolist(), pipe(images[0])):
        assert np.array_equal(pipe.decode(tokens), expected[0])
    batched = [np.asarray(image, dtype=int) for image in pipe.decode(results, batch_size=2)]
    assert max(np.abs(one - other).max() for one, other in zip(batched, expected, strict=True)) <= 1
    assert pipe.decode([]) == []


def test_what_cannot_be_decoded_is_named(pipe, images):
    """Flat sequences, floats, ids out of range, ragged lists and records of skipped images raise and say why."""
    results = pipe([images[0], "nowhere.png"], on_error="skip")
    with pytest.raises(ValueError, match=r"Token grid 1 has no tokens to decode: Image 1 \(nowhere\.png\)"):
        pipe.decode(results)
    with pytest.raises(ValueError, match=r"must be a grid \(h, w\).* got list with 1 axes"):
        pipe.decode([1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"got Tensor with 4 axes"):
        pipe.decode(torch.zeros(1, 1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Token grid 0 must hold integers, got torch.float32"):
        pipe.decode(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="The token grid is no grid of integers"):
        pipe.decode([[1, 2], [3]])
    with pytest.raises(ValueError, match=r"Token grid 1 must have 2 axes, got the shape \(2,\)"):
        pipe.decode([[[1, 2], [3, 4]], [1, 2]])
    with pytest.raises(ValueError, match="16"):
        pipe.decode([[[16, 0], [0, 0]]])


@pytest.mark.parametrize("quantizer", [{}, {"quantizer_type": "residual", "num_groups": 2}], ids=["one", "two"])
def test_flat_sequences_are_grids_of_the_pipelines_size(images, quantizer):
    """One or many, in any form; a batch of sequences never becomes one picture."""
    pipe = make_pipe(**quantizer)
    batch = torch.stack([result["image_tokens"] for result in pipe(images)])
    expected = [np.asarray(image) for image in pipe.decode(batch)]

    flat = batch.flatten(1)
    forms = [flat, flat.tolist(), flat.numpy(), list(flat), iter(flat), *([batch.flatten(1, 2)] if quantizer else [])]
    for tokens in forms:
        decoded = pipe.decode(tokens)
        assert all(np.array_equal(*pair) for pair in zip(decoded, expected, strict=True))
    for tokens in (flat[0], flat[0].tolist(), *([batch[0].flatten(0, 1)] if quantizer else [])):
        assert np.array_equal(pipe.decode(tokens), expected[0])
    sixteen = pipe.decode(flat[:1].expand(16, -1))  # as many sequences as a sequence has tokens
    assert len(sixteen) == 16 and sixteen[0].size == (16, 16)
    for tokens in (flat[:, :-1], flat[:, 1:].tolist(), flat[0, :-1]):
        with pytest.raises(ValueError, match=f"sequences .*{flat.shape[1]} tokens"):
            pipe.decode(tokens)
    with pytest.raises(ValueError, match="Token sequence 1 must have the shape"):
        pipe.decode([flat[0], flat[1, 1:]])


def test_a_grid_of_another_size_comes_in_a_list(pipe):
    """Alone it could be a batch of sequences of another length, so it is refused where the size is fixed."""
    grid = torch.zeros(2, 6, dtype=torch.long)
    assert pipe.decode([grid])[0].size == (24, 8)
    with pytest.raises(ValueError, match=r"shape \(2, 6\) are neither a grid .* 4 x 4, .* 16 tokens.* in a list"):
        pipe.decode(grid)
    assert make_pipe(VQImageProcessor(do_center_crop=False)).decode(grid).size == (24, 8)
    large = make_pipe(VQImageProcessor(image_size=64))
    assert large.decode(torch.zeros(16, 16, dtype=torch.long)).size == (64, 64)


def test_a_model_in_training_is_not_trained(images):
    """The pipeline puts the model into eval mode, so tokenizing neither moves codes nor counts their use."""
    pipe = make_pipe(replace_freq=1)
    before = {name: value.clone() for name, value in pipe.model.state_dict().items()}
    pipe.model.train()
    results = pipe(images)
    assert not pipe.model.training
    pipe.model.train()
    pipe.decode(results)
    assert not pipe.model.training
    assert all(torch.equal(value, before[name]) for name, value in pipe.model.state_dict().items())
