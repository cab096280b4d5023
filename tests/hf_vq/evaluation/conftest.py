"""Tiny models in folders, and pictures to measure them on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState

from hf_vq import MaskGitConfig, MaskGitModel, VQModel
from hf_vq.evaluation.arguments import EvaluationArguments

from ...tiny_tokens import PROCESSOR, picture, save, tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread computes, and Accelerate forgets its state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    PartialState._reset_state()


@pytest.fixture(scope="session")
def model() -> VQModel:
    """A tokenizer."""
    return tiny()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, model: VQModel) -> Path:
    """A folder of models: tokenizers a and b, generators free (of no class) and classes (three)."""
    folder = tmp_path_factory.mktemp("models")
    save(model, folder / "a")
    save(tiny(1, num_codes=16, quantizer_type="group", num_groups=2, share_codebook=False), folder / "b")
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, classes in (("free", 0), ("classes", 3)):
        torch.manual_seed(classes)
        generator = MaskGitModel(MaskGitConfig(vq_config=model.config, num_classes=classes, **sizes))
        generator.tokenizer.load_state_dict(model.state_dict())
        generator.save_pretrained(folder / name)
        PROCESSOR.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images in two classes, seven of the first."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(11):
        path = folder / ("cats" if number < 7 else "dogs") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        picture(number, (20 + number, 28)).save(path)
    return folder


def arguments(models: Path, names: str, images: Path | str, output_dir: Path, **fields: Any) -> EvaluationArguments:
    """The settings of an evaluation of some models."""
    settings: dict[str, Any] = {
        "split": "train",
        "batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "num_steps": 2,
    }
    return EvaluationArguments(
        str(images),
        compare=[str(models / name) for name in names.split()],
        output_dir=str(output_dir),
        **{**settings, **fields},
    )
