"""A run that ends amid its steps, as a kill would end it."""

from __future__ import annotations

from typing import Any

import pytest


class Stopped(Exception):
    """What a test stops a run with."""


def stop_after(trainer: Any, step: int) -> None:
    """Lets a trainer run until a step is done, without saving there, as a kill would."""
    train_step = trainer.train_step

    def stopping(batches: Any) -> Any:
        if trainer.step == step:
            raise Stopped
        return train_step(batches)

    trainer.train_step = stopping
    with pytest.raises(Stopped):
        trainer.train()
