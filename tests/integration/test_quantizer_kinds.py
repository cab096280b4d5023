"""Kinds of quantizers, somebody else's among them, train, save, load, and are measured and described like ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from hf_vq import (
    Quantizer,
    TokenizerTrainer,
    TokenizerTrainingArguments,
    VectorQuant,
    VQConfig,
    VQImageClassificationConfig,
    VQModel,
    VQModelForImageClassification,
    get_vq_layers,
    register_quantizer,
)
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate
from hf_vq.modeling.checks_quantizer_vq import REGISTERED_TYPES
from hf_vq.modeling.quantizers_vq import QUANTIZERS
from hf_vq.training.snapshots import load_snapshots

from ..tiny_tokens import PROCESSOR, picture
from ..toy_quantizer import SignQuantizer
from .test_two_processes import ROOT, free_port, launch

KINDS: dict[str, dict[str, Any]] = {
    "signs": {"quantizer_type": "signs", "num_codes": 16, "quantizer_options": {"scale": 0.5}},
    "fsq": {"quantizer_type": "fsq", "levels": [4, 4, 4, 4]},
    "ifsq": {"quantizer_type": "fsq", "levels": [4, 4, 4, 4], "level_activation": "sigmoid"},
    "lfq": {"quantizer_type": "lfq"},
    "bsq": {"quantizer_type": "bsq", "num_groups": 2},
    "residual_fsq": {"quantizer_type": "residual_fsq", "levels": [3, 3, 3, 3], "num_groups": 2},
    "residual_lfq": {"quantizer_type": "residual_lfq", "num_groups": 2},
    "simvq": {"quantizer_type": "simvq", "num_codes": 16},
    "ibq": {"quantizer_type": "ibq", "num_codes": 16},
    "diveq": {"num_codes": 16, "gradient_estimator": "diveq", "sync_nu": 0.0},
    "vector": {"num_codes": 16},
}
WORDS = {
    "signs": ("signs, scale 0.5",),
    "fsq": ("finite scalar quantization to 4 x 4 x 4 x 4 levels", "mentzer2024finite"),
    "ifsq": ("sigmoid activation (iFSQ)", "lin2026ifsq", "mentzer2024finite"),
    "lfq": (
        "lookup-free quantization to 4 bits, one token per position, entropy loss",
        "yu2024language",
    ),
    "bsq": ("binary spherical quantization to 2 bits, 2 tokens per position", "zhao2025image"),
    "residual_fsq": ("residual finite scalar quantization, 2 times 3 x 3 x 3 x 3 levels", "mentzer2024finite"),
    "residual_lfq": ("residual lookup-free quantization, 2 times 4 bits", "yu2024language"),
    "simvq": ("frozen codes behind a learned linear map (SimVQ)", "zhu2025addressing"),
    "ibq": ("index backpropagation (IBQ), entropy loss", "shi2025scalable"),
    "diveq": ("DiVeQ gradients", "vali2025diveq"),
    "vector": ("alternating optimization", "huh2023straightening", "codebook share beta"),
}

RELATED = {
    **dict.fromkeys(("fsq", "ifsq", "residual_fsq"), ("fsq", "ifsq", "residual_fsq")),
    **dict.fromkeys(("lfq", "residual_lfq"), ("lfq", "residual_lfq")),
    "diveq": ("vector",),
    "vector": ("diveq",),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The toy kind is known during a test, and forgotten afterwards, as is Accelerate's state."""
    register_quantizer("signs", SignQuantizer)
    yield
    QUANTIZERS.pop("signs", None)
    REGISTERED_TYPES[:] = [name for name in REGISTERED_TYPES if name != "signs"]
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


