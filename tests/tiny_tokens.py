"""A tiny tokenizer, pictures for it, and how it tokenizes them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from hf_vq import VQConfig, VQImageProcessor, VQModel
from hf_vq.data.tokenize import TokenizationArguments

PROCESSOR = VQImageProcessor(image_size=16)


def tiny(seed: int = 0, **fields: Any) -> VQModel:
    """A small tokenizer whose codes are vectors of pictures, so that tokens differ."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"num_codes": 300, "embed_dim": 4, "norm": None, "cb_norm": None, **fields}
    model = VQModel(
        VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, **settings)
    ).eval()
    pixel_values = PROCESSOR([picture(number) for number in range(24)], return_tensors="pt").pixel_values
    codebook = model.quantize.codebook.weight
    with torch.no_grad():
        vectors = model.encode(pixel_values).last_hidden_state.movedim(1, -1).reshape(-1, codebook.shape[1])
        codebook.copy_(vectors[torch.randperm(len(vectors))[: len(codebook)]])
    return model


def save(model: VQModel, folder: Path) -> str:
    """A tokenizer's folder."""
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return str(folder)


def picture(seed: int, size: tuple[int, int] = (20, 28)) -> PIL.Image.Image:
    """An image of random blobs."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC)


def arguments(tokenizer: str, dataset: Path | str, output_dir: Path, **fields: Any) -> TokenizationArguments:
    """Three shards of at most four images, in batches of three."""
    settings: dict[str, Any] = {"images_per_shard": 4, "batch_size": 3, "use_cpu": True, "disable_tqdm": True}
    return TokenizationArguments(tokenizer, str(dataset), str(output_dir), **{**settings, **fields})


def contents(folder: Path) -> dict[str, str]:
    """Name and hash of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
