"""`--torch_compile` and the launcher's `--dynamo_backend`: the same training, compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_vq import MaskGitConfig, MaskGitModel
from hf_vq.training.arguments import GeneratorTrainingArguments
from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.generator import GeneratorTrainer
from hf_vq.training.launcher import compile_options

MakeTrainer = Callable[..., Any]
BACKEND = "ACCELERATE_DYNAMO_BACKEND"


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_run_is_the_run_without(
    backend: str, make_trainer: MakeTrainer, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]],
    runs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Weights, checkpoints and metrics are equal, with everything on; the time of the first step is told."""
    fields, model = everything
    settings = {**fields, "max_steps": 5, "save_steps": 3, "eval_steps": 0}
    make_trainer("eager", model, **settings).train()
    torch._dynamo.reset()
    monkeypatch.setenv(BACKEND, backend)
    trainer = make_trainer("compiled", model, **settings)
    assert type(trainer.networks.wrapped["model"]).__name__ == "OptimizedModule"
    with caplog.at_level(logging.INFO):
        trainer.train()

    assert "the first step took" in caplog.text
    assert sum(torch._dynamo.utils.counters["frames"].values()) > 0
    if backend == "eager":  # the graphs as they are: to the bit
        runs.assert_same_run(tmp_path / "eager", tmp_path / "compiled")
    for first, second in zip(runs.metrics(tmp_path / "eager"), runs.metrics(tmp_path / "compiled"), strict=True):
        assert second.pop("split") == first.pop("split")
        assert second == pytest.approx(first, rel=1e-2)
    assert "| compiled | yes |" in (tmp_path / "compiled" / "final" / "README.md").read_text()


def test_the_flag_and_the_launcher_agree(monkeypatch: pytest.MonkeyPatch, make_trainer: MakeTrainer) -> None:
    """The flag alone means inductor; the launcher's backend is followed; `false` against it is a contradiction."""
    monkeypatch.delenv(BACKEND, raising=False)
    assert BaseTrainingArguments("out").torch_compile is False
    trainer = make_trainer(torch_compile=True)
    assert type(trainer.networks.wrapped["model"]).__name__ == "OptimizedModule"
    assert compile_options()["backend"] == "inductor"
    monkeypatch.setenv(BACKEND, "AOT_EAGER")
    assert BaseTrainingArguments("out").torch_compile is True
    assert compile_options()["backend"] == "aot_eager"
    with pytest.raises(
        ValueError, match=r"torch_compile is aot_eager \(--dynamo_backend\) for the launcher and False"
    ):
        BaseTrainingArguments("out", torch_compile=False)


def test_a_generator_trains_compiled(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Any
) -> None:
    """Trainers without quantizers share it."""
    tokenizer = make_model(kmeans_init=False).eval()
    config = MaskGitConfig(
        vq_config=tokenizer.config, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    tokens = [{"image_tokens": torch.randint(0, 16, config.grid_size)} for _ in range(8)]
    for name in ("eager", "compiled"):
        if name == "compiled":
            monkeypatch.setenv(BACKEND, "EAGER")
            torch._dynamo.reset()
        torch.manual_seed(0)
        args = GeneratorTrainingArguments(
            str(tmp_path / name), max_steps=3, train_batch_size=4, use_cpu=True, disable_tqdm=True, logging_steps=1,
            num_sample_images=1, sample_steps=1,
        )  # fmt: skip
        GeneratorTrainer(MaskGitModel(config, tokenizer=tokenizer), args, tokens).train()
    runs.assert_same_run(tmp_path / "eager", tmp_path / "compiled")
