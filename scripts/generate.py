"""Generate images with a MaskGIT model.

    python scripts/generate.py --model user/maskgit-emoji --class_labels 3 3 7 --guidance_scale 3 --output grid.png

`--output` decides what is written: a `.png` is a grid of all images, a `.gif` the grid as it fills up, step by step
(grey where there are no tokens yet), anything else a folder of single PNGs. Image number i is drawn with seed
`--seed` + i, whatever `--batch_size` is. Parts of an image are made anew with `--image photo.png --mask mask.png`, the
mask being white there.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel

from hf_vq import MaskGitConfig, MaskGitModel, MaskGitSampling, VQImageProcessor
from hf_vq.commands.parsing import parse_command_line
from hf_vq.utils.fields import RepeatedFields


SAMPLING = RepeatedFields(MaskGitSampling)


@dataclass
@SAMPLING.add_to
class GenerateArguments:
    """What to generate, and where to write it. The options of `MaskGitSampling` are fields, too."""

    model: str = field(metadata={"help": "Folder or Hub id of a generator."})
    output: Path = field(metadata={"help": "A .png, a .gif or a folder."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the repository."})
    class_labels: list[str] = field(
        default_factory=list, metadata={"help": "Numbers or names; one for each image, or one for all."}
    )
    num_images: int | None = field(default=None, metadata={"help": "By default one for each label."})
    image: Path | None = field(default=None, metadata={"help": "Image of which parts are made anew."})
    mask: Path | None = field(default=None, metadata={"help": "Picture, white where the image is made anew."})
    seed: int = field(default=0, metadata={"help": "Image i is drawn with seed + i."})
    batch_size: int = field(default=16, metadata={"help": "Images at a time."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Where the model runs."}
    )
    duration: int = field(default=250, metadata={"help": "Milliseconds for each frame of a .gif."})

    def __post_init__(self) -> None:
        if (self.image is None) != (self.mask is None):
            raise ValueError("--image and --mask need each other")
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, generates, and writes."""
    try:
        options, _ = parse_command_line(GenerateArguments, None, sys.argv[1:] if argv is None else argv, __doc__)
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


def to_numbers(labels: list[str], config: MaskGitConfig) -> list[int] | None:
    """Turns names of classes, or their numbers as text, into numbers; no labels into None."""
    if not labels:
        return None
    numbers = {name: int(number) for number, name in (config.id2label or {}).items()}
    unknown = [label for label in labels if label not in numbers and not label.lstrip("-").isdigit()]
    if unknown:
        raise ValueError(f"there are no classes {unknown}; give numbers, or names such as {list(numbers)[:5]}")
    return [numbers[label] if label in numbers else int(label) for label in labels]


def generate(
    model: MaskGitModel, labels: list[int] | None, count: int, options: GenerateArguments
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """All images and, for an animation, how each looks after every step."""
    arguments: dict[str, Any] = {"sampling": SAMPLING.read(options)}
    if options.image is not None and options.mask is not None:
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
    processor = VQImageProcessor.for_config(config)
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
    grey = sum(config.pixel_range) / 2
    return VQImageProcessor.for_config(config).postprocess(pixel_values.masked_fill(cells, grey))  # type: ignore[return-value]


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
