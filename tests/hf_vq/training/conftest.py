"""A tiny model, tiny images, and a way to make trainers of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch.utils.data import Dataset

from hf_vq import VQConfig, VQImageProcessor, VQModel
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.checkpoints import list_checkpoints
from hf_vq.training.tokenizer import TokenizerTrainer

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
            VQImageProcessor(image_size=16),
        )

    return make


class Runs:
    """Compares the folders of two runs."""

    def assert_same_run(self, first: Path, second: Path) -> None:
        """The last checkpoints, the final weights and the metrics of two runs are equal."""
        self.assert_same_checkpoint(first, second)
        weights = [load_file(folder / "final" / "model.safetensors") for folder in (first, second)]
        assert_equal(weights[0], weights[1], "final")
        assert self.metrics(first) == self.metrics(second)

    def assert_same_checkpoint(self, first: Path, second: Path, ignore: tuple[str, ...] = ()) -> None:
        """Everything in the last checkpoints of two runs is equal."""
        folders = [list_checkpoints(folder)[-1] for folder in (first, second)]
        assert folders[0].name == folders[1].name
        names = [{path.name for path in folder.iterdir()} for folder in folders]
        assert names[0] == names[1]
        for name in names[0] - set(ignore):
            if name.endswith(".safetensors"):
                assert_equal(load_file(folders[0] / name), load_file(folders[1] / name), name)
            elif name.endswith(".pt"):
                states = [torch.load(folder / name, weights_only=True) for folder in folders]
                assert_equal(states[0], states[1], name)

    def metrics(self, folder: Path) -> list[dict[str, Any]]:
        """The lines of a run's metrics file, without what depends on the clock."""
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


@pytest.fixture
def runs() -> Runs:
    """Comparisons of the folders of two runs."""
    return Runs()


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    """Nested containers are equal, tensors to the bit."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first:
            assert_equal(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, other, f"{where}[{number}]")
    else:
        assert first == second, where
