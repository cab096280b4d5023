"""Generate images with a MaskGIT model.

    python scripts/generate.py --model user/maskgit-emoji --class_labels 3 3 7 --guidance_scale 3 --output grid.png

`--output` decides what is written: a `.png` is a grid of all images, a `.gif` the grid as it fills up, step by step
(grey where there are no tokens yet), anything else a folder of single PNGs. Image number i is drawn with seed
`--seed` + i, whatever `--batch_size` is. Parts of an image are made anew with `--image photo.png --mask mask.png`, the
mask being white there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel

from hf_vq import MaskGitConfig, MaskGitModel, VQImageProcessor

_GREY = 0.0  # of the model's pixels in [-1, 1]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, generates, and writes."""
    options = parse(argv)
    try:
        config = AutoConfig.from_pretrained(options.model, revision=options.revision)
        if not isinstance(config, MaskGitConfig):
            kind = f"a {config.model_type} model"
            raise ValueError(f"{options.model} is {kind}, not a {MaskGitConfig.model_type} one")
        model: MaskGitModel = AutoModel.from_pretrained(options.model, revision=options.revision).to(options.device)
        labels = to_numbers(options.class_labels, config)
        count = len(labels) if labels is not None and options.num_images is None else options.num_images or 1
        if labels is not None and len(labels) not in (1, count):
            raise ValueError(f"there are {len(labels)} labels for {count} images; give one, or one for each")
        images, frames = generate(model, labels, count, options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    write(images, frames, options.output, options.duration)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="repository or folder")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--class_labels", nargs="+", help="numbers or names; one for each image, or one for all")
    parser.add_argument("--num_images", type=int, help="default: one for each label")
    parser.add_argument("--num_steps", type=int, default=8)
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="1 is off")
    parser.add_argument("--guidance_schedule", default="constant", choices=["constant", "linear", "power_cosine"])
    parser.add_argument("--schedule", default="arccos", choices=["arccos", "cosine", "linear", "square"])
    parser.add_argument("--sampler", default="confidence", choices=["confidence", "halton"])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--choice_temperature", type=float, help="of the confidence sampler; default 4.5")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--image", type=Path, help="image of which parts are made anew")
    parser.add_argument("--mask", type=Path, help="picture, white where the image is made anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--duration", type=int, default=250, help="milliseconds for each frame of a .gif")
    parser.add_argument("--output", type=Path, required=True, help=".png, .gif or folder")
    options = parser.parse_args(argv)
    if (options.image is None) != (options.mask is None):
        parser.error("--image and --mask need each other")
    if options.batch_size < 1:
        parser.error("--batch_size must be at least 1")
    return options


def to_numbers(labels: list[str] | None, config: MaskGitConfig) -> list[int] | None:
    """Names of classes, or their numbers as text, to numbers."""
    if labels is None:
        return None
    numbers = {name: int(number) for number, name in (config.id2label or {}).items()}
    unknown = [label for label in labels if label not in numbers and not label.lstrip("-").isdigit()]
    if unknown:
        raise ValueError(f"there are no classes {unknown}; give numbers, or names such as {list(numbers)[:5]}")
    return [numbers[label] if label in numbers else int(label) for label in labels]


def generate(
    model: MaskGitModel, labels: list[int] | None, count: int, options: argparse.Namespace
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """All images and, for an animation, how each looks after every step."""
    names = ("num_steps", "guidance_scale", "guidance_schedule", "schedule", "sampler", "temperature")
    arguments: dict[str, Any] = {name: getattr(options, name) for name in names}
    arguments |= {name: getattr(options, name) for name in ("choice_temperature", "top_k", "top_p")}
    if options.image is not None:
        arguments |= read_image_and_mask(model, options.image, options.mask)
    animated = options.output.suffix.lower() == ".gif"
    images: list[Image.Image] = []
    frames: list[list[Image.Image]] = []
    for start in range(0, count, options.batch_size):
        numbers = range(start, min(start + options.batch_size, count))
        own = labels if labels is None or len(labels) == 1 else [labels[number] for number in numbers]
        out = model.generate(
            class_labels=own,
            num_images=len(numbers),
            generator=[torch.Generator().manual_seed(options.seed + number) for number in numbers],
            return_intermediates=animated,
            **arguments,
        )
        images += out.images
        if animated:
            assert out.intermediates is not None
            steps = [render(model, tokens) for tokens in out.intermediates]
            frames += [list(pictures) for pictures in zip(*steps, strict=True)]
    return images, frames


def read_image_and_mask(model: MaskGitModel, image: Path, mask: Path) -> dict[str, torch.Tensor]:
    """`pixel_values` and `mask`, both brought to the model's size in the same way."""
    config = model.config.vq_config
    processor = VQImageProcessor(image_size=config.image_size, num_channels=config.num_channels)
    pixel_values = processor(Image.open(image), return_tensors="pt").pixel_values
    grey = VQImageProcessor(image_size=config.image_size, num_channels=1, do_normalize=False)
    white = grey(Image.open(mask), return_tensors="pt").pixel_values[:, 0] > 0.5
    return {"pixel_values": pixel_values, "mask": white}


@torch.no_grad()
def render(model: MaskGitModel, tokens: torch.Tensor) -> list[Image.Image]:
    """Tokens (batch, h, w) or (batch, h, w, groups), -1 where there are none yet, to pictures with grey cells."""
    config = model.config.vq_config
    missing = tokens < 0
    # A missing token of a later group takes its group's first code.
    first = torch.arange(config.num_groups, device=tokens.device) * (
        0 if config.share_codebook else model.config.codebook_size
    )
    filled = torch.where(missing, first if config.num_groups > 1 else first[0], tokens)
    pixel_values = model.tokenizer.decode(filled).decoded_pixel_values
    empty = missing.all(-1) if config.num_groups > 1 else missing
    factor = config.downsample_factor
    cells = empty.repeat_interleave(factor, 1).repeat_interleave(factor, 2).unsqueeze(1)
    processor = VQImageProcessor(num_channels=config.num_channels)
    return processor.postprocess(pixel_values.masked_fill(cells, _GREY))  # type: ignore[return-value]


def write(images: list[Image.Image], frames: list[list[Image.Image]], output: Path, duration: int) -> None:
    """A grid, an animated grid, or single files."""
    suffix = output.suffix.lower()
    if suffix in (".png", ".gif"):
        output.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".png":
        to_grid(images).save(output)
    elif suffix == ".gif":
        pictures = [to_grid(list(step)) for step in zip(*frames, strict=True)]
        pictures[0].save(output, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            image.save(output / f"{number:05}.png")
    print(f"Wrote {len(images)} images to {output}")


def to_grid(images: list[Image.Image]) -> Image.Image:
    """Rows of images of one size, about as many as there are columns."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new(images[0].mode, (columns * width, rows * height), "white")
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    return grid


if __name__ == "__main__":
    main()
