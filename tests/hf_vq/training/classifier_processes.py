"""What each of two processes runs for `test_classifier.py`: trains a classifier and writes what it saw."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset

from hf_vq import (
    ClassifierTrainer,
    ClassifierTrainingArguments,
    VQImageClassificationConfig,
    VQModelForImageClassification,
    no_vq,
)


class Noise(Dataset[dict[str, Any]]):
    """Random images of three classes, the same for the same index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.rand(3, 16, 16, generator=generator) * 2 - 1, "label": index % 3}


def main(folder: Path, quantized: bool) -> None:
    """Four steps, and one file of what this rank has at the end."""
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    fields: dict[str, Any] = {"num_labels": 3, "image_size": 16, "num_codes": 16}
    config = VQImageClassificationConfig(backbone_config={"model_type": "dinov2", **sizes}, **fields)
    args = ClassifierTrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=4,
        train_batch_size=4,
        eval_batch_size=3,
        save_steps=0,
        disable_tqdm=True,
        use_cpu=True,
    )
    model = VQModelForImageClassification(config)
    with nullcontext() if quantized else no_vq(model):
        trainer = ClassifierTrainer(model, args, Noise(24), Noise(7))
        metrics = trainer.train()
    accelerator = trainer.accelerator
    weights = [weight.double().sum().item() for weight in trainer.model.state_dict().values()]
    found = {"world_size": accelerator.num_processes, "metrics": metrics, "weights": weights}
    (folder / f"rank-{accelerator.process_index}.json").write_text(json.dumps(found), encoding="utf-8")
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), quantized=sys.argv[2] == "quantized")
