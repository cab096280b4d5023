"""Model cards: their metadata survive the Hub's format, their numbers are the measured ones, their code runs."""

import re
from pathlib import Path

import PIL.Image
import pytest
import torch
from huggingface_hub import ModelCard

from hf_vq.cards.tokenizer import tokenizer_card
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.utils.text import public_name

METRICS = {
    "num_images": 206,
    "mse": 0.00512345,
    "psnr": 23.456,
    "ssim": 0.87654,
    "usage": 0.98,
    "active_codes": 1003,
    "perplexity": 612.34,
    "quantization_error": float("nan"),
}


def config(**settings) -> VQConfig:
    """A small tokenizer: 32 pixels, 8 x 8 tokens, 1,024 codes."""
    return VQConfig(architecture="sqvae", image_size=32, base_channels=16, **settings)


def test_metadata_survive_a_round_trip():
    """License, tags, data set and every finite metric are read back from the text of the card."""
    card = tokenizer_card(config(), METRICS, "someone/photos", "test", repo_id="me/tokenizer", license="apache-2.0")

    data = ModelCard(str(card)).data
    assert data.license == "apache-2.0" and data.library_name == "transformers" and data.datasets == ["someone/photos"]
    assert {"hf_vq", "image-tokenizer"} <= set(data.tags)
    results = {result.metric_type: result for result in data.eval_results}
    assert results["psnr"].metric_value == 23.456 and results["psnr"].dataset_split == "test"
    assert results["mse"].metric_value == 0.00512345
    assert set(results) == {"mse", "psnr", "ssim", "codebook_usage", "codebook_perplexity"}


def test_text_states_the_numbers_and_where_they_come_from():
    """The table has the measured values; the data, the count and the preprocessing stand beside it."""
    text = str(tokenizer_card(config(), METRICS, "noto-emoji-32", "test", {"steps": 1500, "learning_rate": 3e-4}))

    assert "8 x 8 discrete tokens (640 bits)" in text
    assert "1,024 codes of 8 dimensions" in text
    where = "noto-emoji-32 | test | 206 | shorter edge to 32 (bicubic, antialiased), 32 x 32 center crop |"
    assert f"| SSIM | 0.8765 | {where}" in text and f"| Codes in use | 98.0% (1,003) | {where}" in text
    assert "| steps | 1,500 |" in text and "| learning rate | 0.0003 |" in text
    assert "nan" not in text and "None" not in text and "\n\n\n" not in text


def test_private_paths_stay_private(tmp_path: Path):
    """Of a local data set only the folder's name is published, and it is not linked as one on the Hub."""
    card = tokenizer_card(config(), METRICS, str(tmp_path / "holiday photos"), "test")

    assert "holiday photos" in str(card) and str(tmp_path) not in str(card)
    assert "datasets" not in card.data.to_dict()


def test_card_without_measurements_says_so():
    """A run that measured nothing gets a card without a table of results."""
    card = tokenizer_card(config(), {})

    assert "Not measured." in str(card)
    assert ModelCard(str(card)).data.eval_results is None


@pytest.mark.parametrize(
    ("settings", "cited"),
    [
        ({"sync_nu": 0.2, "alternating_steps": 0}, True),
        ({"sync_nu": 0.0, "alternating_steps": 1}, True),
        ({"sync_nu": 0.0, "alternating_steps": 0, "affine_lr": 2.0}, True),
        ({"sync_nu": 0.0, "alternating_steps": 0}, False),
    ],
)
def test_the_paper_is_cited_when_one_of_its_parts_is_used(settings: dict, cited: bool):
    """Each part of the method brings its citation; plain quantization does not claim it."""
    text = str(tokenizer_card(config(**settings), METRICS))

    assert ("huh2023straightening" in text) == cited
    assert "oord2017neural" in text and "takida2022sqvae" in text


def test_grouped_tokenizers_state_all_their_tokens():
    """Tokens, bits and code dimension count the groups and their own codebooks."""
    text = str(tokenizer_card(config(quantizer_type="group", num_groups=2, share_codebook=False), METRICS))

    assert "8 x 8 x 2 discrete tokens (1,152 bits)" in text
    assert "1,024 codes of 4 dimensions" in text and "(1, 8, 8, 2), int64" in text


@pytest.mark.local_code
def test_the_code_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the card tells people to type loads the folder, encodes and decodes."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    model = VQModel(config())
    model.save_pretrained(folder)
    VQImageProcessor(image_size=32).save_pretrained(folder)
    (folder / "README.md").write_text(str(tokenizer_card(model.config, METRICS, repo_id=str(folder))))
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (50, 40), "red").save("image.png")

    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code[0], names)
    assert names["image_tokens"].shape == (1, 8, 8) and names["image_tokens"].dtype == torch.int64
    assert PIL.Image.open("reconstruction.png").size == (32, 32)


@pytest.mark.parametrize(
    ("settings", "citation"),
    [
        ({"kmeans_init": True}, "arthur2007kmeans"),
        ({"norm": "l2", "cb_norm": "l2"}, "yu2022vector"),
        ({"codebook_update": "ema", "alternating_steps": 0, "sync_nu": 0.0}, "razavi2019generating"),
        ({"gradient_estimator": "rotation"}, "fifty2024restructuring"),
        ({"quantizer_type": "residual", "num_groups": 2}, "lee2022autoregressive"),
    ],
)
def test_the_parts_in_use_are_cited(settings: dict, citation: str):
    """A part brings its source, and a configuration without the part does not."""
    assert citation in str(tokenizer_card(config(**settings), METRICS))
    assert citation not in str(tokenizer_card(config(kmeans_init=False), METRICS))


def test_picture_limits_and_rate_are_stated():
    """The picture is shown where there is one, and what the model is not made for is said."""
    text = str(tokenizer_card(config(), METRICS, "noto-emoji-32", picture="pictures.png"))

    assert "![Images and their reconstructions](pictures.png)" in text
    assert "trained on (`noto-emoji-32`)" in text and "| rate | 0.625 bits per pixel |" in text
    assert "![" not in str(tokenizer_card(config(), METRICS))


def test_rfid_stands_beside_the_rest():
    """Where it was measured it is in the table and in the metadata, with preprocessing and image count."""
    card = ModelCard(str(tokenizer_card(config(), METRICS | {"rfid": 3.14159}, preprocessing="none")))

    assert "| rFID | 3.14 | held-out images |  | 206 | none |" in card.text
    result = next(result for result in card.data.eval_results if result.metric_type == "rfid")
    assert result.dataset_args == {"preprocessing": "none", "num_images": 206}


def test_a_path_is_told_by_its_last_part(tmp_path, monkeypatch):
    """Also where that part is not written out; the name of a link is its own."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    assert [public_name(name) for name in (".", "../photos/", str(tmp_path / "link"))] == ["photos", "photos", "link"]
    assert public_name("alice/emoji") == "alice/emoji" and public_name(None) is None
