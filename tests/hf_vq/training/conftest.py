"""Tiny models, tiny images, and ways to make trainers of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import set_seed
from torch.utils.data import Dataset

from hf_vq import (
    GeneratorTrainer,
    GeneratorTrainingArguments,
    MaskGitConfig,
    MaskGitModel,
    VQConfig,
    VQImageProcessor,
    VQModel,
)
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.tokenizer import TokenizerTrainer

from .generator_runs import CLASSES, MakeTrainer, token_set

# Everything that changes state in training, at once: inner steps, k-means, replacement, averages, discriminator.
EVERYTHING: dict[str, Any] = {
    "use_ema": True,
    "adversarial_weight": 0.1,
    "adversarial_start": 2,
    "discriminator_channels": 8,
    "discriminator_layers": 1,
    "gradient_accumulation_steps": 2,
    "random_flip": True,
}
EVERYTHING_IN_THE_MODEL: dict[str, Any] = {
    "alternating_steps": 2,
    "alternating_kind": "sgd",
    "replace_freq": 2,
    "kmeans_init": True,
    "sync_nu": 0.2,
    "affine_lr": 2.0,
    "beta": 0.9,
}


class Images(Dataset[dict[str, torch.Tensor]]):
    """Images of random blobs, the same for the same index and epoch; the epoch moves them, like an augmentation."""

    def __init__(self, length: int = 24, size: int = 16) -> None:
        self.length = length
        self.size = size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the augmentation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        coarse = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
        image = torch.nn.functional.interpolate(coarse, size=(self.size, self.size), mode="bilinear")[0]
        return {"pixel_values": image.roll(self.epoch, dims=-1), "index": torch.tensor(index)}


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state in class attributes; each test begins without one, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture
def images() -> type[Images]:
    """The class of tiny image data sets."""
    return Images


@pytest.fixture
def everything() -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of trainer and model that turn on all that changes state."""
    return dict(EVERYTHING), dict(EVERYTHING_IN_THE_MODEL)


@pytest.fixture
def make_model() -> Callable[..., VQModel]:
    """Makes tiny models, equal ones for equal settings."""

    def make(**fields: Any) -> VQModel:
        set_seed(0)
        settings: dict[str, Any] = {
            "architecture": "sqvae",
            "image_size": 16,
            "base_channels": 8,
            "num_res_blocks": 1,
            "embed_dim": 4,
            "num_codes": 16,
            **fields,
        }
        return VQModel(VQConfig(**settings))

    return make


@pytest.fixture
def make_trainer(tmp_path: Path, make_model: Callable[..., VQModel]) -> Callable[..., TokenizerTrainer]:
    """Makes trainers of tiny models in `tmp_path / output_dir`; `model` holds the model's fields."""

    def make(
        output_dir: str = "out",
        model: dict[str, Any] | None = None,
        train: Any = None,
        held_out: Any = None,
        **fields: Any,
    ) -> TokenizerTrainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / output_dir),
            "max_steps": 8,
            "train_batch_size": 4,
            "eval_batch_size": 3,
            "learning_rate": 1e-3,
            "logging_steps": 2,
            "eval_steps": 4,
            "save_steps": 3,
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
        args = TokenizerTrainingArguments(**settings)
        network = make_model(**(model or {}))
        return TokenizerTrainer(
            network,
            args,
            Images() if train is None else train,
            Images(7) if held_out is None else held_out,
            VQImageProcessor.for_config(network.config),
        )

    return make


@pytest.fixture
def make_generator(make_model: Callable[..., VQModel]) -> Callable[..., MaskGitModel]:
    """Makes tiny generators, equal ones for equal settings, of 16 codes."""

    def make(tokenizer: dict[str, Any] | None = None, **fields: Any) -> MaskGitModel:
        vq_model = make_model(**(tokenizer or {}))
        set_seed(0)
        settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_classes": CLASSES}
        config = MaskGitConfig(vq_config=vq_model.config, **{**settings, **fields})
        return MaskGitModel(config, tokenizer=vq_model)

    return make


@pytest.fixture
def make_generator_trainer(tmp_path: Path, make_generator: Callable[..., MaskGitModel]) -> MakeTrainer:
    """Makes trainers of tiny generators in `tmp_path / output_dir`; `model` holds the model's fields."""

    def make(
        output_dir: str = "out",
        model: dict[str, Any] | None = None,
        train: Any = None,
        held_out: Any = None,
        tokenizer: dict[str, Any] | None = None,
        **fields: Any,
    ) -> GeneratorTrainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / output_dir),
            "max_steps": 6,
            "train_batch_size": 4,
            "eval_batch_size": 3,
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "eval_steps": 3,
            "save_steps": 2,
            "num_sample_images": 4,
            "sample_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
        return GeneratorTrainer(
            make_generator(tokenizer, **(model or {})),
            GeneratorTrainingArguments(**settings),
            token_set() if train is None else train,
            token_set(7) if held_out is None else held_out,
        )

    return make
