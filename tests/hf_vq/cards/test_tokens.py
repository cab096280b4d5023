"""Cards of token data sets: the same template, filled from a manifest."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from hf_vq.cards.merging import fill_card
from hf_vq.cards.tokens import token_card


def manifest(revision: str | None) -> dict[str, Any]:
    """Of a data set with two splits."""
    return {
        "tokenizer": {"name": "alice/vq", "revision": revision, "weights_sha256": "0" * 64},
        "image_tokens": {"shape": [8, 8, 2], "num_codes": 1024},
        "dataset": {"name": "noto-emoji-32"},
        "views": {"names": ["center", "center-flip"]},
        "splits": {
            "train": {"num_images": 1500, "num_skipped": 2, "num_rows": 3000},
            "test": {"num_images": 10, "num_skipped": 0, "num_rows": 20},
        },
    }


@pytest.mark.parametrize("revision", ["abc123", None])
def test_the_card_says_what_it_holds_and_how_to_get_images_back(revision: str | None) -> None:
    """Splits, shape, tokenizer; the code is Python, and names the tokenizer's commit where there is one."""
    card = token_card(manifest(revision), "alice/emoji-tokens")
    text = str(card)

    assert "# emoji-tokens" in text and "The images of `noto-emoji-32` as 8 x 8 x 2 image tokens each" in text
    assert "| train | 1,500 | 2 | 3,000 |\n| test | 10 | 0 | 20 |" in text and "center, center-flip" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(code)
    assert 'load_token_dataset("alice/emoji-tokens", "train")' in code
    assert ('from_hub("alice/vq", revision="abc123")' in code) == (revision is not None)
    assert ("at revision `abc123`" in text) == (revision is not None)
    for heading in ("## Model", "## Training", "## Evaluation", "## Limits", "## Citation", "trust_remote_code"):
        assert heading not in text


def test_a_persons_text_is_kept() -> None:
    """What stands around our part stays; the metadata name the files of every split."""
    first, second = (str(token_card(manifest(revision), "alice/emoji-tokens")) for revision in ("one", "two"))
    edited = first.replace("# emoji-tokens", "# My tokens\n\nRead this first.")
    renewed = fill_card(edited, second)

    assert "Read this first." in renewed and 'revision="two"' in renewed and 'revision="one"' not in renewed
    (settings,) = DatasetCard(renewed).data.to_dict()["configs"]
    assert {files["split"]: files["path"] for files in settings["data_files"]} == {
        "train": "train-*.parquet", "test": "test-*.parquet"
    }  # fmt: skip
