"""Numbers in cards, with their protocol: the next evaluation renews them, a push of other weights drops them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries

import hf_vq
from hf_vq import MaskGitModel, VQModel
from hf_vq.evaluation.cards import evaluated_card, update_cards
from hf_vq.evaluation.evaluator import evaluate
from hf_vq.evaluation.subjects import load_subjects
from hf_vq.hub.repository import HubError

from .conftest import arguments

if TYPE_CHECKING:
    from ...hub_server import HubServer

HEADING = "### Measured by `hf-vq evaluate` on"
PERSONS_CARD = "---\nlicense: mit\n---\n# My tokenizer\n\nRead this first.\n"


def metadata(card: str) -> ModelCardData:
    """A card's metadata."""
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    return data


def results(card: str) -> dict[str, float]:
    """Metric type and value of all results in a card's metadata."""
    found = metadata(card).eval_results or []
    assert len({result.metric_type for result in found}) == len(found)
    return {result.metric_type: result.metric_value for result in found}


def test_numbers_go_into_the_repository_in_one_commit(
    hub: HubServer, models: Path, images: Path, tmp_path: Path
) -> None:
    """The card keeps its recipe and earlier numbers; a second evaluation replaces the first; new weights drop it."""
    model, processor = VQModel.from_pretrained(models / "a"), load_subjects([str(models / "a")])[0].processor
    recipe: dict[str, Any] = {"training": {"steps": 1234}, "dataset": images.name, "split": "train"}
    metrics = {"psnr": 1.0, "rfid": 5.5}
    hf_vq.push_to_hub(model, "alice/vq", image_processor=processor, metrics=metrics, **recipe)
    report = evaluate(arguments(Path("alice"), "vq", images, tmp_path, update_cards=True))
    card = hub.store.read("alice/vq", "README.md", "main").decode()
    values = report.results[0]["metrics"]

    assert [commit.title for commit in hub.store.repositories["models", "alice/vq"].history("main")][0] == (
        "Add evaluation results"
    )
    assert "1,234" in card and card.count(HEADING) == 1
    assert "| 11 images, 8x8_pixels |" in card and "center, 16 x 16" in card
    assert report.results[0]["weights_sha256"] in card and report.results[0]["revision"] in card
    assert results(card)["psnr"] == pytest.approx(values["psnr"], rel=1e-5)
    assert results(card)["frechet_8x8_pixels"] == pytest.approx(values["frechet_8x8_pixels"], rel=1e-5)
    assert results(card)["rfid"] == 5.5  # which was not measured again
    (psnr,) = (r for r in metadata(card).eval_results or [] if r.metric_type == "psnr")
    assert psnr.metric_args is not None and psnr.metric_args["preprocessing: resize"] == "shorter edge to 16"

    evaluate(arguments(Path("alice"), "vq", images, tmp_path, update_cards=True, max_images=5))
    card = hub.store.read("alice/vq", "README.md", "main").decode()
    assert card.count(HEADING) == 1 and "| 5 images |" in card and "| 11 images |" not in card
    older = card.replace(HEADING, "### Measured by `scripts/evaluate.py` on")
    renewed = evaluated_card(older, report, report.results[0], model)
    assert renewed.count(HEADING) == 1 and "scripts/" not in renewed and "| 5 images |" not in renewed
    assert VQModel.from_pretrained("alice/vq").config.num_codes == model.config.num_codes

    hf_vq.push_to_hub(VQModel.from_pretrained(models / "b"), "alice/vq", image_processor=processor)
    card = hub.store.read("alice/vq", "README.md", "main").decode()
    assert HEADING not in card and results(card) == {}


def test_a_persons_card_is_kept(hub: HubServer, models: Path, images: Path, tmp_path: Path) -> None:
    """A folder's README.md without a part of ours gets one, and keeps its text, its license and what it says."""
    for name in ("b", "free"):
        kind = VQModel if name == "b" else MaskGitModel
        kind.from_pretrained(models / name).save_pretrained(tmp_path / name)
    (tmp_path / "b" / "README.md").write_text(PERSONS_CARD)
    for name in ("b", "free"):
        evaluate(arguments(tmp_path, name, images, tmp_path / "out", update_cards=True))
    persons, fresh = ((tmp_path / name / "README.md").read_text() for name in ("b", "free"))

    assert "# My tokenizer\n\nRead this first." in persons and metadata(persons).license == "mit"
    assert results(persons)["psnr"] > 0 and HEADING in persons
    assert set(results(fresh)) == {f"{name}_8x8_pixels" for name in ("frechet", "kernel", "precision", "recall")}
    assert "11 samples, 11 images" in fresh and "arccos" in fresh
    assert fresh.index("## Evaluation") < fresh.index(HEADING) < fresh.index("## Limits")


