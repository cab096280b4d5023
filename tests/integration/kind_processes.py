"""What each of two processes runs for `test_quantizer_kinds.py`: trains a tokenizer with a registered quantizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

sys.path.insert(0, str(Path(__file__).parents[2]))

from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VQConfig, VQModel, register_quantizer
from tests.toy_quantizer import SignQuantizer


class Noise(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random images, the same for the same index."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.rand(3, 16, 16, generator=generator) * 2 - 1}


def main(folder: Path, kind: str) -> None:
    """Runs on each rank and writes `rank-R.json`."""
    set_seed(0)
    register_quantizer("signs", SignQuantizer)
    settings: dict[str, Any] = {"quantizer_type": kind, "num_codes": 16}
    if kind == "signs":
        settings["quantizer_options"] = {"scale": 0.5}
    elif kind == "fsq":
        settings |= {"levels": [4, 4, 4, 4], "num_codes": 256}
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, embed_dim=4, num_res_blocks=1, **settings)
    args = TokenizerTrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=4,
        train_batch_size=2,
        logging_steps=2,
        use_ema=True,
        monitor_steps=2,
        monitor_images=4,
        disable_tqdm=True,
    )
    trainer = TokenizerTrainer(VQModel(config), args, Noise(), Noise())
    assert trainer.accelerator.num_processes == 2
    metrics = trainer.train()
    state = {name: value.double().flatten().tolist() for name, value in trainer.model.state_dict().items()}
    logged = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    result = {"state": state, "metrics": metrics, "logged": logged}
    (folder / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
