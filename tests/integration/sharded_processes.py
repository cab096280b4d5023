"""What each process runs for `test_sharding.py`: a generator and a tokenizer, sharded and not, and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch.distributed.tensor import DTensor

from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VQConfig, VQModel
from tests.integration import generator_processes
from tests.integration.two_processes import Noise


def make_tokenizer_trainer(output_dir: Path, **fields: Any) -> TokenizerTrainer:
    """A trainer whose steps do not depend on how many processes share their images, but for rounding."""
    set_seed(0)
    config = VQConfig(
        architecture="vqgan", image_size=16, base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1,
        attn_resolutions=[], embed_dim=4, num_codes=16, sync_nu=0.2, affine_lr=2.0,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "use_ema": True,
        "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    args = TokenizerTrainingArguments(str(output_dir), **settings | fields)
    return TokenizerTrainer(VQModel(config), args, Noise(), Noise())


def losses(folder: Path) -> list[list[float]]:
    """Loss and norm of the gradient of each step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line["loss"], line["grad_norm"]] for line in lines if line["split"] == "train"]


def share(trainer: Any) -> float:
    """What this process holds of weights, averages and moments, in parts of all of them."""
    moments = [value for state in trainer.networks.optimizers["model"].state.values() for value in state.values()]
    tensors = [*trainer.model.parameters(), *trainer.ema.module.parameters(), *moments]
    parts = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    return sum(part.to_local().numel() for part in parts) / sum(part.numel() for part in parts)


def main(folder: Path, what: str) -> None:
    """Trains, and writes `WHAT-R.json`."""
    result: dict[str, Any] = {}
    steps: dict[str, Any] = {"logging_steps": 1, "max_steps": 20, "eval_steps": 0, "save_steps": 8}
    if what == "resume":
        start = str(folder / "tokenizer-whole" / "checkpoint-16")
        fields = {"train_batch_size": 1, "resume_from_checkpoint": start, "fsdp": True}
        runs: dict[str, Any] = {"resumed": (make_tokenizer_trainer, fields)}
    else:
        steps["max_eval_images"] = 4
        makers = {"generator": generator_processes.make_trainer, "tokenizer": make_tokenizer_trainer}
        runs = {
            f"{kind}-{'sharded' if fsdp else 'whole'}": (make, {"fsdp": fsdp})
            for kind, make in makers.items()
            for fsdp in (False, True)
        }
    for name, (make, fields) in runs.items():
        trainer: Any = make(folder / name, **steps, **fields)
        metrics = trainer.train()
        result[name] = {"losses": losses(folder / name), "metrics": metrics}
        if fields["fsdp"]:
            result[name]["share"] = share(trainer)
        result["world_size"] = trainer.accelerator.num_processes
        trainer.networks.clear()
    (folder / f"{what}-{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
