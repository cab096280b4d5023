"""What each of two processes runs for `test_signals_two_processes.py`: one of them alone is told to stop."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from hf_vq.training.signals import RunStopped

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
from two_processes import Noise, fingerprint, make_trainer  # type: ignore[import-not-found]  # noqa: E402


class Recorder(Noise):
    """The images, and which of them were read."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.seen.append(index)
        return super().__getitem__(index)


def main(folder: Path) -> None:
    """Runs on each rank and writes `rank-R.json`."""
    straight = make_trainer(folder / "straight")
    rank = straight.accelerator.process_index
    straight.train()

    stopped = make_trainer(folder / "stopped")
    train_step = stopped.train_step

    def told_to_stop(batches: Any) -> Any:
        if stopped.step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(batches)

    stopped.train_step = told_to_stop  # type: ignore[method-assign]
    result: dict[str, Any] = {"code": None}
    try:
        stopped.train()
    except RunStopped as end:
        result |= {"code": end.code, "step": end.step}
    resumed = make_trainer(folder / "stopped", resume_from_checkpoint="latest")
    result["resumed_from"] = [path.name for path in sorted((folder / "stopped").glob("checkpoint-*"))]
    resumed.train()
    result["equal"] = fingerprint(resumed) == fingerprint(straight)

    joined = make_trainer(folder / "joined", resume_from_checkpoint=str(folder / "alone" / "checkpoint-4"))
    joined.data.dataset = recorder = Recorder()
    joined.train()
    result["joined"] = recorder.seen
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    for used in (stopped, resumed, joined):
        used.networks.wrapped.clear()
    straight.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
