"""The host waits for nothing in a steady step. What is not finite changes nothing, although it hears of it late."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vq import ClassifierTrainer, ClassifierTrainingArguments, VQImageClassificationConfig
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification
from hf_vq.training.checkpoints import list_checkpoints
from hf_vq.training.flags import NonFiniteLossError

MakeTrainer = Callable[..., Any]


class Questions(TorchDispatchMode):
    """Counts the operations with which a host waits for a value of a device, outside of optimizers.

    Those keep their step counters on the CPU, or (if fused) ask nothing.
    """

    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero", "aten._unique2")

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.in_optimizer = False
        for optimizer in trainer.networks.optimizers.values():
            optimizer.register_step_pre_hook(lambda *_: setattr(self, "in_optimizer", True))
            optimizer.register_step_post_hook(lambda *_: setattr(self, "in_optimizer", False))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Runs and counts an operation."""
        if str(function).startswith(self.WAITS) and not self.in_optimizer:
            here = [frame for frame in traceback.extract_stack()[:-1] if "torch" not in frame.filename]
            if not here[-1].filename.endswith("pixel_range_vq.py"):  # which looks at pixels on CPUs alone
                self.asked.append(f"{function} at {here[-1].filename}:{here[-1].lineno}")
        return function(*args, **(kwargs or {}))


def labeled(images: Any) -> Any:
    """The images with a label each."""
    return [{**images[number], "label": number % 2} for number in range(len(images))]


def test_a_steady_step_waits_for_nothing(
    make_trainer: MakeTrainer, images: Any, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """With averages, a discriminator, micro batches and inner steps; no code is due to be replaced."""
    fields, model = everything
    tokenizer = make_trainer("tokenizer", {**model, "replace_freq": 50}, **fields)
    sizes: dict[str, Any] = {"image_size": 16, "base_channels": 2, "num_codes": 8, "num_labels": 2}
    config = VQImageClassificationConfig(**sizes, replace_freq=50)
    args = ClassifierTrainingArguments(str(tmp_path / "classifier"), train_batch_size=4, use_cpu=True, use_ema=True)
    data = labeled(images())
    classifier = ClassifierTrainer(VQModelForImageClassification(config), args, data)
    for trainer in (tokenizer, classifier):
        trainer.networks.train()
        batches = trainer.data.batches(0)
        questions = Questions(trainer)
        for _ in range(6):
            step = [next(batches) for _ in range(trainer.args.gradient_accumulation_steps)]
            questions.asked.clear()
            with questions:
                trainer.train_step(step)
            trainer.step += 1
        assert questions.asked == []


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(
    make_trainer: MakeTrainer,
    tmp_path: Path,
    everything: tuple[dict[str, Any], dict[str, Any]],
    runs: Any,
    broken: str,
) -> None:
    """Weights, codes, clocks, averages and discriminator keep their bits, although the next step has begun."""
    fields, model = everything
    trainer = make_trainer("out", model, **fields, save_steps=3, eval_steps=0, logging_steps=100, max_steps=20)
    train_step, began = trainer.train_step, []
    before: dict[str, Any] = {}

    def state() -> dict[str, Any]:
        layers = [layer.training_state() for layer in trainer.quantizers]
        networks = [trainer.model, trainer.ema.module, trainer.discriminator]
        return copy.deepcopy({"layers": layers, "networks": [network.state_dict() for network in networks]})

    def break_in_step_4(batches: Any) -> Any:
        began.append(trainer.step + 1)
        if trainer.step == 3:
            before.update(state())
            if broken == "loss":
                batches[0]["pixel_values"][0, 0, 0, 0] = float("nan")
            else:
                next(trainer.model.decoder.parameters()).register_hook(lambda grad: grad * float("inf"))
        return train_step(batches)

    trainer.train_step = break_in_step_4
    with pytest.raises(NonFiniteLossError, match=r"(?s)in step 4 .*last good checkpoint is '.*checkpoint-3'"):
        trainer.train()

    assert began == [1, 2, 3, 4, 5]
    runs.assert_equal(state(), before)
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["checkpoint-3"]


def test_no_checkpoint_is_written_of_a_step_that_was_not_finite(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Where the step itself is to be saved, the host waits for its answer."""
    trainer = make_trainer(save_steps=2, eval_steps=0, logging_steps=100)
    to_device = trainer.to_device
    trainer.to_device = lambda batch: to_device(batch) * (float("nan") if trainer.step == 3 else 1.0)
    with pytest.raises(NonFiniteLossError, match="in step 4"):
        trainer.train()
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["checkpoint-2"]


def test_a_fused_optimizer_leaves_a_masked_step_out(make_trainer: MakeTrainer, runs: Any) -> None:
    """As on CUDA: no copy of the weights; moments and counters stay, too. It takes up the state of any other one."""
    trainer = make_trainer()
    batches = trainer.data.batches(0)
    trainer.train_step([next(batches)])
    optimizer = trainer.networks.optimizers["model"]
    saved = copy.deepcopy(trainer.networks.state_dict())
    optimizer.defaults["fused"] = optimizer._step_supports_amp_scaling = True
    trainer.networks.load_state_dict(saved)
    assert all(group["fused"] for group in optimizer.param_groups)

    def everything() -> Any:
        return copy.deepcopy([trainer.model.state_dict(), list(optimizer.state_dict()["state"].values())])

    for masked in (True, False):
        for weight in trainer.model.parameters():
            weight.grad = torch.full_like(weight, float("nan") if masked else 1.0)
        before = everything()
        trainer.networks.step(["model"], torch.tensor(masked))
        if masked:
            runs.assert_equal(everything(), before)
    with pytest.raises(AssertionError):
        runs.assert_equal(everything()[0], before[0])
