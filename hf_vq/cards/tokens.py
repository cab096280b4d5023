"""Cards of token data sets: what one holds, what made it, how to load it and how to get images back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from hf_vq.cards.base import Slots, table_rows, write_card

_OPENING = """The images of `{source}` as {shape} image tokens each, ids in [0, {num_codes}). They were made by the
tokenizer `{name}`{at}; `manifest.json` holds the hash of its weights, the preprocessing and all
other settings. Views of each image: {views}."""
_CODE = """from hf_vq import from_hub, load_token_dataset

tokens = load_token_dataset("{repo_id}", "{split}")
{from_hub}
processor.postprocess(model.decode(tokens[0]["image_tokens"][None]).decoded_pixel_values)[0]"""
_SPLITS = "| split | images | of these unreadable | rows |\n|---|---|---|---|\n"


def token_card(manifest: Mapping[str, Any], repo_id: str) -> DatasetCard:
    """Writes the card of a token data set.

    Args:
        manifest: The data set's manifest.
        repo_id: Where it will be loaded from.
    """
    made_by, tokens, splits = manifest["tokenizer"], manifest["image_tokens"], manifest["splits"]
    name, revision = made_by["name"], made_by["revision"]
    if revision:
        from_hub = f'model, processor = from_hub("{name}", revision="{revision}")'
    else:
        from_hub = 'model, processor = from_hub("user/name")  # the tokenizer was a local folder: its Hub id here'
    rows = [
        [split, *(f"{record[key]:,}" for key in ("num_images", "num_skipped", "num_rows"))]
        for split, record in splits.items()
    ]
    slots = Slots(
        title=repo_id.rpartition("/")[2],
        tags=("hf_vq", "image-tokens"),
        opening=_OPENING.format(
            source=manifest["dataset"]["name"],
            shape=" x ".join(map(str, tokens["shape"])),
            num_codes=tokens["num_codes"],
            name=name,
            at=f" at revision `{revision}`" if revision else "",
            views=", ".join(manifest["views"]["names"]),
        ),
        contents=_SPLITS + table_rows(rows),
        code=_CODE.format(repo_id=repo_id, split=next(iter(splits)), from_hub=from_hub),
    )
    data_files = [{"split": split, "path": f"{split}-*.parquet"} for split in splits]
    configs = [{"config_name": "default", "data_files": data_files}]
    return write_card(DatasetCard, DatasetCardData(tags=list(slots.tags), configs=configs), slots)
