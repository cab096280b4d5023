"""Compares the folders of two training runs, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_vq.training.checkpoints import list_checkpoints


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

    def assert_equal(self, first: Any, second: Any) -> None:
        """Nested containers are equal, tensors to the bit."""
        assert_equal(first, second)

    def metrics(self, folder: Path) -> list[dict[str, Any]]:
        """The lines of a run's metrics file, without what depends on the clock."""
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


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
