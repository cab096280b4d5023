"""What a generator has drawn so far: pictures of images that miss tokens, and many images on one grid."""

from __future__ import annotations

import math

import torch
from PIL import Image

from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.inpainting_maskgit import keep_outside
from hf_vq.modeling.modeling_maskgit import MaskGitModel


@torch.no_grad()
def render(
    model: MaskGitModel, tokens: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor] | None = None
) -> list[Image.Image]:
    """Decodes tokens to pictures with gray cells for tokens that are missing.

    Args:
        model: The generator.
        tokens: (batch, h, w) or (batch, h, w, groups), -1 where there is no token yet.
        kept: An image (1, channels, height, width) whose pixels are kept, and the mask (1, height, width) of the rest.
    """
    config = model.config.vq_config
    missing = tokens < 0
    # A missing token of a later group gets the first code of its group.
    first = torch.arange(config.num_groups, device=tokens.device) * (
        0 if config.share_codebook else model.config.codebook_size
    )
    filled = torch.where(missing, first if config.num_groups > 1 else first[0], tokens)
    pixel_values = model.tokenizer.decode(filled).decoded_pixel_values
    empty = missing.all(-1) if config.num_groups > 1 else missing
    factor = config.downsample_factor
    cells = empty.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if kept is not None:
        given, mask = kept[0].expand_as(pixel_values), kept[1].expand(len(pixel_values), -1, -1)
        pixel_values, cells = keep_outside(given, pixel_values, mask, factor), cells & mask
    gray = sum(config.pixel_range) / 2
    pixel_values = pixel_values.masked_fill(cells.unsqueeze(1), gray)
    return VQImageProcessor.for_config(config).postprocess(pixel_values)  # type: ignore[return-value]


def to_grid(images: list[Image.Image]) -> Image.Image:
    """Puts images of one size on a grid with about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new(images[0].mode, (columns * width, rows * height), "white")
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    return grid
