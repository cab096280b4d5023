"""What each of two processes runs for `test_monitor_two_processes.py`: one run with a monitor, one without."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset

from hf_vq import VQConfig, VQModel, get_vq_layers
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.random_state import random_state
from hf_vq.training.tokenizer import TokenizerTrainer

NUM_IMAGES = 7
MONITORED = {"monitor_steps": 2, "monitor_images": NUM_IMAGES}
CONFIG: dict[str, Any] = {
    "architecture": "sqvae", "image_size": 16, "base_channels": 8, "num_res_blocks": 1, "embed_dim": 4,
    "num_codes": 16, "replace_freq": 2, "sync_nu": 0.2, "kmeans_init": False,
}  # fmt: skip


class Noise(Dataset[dict[str, torch.Tensor]]):
    """Random images, the same for the same index, of ever more contrast."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": (torch.rand(3, 16, 16, generator=generator) * 2 - 1) * (index + 1) / NUM_IMAGES}


def make_trainer(output_dir: Path, **fields: Any) -> TokenizerTrainer:
    """A trainer of a model with batch norm, whose statistics differ between ranks while it trains."""
    set_seed(0)
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": 3,
        "train_batch_size": 2,
        "eval_batch_size": 2,
        "learning_rate": 1e-2,
        "eval_steps": 0,
        "save_steps": 2,  # the last step evaluates, which averages statistics before a monitor looks
        "use_ema": True,
        "disable_tqdm": True,
    }
    args = TokenizerTrainingArguments(**settings | fields)
    return TokenizerTrainer(VQModel(VQConfig(**CONFIG)), args, Noise(), Noise())


def state(trainer: TokenizerTrainer) -> list[list[float]]:
    """All that a monitor could have touched, on this rank."""
    assert trainer.ema is not None
    tensors = [
        *trainer.model.state_dict().values(),
        *trainer.ema.module.state_dict().values(),
        *(value for layer in get_vq_layers(trainer.model) for value in layer.training_state().values()),
        random_state()["torch"],
    ]
    return [tensor.detach().double().flatten().tolist() for tensor in tensors]


def main(folder: Path) -> None:
    """Runs on each rank and writes `rank-R.json`."""
    result: dict[str, Any] = {}
    trainers = []
    for name, fields in (("with", MONITORED), ("without", {})):
        trainer = make_trainer(folder / name, **fields)
        # Before each step: checkpoints and evaluation average the statistics of batch norms.
        step, states = trainer.train_step, result.setdefault(name, [])

        def recorded(batches: Any, step: Any = step, states: Any = states, trainer: Any = trainer) -> Any:
            states.append(state(trainer))
            return step(batches)

        trainer.train_step = recorded  # type: ignore[method-assign]
        trainer.train()
        result[name].append(state(trainer))
        trainers.append(trainer)
    rank = trainers[0].accelerator.process_index
    assert trainers[0].accelerator.num_processes == 2
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    trainers[0].networks.wrapped.clear()
    trainers.pop().close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
