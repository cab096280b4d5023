"""A tokenizer whose codebook is frozen trains around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VQModel


@pytest.mark.parametrize(
    "fields",
    [
        {"sync_nu": 0.2, "alternating_steps": 1, "replace_freq": 2, "affine_lr": 2.0},
        {"codebook_update": "ema", "sync_nu": 0.0, "alternating_steps": 0, "replace_freq": 2},
    ],
    ids=["gradient", "ema"],
)
def test_codes_stay_equal_to_the_bit(
    make_model: Callable[..., VQModel], images: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing moves them in the model, in its average and in what is saved; the monitor and the metrics work."""
    model = make_model(**fields)
    model(torch.stack([images()[index]["pixel_values"] for index in range(8)]))  # k-means, so that several are used
    model.freeze_codebook()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = TokenizerTrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=8,
        train_batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.1,
        use_ema=True,
        monitor_steps=4,
        monitor_images=4,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = TokenizerTrainer(model, args, images(), images(7))
    metrics = trainer.train()

    assert trainer.ema is not None
    saved = load_file(tmp_path / "out" / "final" / "model.safetensors")
    for state in (model.state_dict(), trainer.ema.module.state_dict(), saved):
        moved = {name for name, value in before.items() if not torch.equal(state[name], value)}
        assert not any(name.startswith("quantize.") for name in moved)
        assert {"encoder.conv.0.weight", "quant_conv.weight"} <= moved
    assert metrics["perplexity"] >= 1
    assert len(list((tmp_path / "out" / "codebook").glob("step-*"))) == 3
    trainer.close()
