"""What each of two processes runs for `test_generator_two_processes.py`: trains a generator and writes what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset

from hf_vq import GeneratorTrainer, GeneratorTrainingArguments, MaskGitConfig, MaskGitModel, VQConfig, VQModel


class Tokens(Dataset[dict[str, Any]]):
    """Random tokens, the same for the same index."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"image_tokens": torch.randint(16, (4, 4), generator=generator), "label": index % 2}


def make_trainer(output_dir: Path, **fields: Any) -> GeneratorTrainer:
    """A trainer of a tiny generator whose tokenizer has batch norms."""
    set_seed(0)
    vq_config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, num_codes=16)
    config = MaskGitConfig(
        vq_config=vq_config, num_classes=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": 4,
        "train_batch_size": 2,
        "eval_batch_size": 2,
        "learning_rate": 1e-2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "eval_steps": 2,
        "save_steps": 2,
        "use_ema": True,
        "num_distance_images": 6,
        "num_sample_images": 2,
        "sample_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    model = MaskGitModel(config, tokenizer=VQModel(vq_config))
    return GeneratorTrainer(model, GeneratorTrainingArguments(**settings | fields), Tokens(), Tokens())


def fingerprint(trainer: GeneratorTrainer) -> list[list[float]]:
    """All that must be equal on all ranks, to the bit."""
    assert trainer.ema is not None
    tensors = [
        *trainer.model.state_dict().values(),
        *trainer.ema.module.state_dict().values(),
        *(value for state in trainer.networks.optimizers["model"].state.values() for value in state.values()),
    ]
    return [tensor.detach().double().flatten().tolist() for tensor in tensors]


def main(folder: Path) -> None:
    """Runs on each rank and writes `rank-R.json`."""
    result: dict[str, Any] = {}
    trainer = make_trainer(folder / "straight")
    rank = trainer.accelerator.process_index
    result["world_size"] = trainer.accelerator.num_processes
    result["metrics"] = trainer.train()
    result["state"] = fingerprint(trainer)
    result["random"] = torch.get_rng_state().tolist()

    resumed = make_trainer(folder / "resumed", resume_from_checkpoint=str(folder / "straight" / "checkpoint-2"))
    resumed.train()
    result["resumed"] = fingerprint(resumed)

    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    resumed.networks.wrapped.clear()
    del resumed
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
