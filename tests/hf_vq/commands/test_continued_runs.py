"""Runs of all three training commands know their settings: a folder is all it takes to continue one."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from hf_vq.commands import convert_checkpoint, evaluate, generate, train_classifier, train_generator, train_tokenizer
from hf_vq.commands import tokenize_dataset as tokenize_dataset_command
from hf_vq.data.images import ImageDataset
from hf_vq.data.tokenize import TokenizationArguments, tokenize_dataset
from hf_vq.evaluation.images import ImageBatches
from hf_vq.hub.folders import SPLIT_FILE
from hf_vq.hub.models import push_to_hub
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.version_vq import VERSION_KEY
from hf_vq.training.checkpoints import STATE_FILE

if TYPE_CHECKING:
    from ...hub_server import HubServer

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "tokenizer": train_tokenizer.main,
    "generator": train_generator.main,
    "classifier": train_classifier.main,
}
WORDS = {
    "tokenizer": "--architecture sqvae --image_size 16 --base_channels 8 --num_res_blocks 1 --num_codes 16",
    "generator": "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --num_sample_images 2 "
    "--sample_steps 2",
    "classifier": "--image_size 16 --base_channels 4 --num_codes 8",
}
COMMON = "--max_steps 2 --train_batch_size 4 --eval_fraction 0.25 --learning_rate 1e-3 --use_cpu --disable_tqdm"


def forget() -> None:
    """The next command of this process begins without the state of the last one."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate forgets each run."""
    yield
    forget()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a finished run of each kind: `tokenizer`, `generator` and `classifier`."""
    root = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    for number in range(16):
        path = root / "images" / ("cats", "dogs")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    for kind, main in COMMANDS.items():
        if kind == "generator":
            shutil.copytree(root / "tokenizer" / "final", root / "vq")  # the run itself goes on
            tokenizer, dataset, tokens = (str(root / name) for name in ("vq", "images", "tokens"))
            tokenize_dataset(TokenizationArguments(tokenizer, dataset, tokens, use_cpu=True, disable_tqdm=True))
            data = ["--tokens", str(root / "tokens"), "--tokenizer", str(root / "vq")]
        else:
            data = ["--dataset", str(root / "images")]
        main([*WORDS[kind].split(), *COMMON.split(), *data, "--output_dir", str(root / kind)])
        forget()
    return root


def state(run: Path, step: int) -> Any:
    """What the checkpoint of a step says of its run."""
    return json.loads((run / f"checkpoint-{step}" / STATE_FILE).read_text())


def evaluate_held_out(model: Path, dataset: Path, output_dir: Path, *words: str) -> Any:
    """The report of an evaluation on the four images that a model's run held out."""
    told = ["--model", str(model), "--dataset", str(dataset), "--split", "held-out", "--use_cpu", "--disable_tqdm"]
    evaluate.main([*told, "--output_dir", str(output_dir), *words])
    forget()
    report = json.loads((output_dir / "evaluation.json").read_text())
    assert report["protocol"]["dataset"] | {"num_images": 4, "split": "held-out"} == report["protocol"]["dataset"]
    return report


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_folder_and_a_new_length_are_all_that_a_longer_run_needs(kind: str, folder: Path) -> None:
    """Everything else is as the run was told; what is given and agrees is fine, what changes takes the flag."""
    run, main = folder / kind, COMMANDS[kind]
    go_on = ["--resume_from_checkpoint", "latest", "--output_dir", str(run)]
    before = state(run, 2)
    main([*go_on, "--max_steps", "3", "--train_batch_size", "4"])
    forget()
    after = state(run, 3)
    told = {"max_steps", "resume_from_checkpoint"}
    assert {name for name in before["arguments"] if before["arguments"][name] != after["arguments"][name]} == told
    assert {key: before["model"][key] for key in before["model"] if key != VERSION_KEY} == {
        key: after["model"][key] for key in before["model"] if key != VERSION_KEY
    }
    assert after["changes"] == [{"step": 2, "settings": {"max_steps": [2, 3]}}]

    rate = [*go_on, "--max_steps", "4", "--learning_rate", "0.01"]
    with pytest.raises(SystemExit, match=r"learning_rate: 0.001 in the checkpoint, 0.01 now\n.*allow_changes"):
        main(rate)
    main([*rate, "--allow_changes"])
    assert state(run, 4)["changes"][1] == {
        "step": 3,
        "settings": {"max_steps": [3, 4], "learning_rate": [0.001, 0.01]},
    }
    assert (
        "at step 3: max_steps from 3 to 4, learning_rate from 0.001 to 0.01" in (run / "final/README.md").read_text()
    )


