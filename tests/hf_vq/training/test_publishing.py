"""A run publishes its final model, on the main process alone, and loses nothing when that fails."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import hf_vq
from hf_vq.hub.repository import HubError

if TYPE_CHECKING:
    from ...hub_server import HubServer

MakeTrainer = Callable[..., Any]


def test_the_final_model_is_published_in_one_commit(hub: HubServer, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Private, with the weights, the card and the picture of the final folder; the card names the repository."""
    measured = make_trainer(push_to_hub=True, hub_model_id="tiny-vq", hub_private_repo=True).train()
    final = tmp_path / "out" / "final"

    repository = hub.store.repositories["models", "alice/tiny-vq"]
    assert repository.private
    assert [commit.title for commit in repository.history()] == ["Upload model of step 8", "initial commit"]
    for path in final.iterdir():
        assert hub.store.read("alice/tiny-vq", path.name) == path.read_bytes(), path.name
    assert Image.open(final / "reconstructions.png").width > 500
    card = ModelCard.load(final / "README.md")
    assert 'name = "alice/tiny-vq"' in card.text and "](reconstructions.png)" in card.text
    assert "| images seen | 32 |" in card.text and "| training images | 24 |" in card.text
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["psnr"].metric_value == pytest.approx(measured["psnr"], rel=1e-5)
    assert results["psnr"].dataset_args["num_images"] == 7


def test_the_final_folder_has_a_picture_of_held_out_images(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """With or without the Hub, after a run or after resuming a finished one; not without held-out images."""
    make_trainer().train()
    first = (tmp_path / "out" / "final" / "reconstructions.png").read_bytes()
    (tmp_path / "out" / "final" / "reconstructions.png").unlink()
    make_trainer(resume_from_checkpoint="latest").train()
    second = (tmp_path / "out" / "final" / "reconstructions.png").read_bytes()

    assert first == second


def test_methods_of_the_losses_are_cited(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """A run with a discriminator cites VQGAN, whatever the network."""
    for name, weight in (("plain", 0.0), ("gan", 0.1)):
        make_trainer(name, adversarial_weight=weight, discriminator_channels=8, discriminator_layers=1).train()
        card = (tmp_path / name / "final" / "README.md").read_text()
        assert ("esser2021taming" in card) == (weight > 0)


def test_a_failing_push_leaves_the_final_folder_and_says_how_to_push_it(
    hub: HubServer, make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training ends well; the command in the message publishes what could not be published."""
    hub.fail("POST", "/commit/")
    with caplog.at_level(logging.ERROR):
        measured = make_trainer(push_to_hub=True, hub_model_id="alice/tiny-vq").train()

    assert measured["psnr"] > 0
    assert len(hub.store.repositories["models", "alice/tiny-vq"].history()) == 1
    assert load_file(tmp_path / "out" / "final" / "model.safetensors")
    hub.mend()
    code = re.search(r'python -c "(.*)"', caplog.text)
    assert code is not None
    subprocess.run([sys.executable, "-c", code[1]], check=True, capture_output=True)
    model, _ = hf_vq.from_hub("alice/tiny-vq")
    assert model.config.num_codes == 16


@pytest.mark.parametrize("name", ["bob/tiny-vq", "not/a/name"])
def test_a_run_that_may_not_push_ends_before_it_begins(
    hub: HubServer, make_trainer: MakeTrainer, name: str, tmp_path: Path
) -> None:
    """A foreign namespace or a malformed name is an error before the first step."""
    trainer = make_trainer(push_to_hub=True, hub_model_id=name)
    with pytest.raises((HubError, ValueError), match=name):
        trainer.train()
    assert trainer.step == 0 and not hub.store.repositories


def test_two_processes_publish_once(hub: HubServer, tmp_path: Path) -> None:
    """The main process alone talks to the Hub; both come to their end."""
    script = Path(__file__).parents[3] / "scripts" / "train_tokenizer.py"
    command = [
        *("torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)),
        *("--dataset", "noto-emoji-32", "--eval_split", "test", "--max_eval_images", "8", "--check_images_up_to", "0"),
        *("--architecture", "sqvae", "--image_size", "32", "--base_channels", "8", "--num_codes", "16"),
        *("--max_steps", "2", "--train_batch_size", "2", "--use_cpu", "--disable_tqdm"),
        *("--output_dir", str(tmp_path / "emoji-vq"), "--push_to_hub"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-3000:]
    assert len(hub.store.repositories["models", "alice/emoji-vq"].history()) == 2
    assert [path for _, path in hub.requests].count("/api/models/alice/emoji-vq/commit/main") == 1
    card = ModelCard.load("alice/emoji-vq")
    assert "| noto-emoji-32 | test | 8 |" in card.text and "| processes | 2 x cpu |" in card.text
