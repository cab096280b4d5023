"""Tokens for generators whose classes can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch

MakeTrainer = Callable[..., Any]
CLASSES = 3
CODES_OF_A_CLASS = 5


def token_set(length: int = 24, classes: int = CLASSES, **columns: Any) -> datasets.Dataset:
    """Grids of 4 x 4 tokens; those of class c are codes 5 c to 5 c + 4."""
    generator = np.random.default_rng(length)
    labels = np.arange(length) % classes
    tokens = labels[:, None, None] * CODES_OF_A_CLASS + generator.integers(0, CODES_OF_A_CLASS, (length, 4, 4))
    values = {"image_tokens": tokens.tolist(), "label": labels.tolist(), **columns}
    present = {name: value for name, value in values.items() if value is not None}
    return datasets.Dataset.from_dict(present).with_format("torch")


def batch_of(trainer: Any, start: int = 0, size: int = 4) -> dict[str, torch.Tensor]:
    """Some training rows as a batch."""
    return trainer.train_dataset[start : start + size]