@pytest.mark.parametrize("kind", COMMANDS)
def test_what_cannot_be_is_told_before_anything_is_read(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in use, a resume that does not fit, a checkpoint that is not there, a folder that is mistyped."""
    main, run = COMMANDS[kind], str(folder / kind)
    data = ["--tokens", "nowhere"] if kind == "generator" else ["--dataset", "nowhere"]
    model = {"tokenizer": "base_channels", "generator": "hidden_size", "classifier": "num_codes"}[kind]

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("an image was read, or the network asked")

    monkeypatch.setattr(ImageDataset, "find_bad_images", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    for words, message in (
        (
            ["--output_dir", "elsewhere", "--resume_from_checkpoint", "latest"],
            "There is no run in 'elsewhere' to go on",
        ),
        ([*data, "--output_dir", run], "already holds a run"),
        (["--output_dir", run, "--resume_from_checkpoint", "latest", f"--{model}", "12"], f"model.{model}: .* 12 now"),
        (["--output_dir", run, "--resume_from_checkpoint", "latest", "--seed", "5"], "seed: 0 in .* 5 now .never"),
        (["--output_dir", run, "--resume_from_checkpoint", f"{run}/checkpoint-77"], "checkpoint-77' does not exist"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*(?s:.*){message}"):
            main([*words, "--allow_changes"])
    hint = "there is no such folder here; ask the Hub for it with"
    other = ["--tokenizer", "alice/vq"] if kind == "generator" else []
    for words, message in (
        (data, f"in 'nowhere': {hint} hf://datasets/nowhere"),
        (["--init_from", "nowhere", *data], f"no model in 'nowhere': {hint} hf://nowhere"),
        (["--init_from", "alice/vq", *data], f"in 'nowhere': {hint} hf://datasets/nowhere"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}$"):
            main([*words, *other, "--output_dir", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (
            train_generator.main,
            "--tokens alice/tokens --tokenizer vq/final",
            "tokenizer in 'vq/final': HERE hf://vq/final",
        ),
        (tokenize_dataset_command.main, "--tokenizer final --dataset images", "tokenizer in 'final': HERE hf://final"),
        (
            tokenize_dataset_command.main,
            "--tokenizer alice/vq --dataset x",
            "images found in 'x': HERE hf://datasets/x",
        ),
        (evaluate.main, "--compare alice/vq vq/final --dataset images", "model in 'vq/final': HERE hf://vq/final"),
        (evaluate.main, "--model alice/vq --dataset imgs", "images found in 'imgs': HERE hf://datasets/imgs"),
        (evaluate.main, "--model ./alice/vq --dataset images", "model in './alice/vq': there is no such folder, and"),
        (generate.main, "--model vq/final", "generator in 'vq/final': HERE hf://vq/final"),
        (
            convert_checkpoint.main,
            "--checkpoint vq/final --to diffusers",
            "tokenizer in 'vq/final': HERE hf://vq/final",
        ),
    ],
)
def test_the_name_of_a_folder_mistyped_is_told_before_the_hub_is_asked(
    main: Callable[[list[str]], None], words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else the words name; nothing is written."""
    (tmp_path / "vq").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "0.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    told = message.replace("HERE", "there is no such folder here; ask the Hub for it with")
    output = "--output" if main is generate.main else "--output_dir"
    with pytest.raises(SystemExit, match=f"^error: no {told}"):
        main([*words.split(), output, "out"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "vq"]


def test_a_run_that_was_killed_before_its_first_checkpoint_knows_its_settings(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins again by its folder alone."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("hf_vq.training.tokenizer.TokenizerTrainer.train_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            words = [*WORDS["tokenizer"].split(), *COMMON.split(), "--dataset", str(folder / "images")]
            train_tokenizer.main([*words, "--output_dir", str(out)])
    forget()
    train_tokenizer.main(["--resume_from_checkpoint", "latest", "--output_dir", str(out)])
    assert state(out, 2)["model"]["num_codes"] == 16
    assert state(out, 2)["changes"] == []


def test_held_out_images_are_evaluated_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's own numbers come out again, from the final folder, from a copy of it elsewhere, and as files come."""
    run, images = folder / "tokenizer", folder / "images"
    record = json.loads((run / SPLIT_FILE).read_text())
    assert len(record["names"]) == record["num_held_out"] == 4
    assert all((images / name).is_file() for name in record["names"])
    small = json.loads((run / "final" / SPLIT_FILE).read_text())
    assert small == {name: value for name, value in record.items() if name != "names"}

    def measure(model: Path, dataset: Path) -> Any:
        return evaluate_held_out(model, dataset, tmp_path / "evaluation")["results"][0]["metrics"]["mse"]

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [line["mse"] for line in lines if line["split"] == "eval"][-1]
    assert measure(run / "final", images) == pytest.approx(expected, rel=1e-5)
    monkeypatch.chdir(folder)
    assert measure(run / "final", Path("images")) == pytest.approx(expected, rel=1e-5)
    alone, more = tmp_path / "alone", tmp_path / "more"
    (run / "final").rename(alone)
    try:
        assert measure(alone, images) == pytest.approx(expected, rel=1e-5)
        shutil.copytree(images, more)
        Image.new("RGB", (20, 24)).save(more / "cats" / "00a.png")
        with pytest.raises(SystemExit, match=r"does not hold the images of the run .*4 of the 16 images .* are 17"):
            measure(alone, more)
        alone.rename(run / "final")
        assert measure(run / "final", more) == pytest.approx(expected, rel=1e-5)  # the run knows the names
        (more / record["names"][0]).unlink()
        with pytest.raises(SystemExit, match="1 of the 4 images that the run held out are not in"):
            measure(run / "final", more)
    finally:
        if alone.exists():
            alone.rename(run / "final")


def test_a_generator_is_measured_on_the_images_whose_tokens_it_held_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder of the run, where the names are, and from its model elsewhere, where only a hash of them is."""
    run, images = folder / "generator", folder / "images"
    record = json.loads((run / SPLIT_FILE).read_text())
    assert (record["dataset"], record["split"], record["num_rows"], len(record["names"])) == ("images", "train", 16, 4)
    keys = pq.read_table(folder / "tokens" / "train-00000.parquet").column("key").to_pylist()
    order = np.random.default_rng(0).permutation(16)
    assert set(record["names"]) == {keys[number] for number in order[:4]}

    measured: list[list[str]] = []

    def note(images: Any, *arguments: Any, **settings: Any) -> ImageBatches:
        measured.append([row["path"] for row in images["image"]])
        return ImageBatches(images, *arguments, **settings)

    monkeypatch.setattr("hf_vq.evaluation.evaluator.ImageBatches", note)
    words = ["--num_steps", "2", "--num_samples", "4", "--sample_size", "4"]
    evaluate_held_out(run / "final", images, tmp_path / "evaluation", *words)
    shutil.copytree(run / "final", tmp_path / "alone")
    monkeypatch.chdir(folder)
    evaluate_held_out(tmp_path / "alone", Path("images"), tmp_path / "evaluation", *words)
    assert measured == [
        [f"{images}/{name}" for name in record["names"]],
        [f"images/{name}" for name in record["names"]],
    ]
    with pytest.raises(SystemExit, match=r"noto-emoji-32' does not hold the images of the run any more"):
        evaluate_held_out(tmp_path / "alone", Path("noto-emoji-32"), tmp_path / "evaluation", *words)


def test_no_held_out_split_means_none(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All images train, nothing is measured, and nobody warns of what was asked for."""
    words = [*WORDS["tokenizer"].split(), *COMMON.split(), "--dataset", str(folder / "images"), "--eval_split", "none"]
    with caplog.at_level(logging.WARNING):
        train_tokenizer.main([*words, "--output_dir", str(tmp_path / "out")])
    assert state(tmp_path / "out", 2)["num_train_images"] == len(list((folder / "images").rglob("*.png")))
    assert "held out" not in caplog.text
    assert "Not measured." in (tmp_path / "out" / "final" / "README.md").read_text()
    assert not (tmp_path / "out" / SPLIT_FILE).exists()
    with pytest.raises(SystemExit, match="the run held nothing out of its training split"):
        words = [
            "--dataset",
            str(folder / "images"),
            "--split",
            "held-out",
            "--use_cpu",
            "--output_dir",
            str(tmp_path),
        ]
        evaluate.main([*words, "--model", str(tmp_path / "out" / "final")])


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_model_of_each_kind_is_fine_tuned(
    kind: str, folder: Path, tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    """From a folder, its name is in the card; from the Hub, the card's metadata link to it. A resume keeps both.

    It keeps the image processor of the starting point, too.
    """
    main, run = COMMANDS[kind], folder / kind
    data = ["--tokens", str(folder / "tokens")] if kind == "generator" else ["--dataset", str(folder / "images")]
    words = [*data, *"--max_steps 1 --train_batch_size 4 --use_cpu --disable_tqdm".split()]
    words += ["--sample_steps", "2"] if kind == "generator" else []
    out = tmp_path / "folder"
    main([*words, "--init_from", str(run / "final"), "--output_dir", str(out), "--save_training_state"])
    forget()
    card = (out / "final" / "README.md").read_text()
    assert f"| fine-tuned from | {kind} |" in card and "base_model" not in card
    assert str(folder) not in card

    processor = VQImageProcessor.from_pretrained(out / "final")
    processor.resample = Image.Resampling.NEAREST
    processor.save_pretrained(out / "final")
    commit = push_to_hub(out / "final", f"alice/{kind}", private=True)
    again = tmp_path / "again"
    with caplog.at_level(logging.INFO):
        main([*words, "--init_from", f"hf://alice/{kind}", "--output_dir", str(again)])
    forget()
    assert f"'alice/{kind}' brings the state of its training: moments of" in caplog.text
    main(["--resume_from_checkpoint", "latest", "--max_steps", "2", "--output_dir", str(again)])
    card = (again / "final" / "README.md").read_text()
    assert f"| fine-tuned from | alice/{kind}@{commit.oid[:12]} |" in card
    assert f"\nbase_model: alice/{kind}\n" in card
    assert VQImageProcessor.from_pretrained(again / "final").resample == 0
    config = [json.loads((each / "final" / "config.json").read_text()) for each in (run, again)]
    for name in ("base_channels", "hidden_size", "num_codes"):
        assert config[0].get(name) == config[1].get(name)


def test_a_recipe_for_a_new_model_fine_tunes_an_old_one(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the recipe only the training counts; what the command line says of the model is made so, or told."""
    told = "--config noto_emoji_32 --eval_split auto --max_steps 1 --train_batch_size 4 --use_cpu --disable_tqdm"
    words = [*told.split(), "--dataset", str(folder / "images"), "--init_from", str(folder / "tokenizer" / "final")]
    with caplog.at_level(logging.INFO):
        sizes = ["--num_codes", "32", "--image_size", "24"]
        train_tokenizer.main([*words, *sizes, "--output_dir", str(tmp_path / "out")])
    config = json.loads((tmp_path / "out" / "final" / "config.json").read_text())
    assert (config["num_codes"], config["image_size"], config["base_channels"]) == (32, 24, 8)
    assert "the recipe's model fields are not used" in caplog.text
    with pytest.raises(SystemExit, match="do not fit the model fields that were given: .*encoder"):
        train_tokenizer.main([*words, "--base_channels", "12", "--output_dir", str(tmp_path / "other")])
