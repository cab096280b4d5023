"""What version 0.1.0 wrote goes on working: models, token data sets, and runs that were killed before their end.

The files are in tests/data/written_by_0_1, whose README says what they are. Every test works on a copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

import hf_vq
from hf_vq import MaskGitModel, VQImageProcessor, VQModel, VQModelForImageClassification, load_token_dataset

if TYPE_CHECKING:
    from ..hub_server import HubServer

ROOT = Path(__file__).parents[2]
FILES = ROOT / "tests" / "data" / "written_by_0_1"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text())
TOKENIZERS = ["affine_l2", "ema", "group", "residual", "sgd", "unsigned", "vector", "vqgan"]
PICTURES = sorted((FILES / "pictures" / "test").rglob("*.png"))[1::2]  # every model was asked about these three
MODELS = ["classifier", "maskgit", *TOKENIZERS]
CLASSES: dict[str, Any] = {"classifier": VQModelForImageClassification, "maskgit": MaskGitModel} | dict.fromkeys(
    TOKENIZERS, VQModel
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are added in the same order on every machine; Accelerate forgets the last run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all files; the working directory, since the runs name their data by relative paths."""
    folder = tmp_path / "files"
    shutil.copytree(FILES, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    """Runs one of the scripts in this process, as if it had been called by its path."""

    def run(script: str, words: list[str]) -> None:
        path = str(ROOT / "scripts" / script)
        monkeypatch.setattr(sys, "argv", [path, *words])
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code

    return run


def assert_answers(answers: dict[str, torch.Tensor], name: str) -> None:
    """Integers are equal, real numbers nearly."""
    expected = load_file(FILES / "expected" / f"answers_{name}.safetensors")
    assert answers.keys() == expected.keys()
    for key, value in expected.items():
        assert answers[key].dtype == value.dtype and answers[key].shape == value.shape, key
        if value.dtype == torch.uint8:  # pixels may be rounded to the next level
            assert (answers[key].int() - value.int()).abs().max() <= 1, key
        elif value.dtype.is_floating_point:
            torch.testing.assert_close(answers[key], value, rtol=1e-5, atol=1e-5, msg=key)
        else:
            assert torch.equal(answers[key], value), key


# ---- models


@pytest.mark.parametrize("name", MODELS)
def test_models_answer_as_they_did(name: str) -> None:
    """Tokens are equal, pixels and logits the same to 1e-5, and so are images drawn with the same seeds."""
    answers = runpy.run_path(str(FILES / "make_fixtures.py"))["answers"]
    assert_answers(answers(FILES / "models" / name, [Image.open(path) for path in PICTURES]), name)


@pytest.mark.parametrize("name", MODELS)
def test_auto_classes_load_them_and_find_every_weight(name: str, tmp_path: Path) -> None:
    """No flag is asked for, names, dtypes, shapes and bits of the weights stay, also when the model is saved again."""
    folder = FILES / "models" / name
    kind: Any = AutoModelForImageClassification if name == "classifier" else AutoModel
    model: Any
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert type(model) is CLASSES[name]
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == EXPECTED["models"][name]
    if name != "maskgit":  # transformers has no processors for models that generate
        assert type(AutoImageProcessor.from_pretrained(folder)) is VQImageProcessor

    model.save_pretrained(tmp_path)
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key].dtype == value.dtype and torch.equal(second[key], value), key
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    assert_kept(before, after)


