"""What each of two processes runs for `test_signals_two_processes.py`: one of them alone is told to stop."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from two_processes import fingerprint, make_trainer

from hf_vq.training.signals import RunStopped


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
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    for used in (stopped, resumed):
        used.networks.wrapped.clear()
    straight.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
