"""Data and settings that do not fit a generator are refused, and streams of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset

from hf_vq import MaskGitModel
from hf_vq.data.token_stream import TokenStream
from hf_vq.training.generator_data import check_tokens

from .generator_runs import MakeTrainer, token_set
from .stopped_runs import stop_after


class Stream(IterableDataset[dict[str, Any]]):
    """Tokens that can only be read in order."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(token_set())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda: token_set(classes=4), "training set holds tokens from 0 to 19, the tokenizer has the ids 0 to 15"),
        (lambda: token_set(label=None), "num_classes=3, but the training set has no labels"),
        (lambda: token_set(label=[3] * 24), "labels from 3 to 3, but the model has num_classes=3.*--num_classes 4"),
        (lambda: token_set(label=[-2] * 24), "labels from -2 to -2"),
        (lambda: token_set(label=[-1] * 24), "no image of the training set has a label"),
        (lambda: token_set(image_tokens=[[[0] * 5] * 5] * 24), r"shape \(5, 5\), the model is made for \(4, 4\)"),
        (lambda: token_set().remove_columns("image_tokens"), r"no 'image_tokens', only \['label'\]"),
        (lambda: token_set().select([]), "training set is empty"),
        (Stream, "must be map-style"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    make_generator_trainer: MakeTrainer, tmp_path: Path, train: Callable[[], Any], message: str
) -> None:
    """Before the first step, with what is wrong and what to do; nothing is written."""
    with pytest.raises(ValueError, match=message):
        make_generator_trainer(train=train())
    assert not (tmp_path / "out").exists()


def test_held_out_data_are_checked_as_well(make_generator_trainer: MakeTrainer) -> None:
    """A held-out set without labels is named as such."""
    with pytest.raises(ValueError, match="held-out set has no labels"):
        make_generator_trainer(held_out=token_set(7, label=None))


def test_ids_of_separate_codebooks_are_checked_group_by_group(make_generator: Callable[..., MaskGitModel]) -> None:
    """An id that is fine in one group is out of range in the other."""
    config = make_generator({"quantizer_type": "group", "num_groups": 2, "share_codebook": False}).config
    for second, fits in ((8, True), (7, False)):
        tokens = torch.stack([torch.full((4, 4), 7), torch.full((4, 4), second)], -1)
        rows = datasets.Dataset.from_dict({"image_tokens": [tokens.tolist()], "label": [0]}).with_format("torch")
        if fits:
            check_tokens(rows, config, "training")
        else:
            with pytest.raises(ValueError, match="0 to 7, 8 to 15 .one range a group."):
                check_tokens(rows, config, "training")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_steps": 17}, "`sample_steps` must be from 1 to 16, the tokens of an image, got 17"),
        ({"num_distance_images": 1}, "num_distance_images must be 0, or at least 2"),
        ({"sample_steps": 0}, "`sample_steps` must be a whole number from 1"),
        ({"sample_guidance_scale": float("nan")}, "`sample_guidance_scale` must be finite"),
        ({"sample_sampler": "nucleus"}, '`sample_sampler` must be "confidence" or "halton", got .nucleus'),
        ({"sample_temperature": 0.0}, "`sample_temperature` must be above 0.*`sample_top_k=1` takes"),
        ({"sample_choice_temperature": -1.0}, "`sample_choice_temperature` must be at least 0"),
        (
            {"sample_choice_temperature": 1.0, "sample_sampler": "halton"},
            '`sample_choice_temperature` has no effect with `sample_sampler="halton"`',
        ),
    ],
)
def test_impossible_settings_are_refused(
    make_generator_trainer: MakeTrainer, fields: dict[str, Any], message: str
) -> None:
    """What could only fail in the first evaluation fails at once."""
    with pytest.raises(ValueError, match=message):
        make_generator_trainer(**fields)


def token_stream(length: int = 24, parts: int = 5, **columns: Any) -> TokenStream:
    """The rows of `token_set` as a stream in parts."""
    rows = token_set(length, **columns)
    return TokenStream(rows.to_iterable_dataset(num_shards=parts), ["a", "b", "c"], shuffle_buffer=6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_a_stream_resumes_to_the_bit(
    workers: int, make_generator_trainer: MakeTrainer, tmp_path: Path, runs: Any
) -> None:
    """As on a map-style data set, without and with processes that read."""
    if workers:
        pytest.importorskip("torchdata")
    settings: dict[str, Any] = {"use_ema": True, "max_steps": 7, "dataloader_num_workers": workers}
    make_generator_trainer("straight", train=token_stream(), **settings).train()

    stop_after(make_generator_trainer("resumed", train=token_stream(), **settings), step=3)
    make_generator_trainer("resumed", train=token_stream(), **settings, resume_from_checkpoint="latest").train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"classes": 4}, "training set holds tokens from 15 to 19, the tokenizer has the ids 0 to 15"),
        ({"label": [2] * 23 + [3]}, "labels from 3 to 3, but the model has num_classes=3.*--num_classes 4"),
    ],
)
def test_the_rows_of_a_stream_are_checked_when_they_are_read(
    make_generator_trainer: MakeTrainer, columns: dict[str, Any], message: str
) -> None:
    """A token that the model does not have is told as what it is."""
    trainer = make_generator_trainer(train=token_stream(**columns))
    with pytest.raises(ValueError, match=message):
        trainer.train()