def test_numbers_of_a_data_set_on_the_hub_are_entries_for_its_board(
    hub: HubServer, models: Path, images: Path, tmp_path: Path
) -> None:
    """Beside the card of a folder and of a repository; numbers of a folder of images are none."""
    model, processor = VQModel.from_pretrained(models / "b"), load_subjects([str(models / "b")])[0].processor
    hf_vq.push_to_hub(model, "alice/vq", image_processor=processor)
    model.save_pretrained(tmp_path / "b")
    processor.save_pretrained(tmp_path / "b")
    report = evaluate(arguments(tmp_path, "b", images, tmp_path / "out", update_cards=True))
    path = tmp_path / "b" / ".eval_results" / "hf_vq.yaml"
    assert not path.exists()

    report.protocol["dataset"]["name"] = "alice/dots"
    for name, text in ((str(tmp_path / "b"), path.read_text), ("alice/vq", lambda: read(hub))):
        update_cards(report, [(name, model)])
        entries = {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(text()))}
        assert entries["psnr"].value == pytest.approx(report.results[0]["metrics"]["psnr"], rel=1e-5)
        assert entries["psnr"].dataset_id == "alice/dots" and "split train" in str(entries["psnr"].notes)


def read(hub: HubServer) -> str:
    """The entries in the repository."""
    return hub.store.read("alice/vq", ".eval_results/hf_vq.yaml").decode()


def test_no_card_is_written_when_one_cannot_be(models: Path, images: Path, tmp_path: Path) -> None:
    """The metadata of the second card cannot be read: the first stays as it was."""
    for name in "ab":
        VQModel.from_pretrained(models / name).save_pretrained(tmp_path / name)
        load_subjects([str(models / name)])[0].processor.save_pretrained(tmp_path / name)
    (tmp_path / "a" / "README.md").write_text(PERSONS_CARD)
    (tmp_path / "b" / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match="README"):
        evaluate(arguments(tmp_path, "a b", images, tmp_path / "out", update_cards=True))
    assert (tmp_path / "a" / "README.md").read_text() == PERSONS_CARD


def test_other_weights_and_nan_leave_no_numbers_behind(models: Path, images: Path, tmp_path: Path) -> None:
    """What was measured on weights that are no longer there goes; what is not finite never comes."""
    model = VQModel.from_pretrained(models / "b")
    load_subjects([str(models / "b")])[0].processor.save_pretrained(tmp_path / "b")
    model.save_pretrained(tmp_path / "b")
    evaluate(arguments(tmp_path, "b", images, tmp_path / "out", update_cards=True))
    assert "frechet_8x8_pixels" in results((tmp_path / "b" / "README.md").read_text())
    with torch.no_grad():
        next(model.decoder.parameters()).add_(0.5)
    model.save_pretrained(tmp_path / "b")
    evaluate(arguments(tmp_path, "b", images, tmp_path / "out", update_cards=True, max_images=1))  # too few for it
    assert set(results((tmp_path / "b" / "README.md").read_text())) & {"psnr", "frechet_8x8_pixels"} == {"psnr"}
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(torch.nan)
    model.save_pretrained(tmp_path / "b")
    evaluate(arguments(tmp_path, "b", images, tmp_path / "out", update_cards=True))
    assert "psnr" not in results((tmp_path / "b" / "README.md").read_text())


def test_cards_of_others_are_refused(
    hub: HubServer, models: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not write gets a message, the numbers are written all the same; a revision cannot be written to."""
    hf_vq.push_to_hub(VQModel.from_pretrained(models / "a"), "alice/vq")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    with pytest.raises(HubError, match="'alice/vq'"):
        evaluate(arguments(Path("alice"), "vq", images, tmp_path / "out", update_cards=True))
    assert (tmp_path / "out" / "evaluation.json").is_file()
    with pytest.raises(ValueError, match="writes to the branch main: leave the revision after '@' out"):
        arguments(Path("alice"), "vq@v1", images, tmp_path, update_cards=True)


def test_a_revision_of_a_repository_is_measured(hub: HubServer, models: Path, images: Path, tmp_path: Path) -> None:
    """`name@revision` loads that revision; the results hold its commit."""
    commits = [hf_vq.push_to_hub(VQModel.from_pretrained(models / name), "alice/vq").oid for name in ("a", "b")]
    report = evaluate(arguments(Path("alice"), f"vq@{commits[0]} vq@main", images, tmp_path))

    assert [result["revision"] for result in report.results] == commits
    assert [result["name"] for result in report.results] == ["alice/vq", "alice/vq"]
    assert report.results[0]["weights_sha256"] != report.results[1]["weights_sha256"]
    with pytest.raises(HubError, match="There is no model repository 'alice/nothing'"):
        evaluate(arguments(Path("alice"), "nothing", images, tmp_path))