class Pictures(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Pictures of random blobs."""

    def __init__(self, count: int = 24, first: int = 0) -> None:
        pictures = [picture(first + number) for number in range(count)]
        self.pixel_values = PROCESSOR(pictures, return_tensors="pt").pixel_values

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values[index]}


def train(kind: str, folder: Path, **fields: Any) -> TokenizerTrainer:
    """A short run."""
    set_seed(0)
    config = VQConfig(
        architecture="sqvae", image_size=16, base_channels=8, embed_dim=4, num_res_blocks=1, **KINDS[kind]
    )
    settings = {"learning_rate": 5e-3, "logging_steps": 10, "save_steps": 10, "use_ema": True, **fields}
    args = TokenizerTrainingArguments(
        output_dir=str(folder), max_steps=30, train_batch_size=8, use_cpu=True, disable_tqdm=True, **settings
    )
    trainer = TokenizerTrainer(VQModel(config), args, Pictures(), Pictures(8, 100), PROCESSOR)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_goes_all_the_way(kind: str, tmp_path: Path) -> None:
    """It trains, is monitored, saved with a card, loaded and evaluated; the numbers are those of the trainer."""
    trainer = train(kind, tmp_path / "run", monitor_steps=15, monitor_images=4)
    metrics, final = trainer.eval_metrics, tmp_path / "run" / "final"
    assert metrics is not None
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["reconstruction_loss"] for line in logged if "reconstruction_loss" in line]
    assert losses[-1] < 0.97 * losses[0] and metrics["active_codes"] > 1

    model = AutoModel.from_pretrained(final).eval()
    assert type(get_vq_layers(model)[0]) is QUANTIZERS[model.config.quantizer_type]
    pixel_values = Pictures(8, 100).pixel_values
    out = model(pixel_values)
    again = model.decode(model.encode(pixel_values).image_tokens).decoded_pixel_values
    assert torch.equal(again, out.decoded_pixel_values)
    assert len(out.image_tokens.unique()) == metrics["active_codes"]

    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        picture(100 + number).save(images / f"{number}.png")
    report = evaluate(
        EvaluationArguments(
            str(images),
            compare=[str(final)],
            output_dir=str(tmp_path / "measured"),
            split="train",
            batch_size=4,
            use_cpu=True,
            disable_tqdm=True,
        )
    )
    assert report.results[0]["metrics"]["mse"] == pytest.approx(metrics["mse"], rel=1e-4)
    assert report.results[0]["metrics"]["perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-4)

    snapshots = load_snapshots(tmp_path / "run" / "codebook")
    assert [snapshot.step for snapshot in snapshots] == [1, 15, 30]
    assert all(torch.tensor(list(snapshot.metrics.values())).isfinite().all() for snapshot in snapshots)
    assert torch.equal(snapshots[-1].codes, get_vq_layers(trainer.model)[0].get_codebook())

    card = (final / "README.md").read_text()
    assert all(words in card for words in WORDS[kind])
    others = {
        words for other, found in WORDS.items() if other not in (kind, *RELATED.get(kind, ())) for words in found
    }
    assert not any(words in card for words in others)


def test_runs_are_resumed(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint ends with the weights of the uninterrupted one."""
    straight = train("signs", tmp_path / "straight")
    resumed = train("signs", tmp_path / "straight", resume_from_checkpoint=str(tmp_path / "straight/checkpoint-20"))

    assert all(
        torch.equal(value, resumed.model.state_dict()[name]) for name, value in straight.model.state_dict().items()
    )


def test_a_frozen_kind_stays_as_it_is(tmp_path: Path) -> None:
    """The base class freezes what it knows nothing about."""
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, embed_dim=4, **KINDS["signs"])
    model = VQModel(config).train()
    model.freeze_codebook()
    model(torch.rand(2, 3, 16, 16)).loss.backward()

    assert model.quantize.scale.grad is None and model.encoder.conv[0].weight.grad is not None


@pytest.mark.parametrize("kind", ["signs", "fsq", "bsq", "simvq", "ibq"])
def test_a_classifier_takes_every_kind(kind: str) -> None:
    """The channels of its quantized layer, four of them here, are the feature size."""
    config = VQImageClassificationConfig(**{"base_channels": 1, "quantized_layer": 3, "num_labels": 3, **KINDS[kind]})
    model = VQModelForImageClassification(config).train()
    out = model(torch.rand(2, 3, 32, 32), labels=torch.tensor([0, 1]))
    out.loss.backward()

    assert type(model.quantize) is QUANTIZERS[config.quantizer_type] and config.quantized_size == 4
    assert out.image_tokens.min() >= 0 and out.image_tokens.max() < config.num_codes
    with pytest.raises(ValueError, match="quantized layer, `quantized_size`, must be the number of `levels`, got 6"):
        VQModelForImageClassification(
            VQImageClassificationConfig(base_channels=1, quantized_layer=2, quantizer_type="fsq", levels=[4] * 4)
        )