def assert_kept(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every field keeps its value; newer versions may add fields."""
    for key, value in before.items():
        if isinstance(value, dict):
            assert_kept(value, after[key])
        elif key not in ("hf_vq_version", "transformers_version"):
            assert after[key] == value, key


LOAD_WITHOUT_THE_PACKAGE = """
import json, sys

sys.modules["hf_vq"] = None  # importing it now raises
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder, *paths = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    pixel_values = processor([Image.open(path) for path in paths], return_tensors="pt").pixel_values
    print(json.dumps(model.encode(pixel_values).image_tokens.tolist()))
"""


@pytest.mark.local_code
def test_a_folder_with_its_code_loads_with_and_without_the_package(tmp_path: Path) -> None:
    """The folder exactly as it was written: its own code runs elsewhere, and here the installed classes come first."""
    folder = tmp_path / "vector"
    shutil.unpack_archive(FILES / "vector_as_written.zip", folder)
    expected = load_file(FILES / "expected" / "answers_vector.safetensors")
    assert (folder / "modeling_vq.py").is_file() and (folder / "README.md").is_file()
    assert type(AutoModel.from_pretrained(folder)) is VQModel
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)) is VQModel

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_WITHOUT_THE_PACKAGE, str(folder), *map(str, PICTURES)],
        env=environment | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == expected["image_tokens"].tolist()


@pytest.mark.parametrize("name", ["classifier", "maskgit", "unsigned", "vqgan"])
def test_the_range_of_pixels_is_that_of_the_processor(name: str, hub: HubServer, tmp_path: Path) -> None:
    """A configuration of 0.1.0 does not say it; without normalization it is [0, 1], also once saved and published."""
    expected = [0.0, 1.0] if name == "unsigned" else [-1.0, 1.0]
    folder = FILES / "models" / name
    assert "pixel_range" not in (folder / "config.json").read_text()
    processor = VQImageProcessor.from_pretrained(folder)
    pixel_values = processor([Image.new("RGB", (16, 16), color) for color in ("black", "white")]).pixel_values
    assert [pixel_values[0].min(), pixel_values[1].max()] == expected

    model = CLASSES[name].from_pretrained(folder)
    model.save_pretrained(tmp_path)
    api = HfApi()
    api.create_repo("alice/model")
    api.upload_folder(repo_id="alice/model", folder_path=folder)
    for found in (model, CLASSES[name].from_pretrained(tmp_path), hf_vq.from_hub("alice/model")[0]):
        assert list(getattr(found.config, "vq_config", found.config).pixel_range) == expected


@pytest.mark.parametrize("name", ["vector", "maskgit", "classifier"])
def test_repositories_load_and_keep_what_a_person_wrote(name: str, hub: HubServer, files: Path) -> None:
    """An older repository comes down from the Hub; pushing again renews our part of its card and nothing else."""
    folder = files / "models" / name
    card = ModelCard.load(folder / "README.md")
    card.data["language"] = "en"
    card.text = f"Written by hand, before.\n{card.text}\nWritten by hand, after.\n"
    card.save(folder / "README.md")
    api = HfApi()
    api.create_repo(f"alice/{name}")
    api.upload_folder(repo_id=f"alice/{name}", folder_path=folder)

    model: Any
    again: Any
    model, processor = hf_vq.from_hub(f"alice/{name}")
    assert type(model) is CLASSES[name] and isinstance(processor, VQImageProcessor)
    hf_vq.push_to_hub(model, f"alice/{name}", metrics={"num_images": 6})

    pushed = ModelCard(hub.store.read(f"alice/{name}", "README.md").decode())
    assert pushed.text.lstrip().startswith("Written by hand, before.")
    assert pushed.text.rstrip().endswith("Written by hand, after.")
    assert pushed.text.count("<!-- hf_vq: begin") == pushed.text.count("<!-- hf_vq: end") == 1
    assert pushed.data.to_dict()["language"] == "en"
    again, _ = hf_vq.from_hub(f"alice/{name}")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


# ---- tokens


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_token_data_sets_load(split: str, streaming: bool, caplog: pytest.LogCaptureFixture) -> None:
    """All shards of both splits, which carry no hashes, hold the rows that they did, and their tokenizer is known."""
    folder = FILES / "tokens"
    rows = load_token_dataset(folder, split, tokenizer=FILES / "models" / "vector", streaming=streaming)
    found = [{**row, "image_tokens": row["image_tokens"].tolist()} for row in rows]
    assert found == EXPECTED["tokens"][split]
    assert f"the files of the split '{split}' have no hashes, as version 0.1.0 wrote them: not verified" in caplog.text
    assert {row["view"] for row in found} == {"center", "center-flip"}
    with pytest.raises(ValueError, match="another tokenizer"):
        load_token_dataset(folder, split, tokenizer=FILES / "models" / "sgd")


def test_an_unfinished_token_data_set_is_finished(
    files: Path, run: Callable[[str, list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed command, given again, keeps the shards that are there and ends with the tokens of an unbroken run."""
    folder = files / "unfinished" / "tokens"
    assert list(folder.glob(".tmp-*")) and not (folder / "train-00002.parquet").exists()
    run("tokenize_dataset.py", [*EXPECTED["tokenize"], "--output_dir", "here"])
    move_to_this_machine(folder, json.loads((files / "here" / "manifest.json").read_text()))
    kept = {path: path.stat().st_ino for path in folder.glob("*.parquet")}

    run("tokenize_dataset.py", [*EXPECTED["tokenize"], "--output_dir", "unfinished/tokens"])
    assert {path: path.stat().st_ino for path in kept} == kept
    assert not list(folder.glob(".tmp-*"))
    for split, expected in EXPECTED["tokens"].items():
        rows = load_token_dataset(folder, split, tokenizer=files / "models" / "vector")
        assert [{**row, "image_tokens": row["image_tokens"].tolist()} for row in rows] == expected


def move_to_this_machine(folder: Path, here: dict[str, Any]) -> None:
    """Rewrites what binds an unfinished data set to versions and processor, since a run does not go on with others.

    Everything else in the manifest, and the hash of the settings in the shards, stays in the form of version 0.1.0.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    before = hash_of_settings(manifest)
    manifest |= {name: here[name] for name in ("versions", "device_name")}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        metadata = dict(table.schema.metadata)
        info = json.loads(metadata[b"hf_vq"])
        assert info["settings"] == before
        metadata[b"hf_vq"] = json.dumps(info | {"settings": hash_of_settings(manifest)}).encode()
        pq.write_table(table.replace_schema_metadata(metadata), path)


def hash_of_settings(manifest: dict[str, Any]) -> str:
    """What version 0.1.0 wrote into each shard."""
    settings = {name: value for name, value in manifest.items() if name != "splits"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# ---- unfinished runs


@pytest.mark.same_numbers
@pytest.mark.parametrize("name", list(EXPECTED["runs"]))
def test_unfinished_runs_end_as_if_nothing_had_happened(
    name: str, files: Path, run: Callable[[str, list[str]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """From a checkpoint of 0.1.0 on, losses, evaluations, snapshots and final weights are the unbroken run's.

    Its files carry no hashes, and the run says that it could not verify them.
    """
    record, folder = EXPECTED["runs"][name], files / "unfinished" / name
    assert (folder / "checkpoint-4").exists() and (folder / ".tmp-checkpoint-6").exists()
    assert read_metrics(folder)[-1]["step"] == 6, "the run was killed two steps after its last checkpoint"

    words = [*record["words"], "--output_dir", f"unfinished/{name}", "--resume_from_checkpoint", "latest"]
    run(record["script"], words)

    assert "checkpoint-4' has no hashes, as version 0.1.0 wrote it: its content was not verified" in caplog.text
    assert not list(folder.glob(".tmp-*"))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-8"]  # save_total_limit is 1
    assert_metrics(read_metrics(folder), record["metrics"])
    weights, expected = load_file(folder / "final" / "model.safetensors"), files / "expected" / f"{name}.safetensors"
    assert_weights(weights, load_file(expected))
    snapshots = files / "expected" / f"{name}_codebook"
    if name == "tokenizer":
        assert sorted(os.listdir(folder / "codebook")) == sorted(os.listdir(snapshots))
        for path in snapshots.iterdir():
            assert_snapshot(folder / "codebook" / path.name, path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def assert_metrics(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same lines, with nearly the same numbers; newer versions may write further ones."""
    assert [(line["step"], line["split"]) for line in found] == [(line["step"], line["split"]) for line in expected]
    for line, reference in zip(found, expected, strict=True):
        numbers = {key: value for key, value in reference.items() if key != "split"}
        # Evaluations see the biases that `is_noisy` tells of, as the batch norms' averages follow them late.
        tolerance = 1e-5 if line["split"] == "train" else 1e-3
        assert {key: line[key] for key in numbers} == pytest.approx(numbers, rel=tolerance, abs=1e-6)


def is_noisy(name: str) -> bool:
    """Whether a tensor may differ from machine to machine.

    The gradient of a bias before a batch norm is nothing but rounding, which Adam makes as large as its learning rate.
    The batch norm's average, and in evaluation what lies behind it, follow that bias.
    """
    return name.endswith((".bias", ".running_mean")) or name == "embeddings"


def assert_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names, dtypes and shapes, and nearly the same numbers."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        tolerance = 1e-3 if is_noisy(key) else 1e-5
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=tolerance, msg=f"{key} differs")


def assert_snapshot(found: Path, expected: Path) -> None:
    """Two snapshots of a codebook hold nearly the same tensors and numbers."""
    assert_weights(load_file(found), load_file(expected))
    metadata = []
    for path in (found, expected):
        with safe_open(path, "pt") as file:
            metadata.append(file.metadata())
    assert metadata[0]["step"] == metadata[1]["step"]
    metrics, reference = (json.loads(part["metrics"]) for part in metadata)
    for name, value in reference.items():  # a noisy bias may lie at the kink of a ReLU, where gradients jump
        assert metrics[name] == pytest.approx(value, rel=2e-2 if name.startswith("gradient") else 1e-3), name
