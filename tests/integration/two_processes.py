"""What each of two processes runs for `test_two_processes.py`: trains, resumes, fails, and writes what it saw."""

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
from hf_vq.training.order import DataOrder
from hf_vq.training.tokenizer import TokenizerTrainer
from hf_vq.training.trainer import NonFiniteLossError


class Noise(Dataset[dict[str, torch.Tensor]]):
    """Random images, the same for the same index."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.rand(3, 16, 16, generator=generator) * 2 - 1}


def make_trainer(output_dir: Path, **fields: Any) -> TokenizerTrainer:
    """A trainer with everything on that is shared between processes."""
    set_seed(0)
    config = VQConfig(
        architecture="sqvae",
        image_size=16,
        base_channels=8,
        num_res_blocks=1,
        embed_dim=4,
        num_codes=16,
        alternating_steps=1,
        alternating_kind="sgd",
        replace_freq=2,
        kmeans_init=True,
        sync_nu=0.2,
        affine_lr=2.0,
        beta=0.9,
    )
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "train_batch_size": 2,
        "eval_batch_size": 2,
        "learning_rate": 1e-3,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "eval_steps": 3,
        "save_steps": 2,
        "use_ema": True,
        "adversarial_weight": 0.1,
        "adversarial_start": 1,
        "discriminator_channels": 8,
        "discriminator_layers": 1,
        "disable_tqdm": True,
    }
    return TokenizerTrainer(VQModel(config), TokenizerTrainingArguments(**settings | fields), Noise(), Noise())


def fingerprint(trainer: TokenizerTrainer) -> list[list[float]]:
    """All that must be equal on all ranks, to the bit."""
    assert trainer.ema is not None and trainer.discriminator is not None
    tensors = [
        *trainer.model.state_dict().values(),
        *trainer.ema.module.state_dict().values(),
        *trainer.discriminator.state_dict().values(),
        *(value for layer in get_vq_layers(trainer.model) for value in layer.training_state().values()),
        *(
            value
            for optimizer in trainer.networks.optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
        ),
    ]
    return [tensor.detach().double().flatten().tolist() for tensor in tensors]


def poison(trainer: TokenizerTrainer) -> None:
    """Gives NaN to the images of the last rank alone, in step 3."""
    train_step = trainer.train_step

    def poisoned(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if trainer.step == 2 and trainer.accelerator.process_index == 1:
            batches[0]["pixel_values"][0] = float("nan")
        return train_step(batches)

    trainer.train_step = poisoned  # type: ignore[method-assign]


def stop_after_step_4(trainer: TokenizerTrainer) -> None:
    """Interrupts a run on both ranks."""
    train_step = trainer.train_step

    def stopping(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if trainer.step == 4:
            raise KeyboardInterrupt
        return train_step(batches)

    trainer.train_step = stopping  # type: ignore[method-assign]


def main(folder: Path) -> None:
    """Runs on each rank and writes `rank-R.json`."""
    result: dict[str, Any] = {}
    trainer = make_trainer(folder / "straight")
    rank = trainer.accelerator.process_index
    result["world_size"] = torch.distributed.get_world_size()
    assert result["world_size"] == trainer.accelerator.num_processes == 2
    result["batches"] = list(DataOrder(21, 2, 0, rank, 2).batches_of_epoch(0))
    result["metrics"] = trainer.train()
    result["state"] = fingerprint(trainer)

    # As on nodes with disks of their own: the second process has no checkpoint to read.
    own = folder / f"disk-{rank}" / "resumed"
    stopped = make_trainer(own)
    stop_after_step_4(stopped)
    try:
        stopped.train()
    except KeyboardInterrupt:
        pass
    resumed = make_trainer(own, resume_from_checkpoint="latest")
    resumed.train()
    result["written"] = sorted(path.name for path in own.glob("*"))
    result["resumed"] = fingerprint(resumed)

    changed = make_trainer(folder / "one", max_steps=4, allow_changes=True, resume_from_checkpoint="latest")
    changed.train()
    result["changed"] = fingerprint(changed)
    result["images_seen"] = changed.data.images_seen(4)

    broken = make_trainer(folder / "broken")
    poison(broken)
    try:
        broken.train()
    except NonFiniteLossError as error:
        result["error"] = str(error)

    # A loss that is infinite on one rank while all gradients are finite.
    lone = torch.tensor([float("inf") if rank == 1 else 1.0])
    result["lone_is_finite"] = not trainer.flags.end_step(7, lone, torch.ones(1), 0)

    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    for used in (stopped, resumed, changed, broken):
        used.networks.wrapped.clear()
    del stopped, resumed, changed, broken, used
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