@pytest.mark.parametrize("kind", ["signs", "fsq", "lfq", "simvq", "ibq"])
def test_two_processes_train_one_model(kind: str, tmp_path: Path) -> None:
    """Both ranks end with the same weights and metrics, and the logged perplexity is that of all vectors."""
    launch(
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", free_port()),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *(str(Path(__file__).with_name("kind_processes.py")), str(tmp_path), kind),
        ACCELERATE_USE_CPU="1",
    )
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]

    assert ranks[0]["state"] == ranks[1]["state"] and ranks[0]["metrics"] == ranks[1]["metrics"]
    assert ranks[0]["metrics"]["num_images"] == 21
    assert len(load_snapshots(tmp_path / "run" / "codebook")) == 3
    model = AutoModel.from_pretrained(tmp_path / "run" / "final")
    assert model.config.quantizer_type == kind


def test_a_kind_has_to_be_registered_before_its_models_load(tmp_path: Path) -> None:
    """Where it is not, the error says how; where it is, nothing else is needed."""
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, embed_dim=4, **KINDS["signs"])
    VQModel(config).save_pretrained(tmp_path / "model")
    script = "import sys; from transformers import AutoModel; import hf_vq; AutoModel.from_pretrained(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model")], env=environment, capture_output=True, text=True
    )
    assert found.returncode != 0 and "register it first: `hf_vq.register_quantizer('signs'" in found.stderr
    known = "from tests.toy_quantizer import SignQuantizer; hf_vq.register_quantizer('signs', SignQuantizer);"
    script = script.replace("AutoModel.from_pretrained(", f"{known} AutoModel.from_pretrained(")
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], env=environment, check=True)


def test_registering() -> None:
    """The same class again is fine; another class, a name of ours and what is no quantizer are refused."""
    register_quantizer("signs", SignQuantizer)
    assert REGISTERED_TYPES.count("signs") == 1
    register_quantizer("vector", VectorQuant)
    assert "vector" not in REGISTERED_TYPES

    class Other(SignQuantizer):
        """Another class."""

    for name in ("signs", "vector"):
        with pytest.raises(ValueError, match=f"The name '{name}' belongs to .*Quant.*Other another one"):
            register_quantizer(name, Other)
    with pytest.raises(TypeError, match="subclass of hf_vq.Quantizer, got <class 'torch.nn"):
        register_quantizer("linear", torch.nn.Linear)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer_type": "sings"}, "no quantizer_type 'sings', only vector, .*signs.*register it first"),
        ({"quantizer_options": {"scale": 1.0}}, "`quantizer_options` are for kinds of your own"),
        ({"quantizer_type": "signs", "quantizer_options": {"dim": 1}}, r"must not hold \['dim'\]"),
        ({"quantizer_type": "signs", "num_codes": 0}, "`num_codes` must be at least 1"),
        ({"quantizer_type": "signs", "levels": [2]}, '`levels=.2.` needs `quantizer_type` "fsq"'),
    ],
)
def test_configurations_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    """Each error names what was wrong and what is there."""
    with pytest.raises(StrictDataclassError, match=message):
        VQConfig(**fields)


def test_a_layer_that_contradicts_its_configuration() -> None:
    """Attributes that are missing or different are told when the model is made."""

    class Forgetful(Quantizer):
        def __init__(self, feature_size: int, num_codes: int, dim: int = 1, groups: int = 1) -> None:
            super().__init__()
            if groups > 1:
                self.feature_size, self.code_dim, self.num_codes, self.groups = feature_size, 1, num_codes, groups

    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, embed_dim=4, **KINDS["signs"])
    QUANTIZERS["signs"] = Forgetful
    config.quantizer_options = None
    with pytest.raises(ValueError, match="Forgetful must set feature_size, num_codes, code_dim in its `__init__`"):
        VQModel(config)
    config.quantizer_options = {"groups": 2}
    with pytest.raises(ValueError, match="Forgetful has groups=2, .* Give it `num_groups=2`"):
        VQModel(config)
