"""Classifiers are trained by the shared loop: they learn, resume bit-equal, and say what is wrong with labels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset

from hf_vq import (
    ClassifierTrainer,
    ClassifierTrainingArguments,
    VQImageClassificationConfig,
    VQModelForImageClassification,
)
from hf_vq.metrics.classification import ClassificationMetrics
from hf_vq.training.classifier_data import check_labels
from hf_vq.training.monitor import CodebookMonitor
from hf_vq.training.snapshots import load_snapshots

MakeTrainer = Callable[..., ClassifierTrainer]
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


class Squares(Dataset[dict[str, Any]]):
    """Noise with a bright half: above, below, or neither."""

    def __init__(self, length: int = 24, classes: int = 3) -> None:
        self.length = length
        self.classes = classes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index)) - 1
        label = index % self.classes
        if label < 2:
            image[:, 8 * label : 8 * label + 8] += 1
        return {"pixel_values": image, "label": label}


class Unlabeled(Squares):
    """The same without labels."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": super().__getitem__(index)["pixel_values"]}


@pytest.fixture
def make_classifier(tmp_path: Path) -> MakeTrainer:
    """Makes trainers of tiny classifiers in `tmp_path / output_dir`; `model` holds the model's fields."""

    def make(
        output_dir: str = "out", model: Any = None, train: Any = None, held_out: Any = None, **fields: Any
    ) -> Any:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / output_dir),
            "max_steps": 8,
            "train_batch_size": 4,
            "eval_batch_size": 3,
            "learning_rate": 3e-3,
            "logging_steps": 2,
            "eval_steps": 4,
            "save_steps": 3,
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
        set_seed(0)
        config = {"num_labels": 3, "image_size": 16, "backbone_config": dict(RESNET), "num_codes": 16, **(model or {})}
        network = VQModelForImageClassification(VQImageClassificationConfig(**config))
        return ClassifierTrainer(
            network,
            ClassifierTrainingArguments(**settings),
            Squares() if train is None else train,
            Squares(7) if held_out is None else held_out,
        )

    return make


def test_it_learns_with_a_quantized_layer(make_classifier: MakeTrainer, tmp_path: Path) -> None:
    """Held-out images are told apart by their codes, and the measures are those of the published model."""
    trainer = make_classifier(max_steps=60, train=Squares(200), held_out=Squares(30), save_steps=0, eval_steps=0)
    metrics = trainer.train()

    assert metrics["accuracy"] > 0.9 and metrics["num_images"] == 30
    final = VQModelForImageClassification.from_pretrained(tmp_path / "out" / "final")
    items = [Squares(30)[index] for index in range(30)]
    labels = torch.tensor([item["label"] for item in items])
    with torch.no_grad():
        out = final(torch.stack([item["pixel_values"] for item in items]), labels=labels)
    right = out.logits.argmax(-1) == labels
    assert metrics["accuracy"] == pytest.approx(right.float().mean().item())
    assert metrics["perplexity"] == pytest.approx(out.perplexity.item(), rel=1e-4)
    assert metrics["active_codes"] == len(out.image_tokens.unique())
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {"accuracy", "classification_loss", "commitment_loss", "perplexity", "replaced_codes"} <= lines[0].keys()


@pytest.mark.parametrize("backbone", [RESNET, None])
def test_a_resumed_run_equals_the_uninterrupted_one(
    make_classifier: MakeTrainer, tmp_path: Path, runs: Any, backbone: Any
) -> None:
    """Weights, averages, quantizer, dropout's random numbers and metrics are bit-equal after an interruption."""
    model = {"backbone_config": backbone, "base_channels": 4, "replace_freq": 2, "affine_lr": 2.0}
    fields: dict[str, Any] = {"use_ema": True, "gradient_accumulation_steps": 2}
    make_classifier("straight", model, **fields).train()

    trainer = make_classifier("resumed", model, **fields)
    train_step = trainer.train_step

    def stopping(batches: Any) -> Any:
        if trainer.step == 5:
            raise KeyboardInterrupt
        return train_step(batches)

    trainer.train_step = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = make_classifier("resumed", model, **fields, resume_from_checkpoint="latest")
    resumed.train()

    assert resumed.step == 8
    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_replaced_codes_start_without_moments(make_classifier: MakeTrainer) -> None:
    """The optimizer forgets what it knew of a code that holds another vector now."""
    trainer = make_classifier(model={"replace_freq": 1, "num_codes": 64}, max_steps=6)
    codebook: Any = trainer.model.quantize.codebook
    weight = codebook.weight
    seen = []
    step = trainer.networks.step

    def look(names: list[str], masked: torch.Tensor) -> None:
        rewritten = codebook.rewritten
        state = trainer.networks.optimizers["model"].state.get(weight)
        if state and rewritten is not None and rewritten.any():
            seen.append(state["exp_avg"][rewritten].abs().max().item())
        step(names, masked)

    trainer.networks.step = look  # type: ignore[method-assign]
    trainer.train()
    assert seen and max(seen) == 0


