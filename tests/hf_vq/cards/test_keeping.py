"""A new card of weights that have one: what the older card knows and the new one does not is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard

from hf_vq import MaskGitConfig, VQConfig
from hf_vq.cards.generator import generator_card
from hf_vq.cards.keeping import keep_known, pictures_in
from hf_vq.cards.merging import add_results, fill_card
from hf_vq.cards.tokenizer import tokenizer_card
from hf_vq.kinds import KINDS, resolve

OLDER = Path(__file__).parents[3] / "tests" / "data" / "written_by_0_1" / "models"
CONFIG = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_codes=16)
EVALUATED = EvalResult(
    task_type="image-to-image", dataset_type="alice/dots", dataset_name="alice/dots", dataset_split="train",
    metric_type="ssim", metric_value=0.5, metric_args={"model vq": "weights sha256 0123abcd"},
)  # fmt: skip


def older(**facts: object) -> str:
    """The card of a run, with numbers that an evaluation added."""
    recipe = {"steps": 100, "learning rate": "0.001, cosine"}
    numbers = {"psnr": 21.5, "num_images": 9}
    card = tokenizer_card(CONFIG, numbers, "alice/dots", "test", recipe, name="dots-vq", license="mit", **facts)  # type: ignore[arg-type]
    return fill_card(str(card), add_results(str(card), [EVALUATED], "### Measured on train\n\n| SSIM | 0.5 |"))


def data(card: str) -> Any:
    """The metadata."""
    return ModelCard(card).data


def results(card: str) -> dict[str, float]:
    """The numbers in the metadata."""
    return {result.metric_type: result.metric_value for result in data(card).eval_results or []}


def test_recipe_numbers_license_and_what_an_evaluation_added_are_kept() -> None:
    """The name is the new one, everywhere."""
    kept = keep_known(str(tokenizer_card(CONFIG, {}, repo_id="alice/vq")), older(picture="p.png", methods=["lpips"]))

    assert "| steps | 100 |" in kept and "0.001, cosine" in kept and "| data set | alice/dots |" in kept
    assert results(kept) == {"psnr": 21.5, "ssim": 0.5} and "| SSIM | 0.5 |" in kept
    assert "## License\n\nmit\n" in kept and data(kept).license == "mit"
    assert data(kept).datasets == ["alice/dots"] and "trained on (`alice/dots`)" in kept
    assert "](p.png)" in kept and pictures_in(kept) == ["p.png"]
    assert "zhang2018unreasonable" in kept and "abs/1801.03924" in kept and kept.count("oord2017neural") == 1
    assert "# vq\n" in kept and "dots-vq" not in kept and 'name = "alice/vq"' in kept
    assert "\n\n\n" not in ModelCard(kept).text and kept.count("## Citation") == 1
    again = keep_known(str(tokenizer_card(CONFIG, {}, repo_id="alice/vq")), kept)
    assert again == kept  # and nothing moves the next time


def test_news_take_the_place_of_what_they_are_about() -> None:
    """New numbers replace those of the older card, but not those of an evaluation of the same weights."""
    new = tokenizer_card(
        CONFIG, {"psnr": 30.0}, "alice/other", "test", {"steps": 7}, repo_id="alice/vq", picture="q.png"
    )
    kept = keep_known(str(new), older(picture="p.png"), rows=["steps", "data set"], metrics=True, picture=True)

    assert "| steps | 7 |" in kept and "| steps | 100 |" not in kept and "0.001, cosine" in kept
    assert results(kept) == {"psnr": 30.0, "ssim": 0.5} and "| SSIM | 0.5 |" in kept and "21.50" not in kept
    assert pictures_in(kept) == ["q.png"] and "trained on (`alice/other`)" in kept
    assert data(kept).datasets == ["alice/other"]


def test_a_generator_keeps_its_sampling() -> None:
    """The code of the card draws as the picture was drawn."""
    config = MaskGitConfig(vq_config=CONFIG, num_classes=3, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    there = generator_card(config, {}, picture="samples.png", sampling={"num_steps": 5, "top_p": 0.9})
    kept = keep_known(str(generator_card(config, {}, repo_id="alice/maker")), str(there))

    assert "class_labels=[0, 1, 2], num_steps=5, top_p=0.9, generator" in kept and kept.count("model.generate(") == 1
    assert 'name = "alice/maker"' in kept and pictures_in(kept) == ["samples.png"]


def test_a_card_without_a_part_of_ours_gets_one() -> None:
    """Without a card the new one is all there is; beside what a person wrote it stands below."""
    new = str(tokenizer_card(CONFIG, {}, repo_id="alice/vq"))
    assert ModelCard(keep_known(new, "")).text.strip() == ModelCard(new).text.strip()
    kept = keep_known(new, "---\nlanguage: [en]\n---\n# My model\n\nRead this.\n")
    assert kept.index("Read this.") < kept.index("hf_vq: begin") and "# vq" not in kept and "- en" in kept


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in OLDER.glob("*/README.md")), ids=lambda path: path.name
)
def test_cards_of_version_0_1_are_understood(folder: Path) -> None:
    """Their recipe, numbers and limits are kept word for word."""
    kind = KINDS[json.loads((folder / "config.json").read_text())["model_type"]]
    there = (folder / "README.md").read_text()
    kept = keep_known(str(resolve(kind.card)(kind.config.from_pretrained(folder), {}, repo_id="alice/old")), there)

    for heading in ("## Training\n", "## Evaluation\n", "## Limits\n"):
        section = there.partition(heading)[2].partition("\n## ")[0].strip()
        assert section and section in kept, heading
    assert data(kept).eval_results == data(there).eval_results
    assert 'name = "alice/old"' in kept and "path/to/this/folder" not in kept
