"""The evaluation command as people start it: a table, slips, and two processes that find the numbers of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from accelerate.state import PartialState

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, VQImageProcessor, VQModel
from hf_vq.commands import evaluate

WORDS = "--dataset noto-emoji-32 --max_images 45 --batch_size 8 --use_cpu --disable_tqdm --num_steps 2".split()


@pytest.fixture
def main() -> Iterator[Callable[[list[str]], None]]:
    """The command's main function, in this process, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield evaluate.main
    torch.set_num_threads(threads)
    PartialState._reset_state()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokenizers and a generator of the emoji's classes."""
    folder = tmp_path_factory.mktemp("models")
    sizes: dict[str, Any] = {"image_size": 16, "base_channels": 8, "num_res_blocks": 1, "embed_dim": 4}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = VQModel(VQConfig(architecture="sqvae", num_codes=64, **sizes))
        model.save_pretrained(folder / name)
        VQImageProcessor(image_size=16).save_pretrained(folder / name)
    width: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    generator = MaskGitModel(MaskGitConfig(vq_config=model.config, num_classes=9, **width))
    generator.save_pretrained(folder / "generator")
    return folder


def test_one_command_gives_a_table_and_a_picture(
    main: Callable[[list[str]], None], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed is what is written; the help names every setting."""
    main(["--compare", str(models / "a"), str(models / "b"), "--output_dir", str(tmp_path / "out"), *WORDS])
    printed = capsys.readouterr().out

    assert (tmp_path / "out" / "evaluation.md").read_text() in printed
    assert "| metric" in printed and "| a " in printed and "| 45 images" in printed
    assert f"Written to {tmp_path / 'out'}" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.md", "evaluation.tex", "evaluation.csv", "evaluation.json", "evaluation.png"
    }  # fmt: skip
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--update_cards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model a --features inception", r"error: Inception's features need .*pip install 'hf_vq\[inception\]'"),
        ("--compare a generator", "error: tokenizers and generators have no numbers in common"),
        ("--model nowhere/at/all", "error: no model in"),
        ("--modle a", "error: Unknown field 'modle' in the command line. Did you mean 'model'?"),
        ("--model a --split val", "error: unknown split 'val'.*available are test, train"),
    ],
)
def test_slips_end_with_a_line(
    main: Callable[[list[str]], None],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    message: str,
) -> None:
    """No traceback, no files."""
    monkeypatch.chdir(models)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(SystemExit, match=message):
        main([*words.split(), "--output_dir", str(tmp_path / "out"), *WORDS])
    assert not (tmp_path / "out").exists()


def launch_two(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the script in two real processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    launcher = f"torch.distributed.run --nproc_per_node 2 --master_port {port}".split()
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "hf_vq.commands.evaluate", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_images_that_either_process_cannot_read_are_named(models: Path, tmp_path: Path) -> None:
    """Of the rows 0 to 3, of two batches, each process meets one."""
    (tmp_path / "bad").mkdir()
    for number in range(4):
        path = tmp_path / "bad" / f"{number}.png"
        PIL.Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(path)
        if number in (0, 3):
            path.write_bytes(b"no picture")
    words = "--split train --batch_size 2 --use_cpu --disable_tqdm".split()
    folders = ("--dataset", str(tmp_path / "bad"), "--output_dir", str(tmp_path / "out"))
    process = launch_two("--model", str(models / "a"), *folders, *words)
    assert process.returncode == 0, process.stderr[-3000:]
    first, second = tmp_path / "bad" / "0.png", tmp_path / "bad" / "3.png"
    assert f"skipped 2 images that cannot be read: {first} (" in process.stderr and f"{second} (" in process.stderr


@pytest.mark.parametrize("names", ["a b", "generator"])
def test_two_processes_give_the_numbers_of_one(
    main: Callable[[list[str]], None], models: Path, tmp_path: Path, names: str
) -> None:
    """Two real processes write the same files as one, to the last bit of each number."""
    words = ["--compare", *(str(models / name) for name in names.split()), *WORDS, "--sample_size", "20"]
    main([*words, "--output_dir", str(tmp_path / "one")])
    process = launch_two(*words, "--output_dir", str(tmp_path / "two"))
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("| metric") == 1

    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one["results"][0]["metrics"] == two["results"][0]["metrics"]  # to the last bit
    for name in ("evaluation.json", "evaluation.md", "evaluation.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