def test_the_final_folder_has_a_card(make_classifier: MakeTrainer, tmp_path: Path) -> None:
    """With the classes, the measures and the recipe; the image processor is the one that the model needs."""
    names = {"id2label": {0: "above", 1: "below", 2: "neither"}}
    make_classifier(model=names, dataset="somewhere/squares").train()
    final = tmp_path / "out" / "final"
    card = (final / "README.md").read_text()
    for part in ("| 3: above, below, neither |", "| Accuracy | ", "| somewhere/squares | ", "| steps | 8 |"):
        assert part in card, part
    assert "pipeline_tag: image-classification" in card
    assert json.loads((final / "preprocessor_config.json").read_text())["crop_size"] == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": Unlabeled()}, "The training set has no labels, nothing to learn"),
        ({"held_out": Unlabeled()}, "The held-out set has no labels"),
    ],
)
def test_data_without_labels_are_refused(make_classifier: MakeTrainer, data: dict[str, Any], message: str) -> None:
    """Before the first step."""
    with pytest.raises(ValueError, match=message):
        make_classifier(**data)


def test_other_problems_and_labels_are_refused(make_classifier: MakeTrainer) -> None:
    """Numbers to predict, several labels for an image, names."""
    with pytest.raises(ValueError, match=r"one label for an image, but `problem_type='regression'`"):
        make_classifier(model={"problem_type": "regression"})
    for label in (0.5, "cat", [0, 1]):
        squares: Any = Squares(2)
        squares.source = datasets.Dataset.from_dict({"label": [label, label]})
        with pytest.raises(
            ValueError, match="Labels must be whole numbers, one for an image, got .*class_encode_column"
        ):
            check_labels(squares, 2, "training")


def test_what_nothing_depends_on_is_left_alone(make_classifier: MakeTrainer) -> None:
    """The mask token of a DINOv2, without a gradient, is neither trained nor decayed; all else is."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    trainer = make_classifier(model={"backbone_config": {"model_type": "dinov2", **sizes}}, weight_decay=0.5)
    trained = {id(weight) for group in trainer.networks.optimizers["model"].param_groups for weight in group["params"]}
    left_out = {name for name, weight in trainer.model.named_parameters() if id(weight) not in trained}
    assert left_out == {"backbone.embeddings.mask_token"}
    mask_token = trainer.model.get_parameter("backbone.embeddings.mask_token")
    before = mask_token.clone()
    trainer.train()
    assert torch.equal(mask_token, before)


@pytest.mark.parametrize("layer", ["quantized", "switched-off"])
def test_two_processes_train_one_classifier(layer: str, tmp_path: Path) -> None:
    """Also where parts get no gradient, of the backbone or under `no_vq`: equal weights on both, whole measures."""
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(Path(__file__).with_name("classifier_processes.py")), str(tmp_path), layer],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert ranks[0]["weights"] == ranks[1]["weights"] and ranks[0]["metrics"] == ranks[1]["metrics"]
    assert ranks[0]["metrics"]["num_images"] == 7


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "The training set has no labels"),
        ([None, None], "The training set has no labels"),
        ([0, None], "The training set has images without a label, 1 of 2: rows 1. .*leave these images out"),
        ([None, 0, 1, None], "without a label, 2 of 4: rows 0, 3"),
    ],
)
def test_empty_sets_and_missing_labels_are_told_of(labels: list[int | None], message: str, as_list: bool) -> None:
    """In the words of the user: which set, how many rows and which."""
    squares: Any = Squares(len(labels))
    rows = [{"label": label} for label in labels]
    squares.source = rows if as_list else datasets.Dataset.from_dict({"label": labels})
    with pytest.raises(ValueError, match=message):
        check_labels(squares, 2, "training")


def test_metrics_do_not_depend_on_batches() -> None:
    """Accuracy and cross entropy are means over images, not over batches; no images are an error."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels, tokens = torch.tensor([0, 0, 0]), torch.tensor([[0, 1], [1, 1], [3, 0]])
    whole, parts = ClassificationMetrics(4), ClassificationMetrics(4)
    whole.update(logits, labels, tokens, torch.tensor(0.5))
    for rows in (slice(0, 2), slice(2, 3)):
        parts.update(logits[rows], labels[rows], tokens[rows], torch.tensor(0.5))
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    for metrics in (whole.compute(), parts.compute()):
        assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["cross_entropy"] == pytest.approx(expected)
        assert metrics["active_codes"] == 3 and metrics["usage"] == 0.75 and metrics["num_images"] == 3
        assert metrics["quantization_error"] == pytest.approx(0.5)
        assert metrics["perplexity"] == pytest.approx(2.7495, rel=1e-3)
    with pytest.raises(ValueError, match="no images to measure"):
        ClassificationMetrics(4).compute()


def test_a_monitor_watches_the_layer(make_classifier: MakeTrainer, tmp_path: Path) -> None:
    """The recorded task loss is the published model's cross entropy, and a watched run ends with the same bits."""
    watched, alone = make_classifier(save_steps=0), make_classifier("alone", save_steps=0)
    watched.callbacks.append(CodebookMonitor(every=8, num_images=7))
    watched.train()
    alone.train()

    snapshot = load_snapshots(tmp_path / "out" / "codebook")[-1]
    model = watched.published_model().eval()
    items = [Squares(7)[index] for index in range(7)]
    with torch.no_grad():
        out = model(torch.stack([item["pixel_values"] for item in items]))
    expected = torch.nn.functional.cross_entropy(out.logits, torch.tensor([item["label"] for item in items]))
    assert snapshot.step == 8 and abs(snapshot.metrics["task_loss"] - expected.item()) < 1e-5
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name
