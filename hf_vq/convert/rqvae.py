"""Layout of RQ-VAE (kakaobrain), whose tokens are a stack of codes: each of what the ones before it leave."""

from __future__ import annotations

from typing import Any

import torch

from hf_vq.convert.layout import Layout, Source, any_begins

_CODES = "quantizer.codebooks.{}.weight"


def _books(source: Source) -> list[torch.Tensor]:
    """The codes of each level; the last row there is padding."""
    books: list[torch.Tensor] = []
    while (book := source.weights.get(_CODES.format(len(books)))) is not None:
        books.append(book[:-1])
    return books


def _fold(source: Source) -> None:
    books = _books(source)
    if all(torch.equal(book, books[0]) for book in books):
        books = books[:1]
    elif len({len(book) for book in books}) > 1:
        raise ValueError(
            f"This RQ-VAE has codebooks of {[len(book) for book in books]} codes. A VQModel needs equally many at "
            "each level."
        )
    source.weights["quantize.embedding.weight"] = torch.cat(books)
    if len(books) > 1:
        source.notes.append(f"ids of a level start where those of the one before it end, {len(books[0]):,} later")


def _of_rqvae(source: Source) -> dict[str, Any]:
    books, codes = _books(source), source.weights["quantize.embedding.weight"]
    for name in [name for name in source.weights if name.startswith("quantizer.")]:
        del source.weights[name]
    is_shared = len(books) == 1 or len(codes) == len(books[0])
    return {"quantizer_type": "residual", "num_groups": len(books), "share_codebook": is_shared}


RQVAE = Layout(
    "rqvae",
    "quantizer.codebooks.0.weight",
    any_begins("quantizer.codebooks."),
    counts_down=False,
    fold=_fold,
    fields=_of_rqvae,
    project="https://github.com/kakaobrain/rq-vae-transformer",
)
