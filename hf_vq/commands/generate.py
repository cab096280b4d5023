"""Generate images with a MaskGIT model.

    hf-vq generate --model user/maskgit-emoji --class_labels 3 3 7 --guidance_scale 3 --output grid.png

The name of `--output` decides what is written. A `.png` is a grid of all images. A `.gif` shows the grid filling up
step by step, gray where there are no tokens yet. Anything else is a folder of single PNGs.

Image number i is drawn with seed `--seed` + i, whatever `--batch_size` is. `--image photo.png --mask mask.png` makes
parts of an image anew; the mask is white there.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_vq.commands.parsing import parse_command_line
from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.hub.loading import load_model
from hf_vq.modeling.configuration_maskgit import MaskGitConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.modeling.options_maskgit import MaskGitSampling
from hf_vq.utils.fields import RepeatedFields

SAMPLING = RepeatedFields(MaskGitSampling)


@dataclass
@SAMPLING.add_to
class GenerateArguments:
    """What to generate, and where to write it. The options of `MaskGitSampling` are fields, too."""

    model: str = field(metadata={"help": "Folder or Hub id of a generator."})
    output: Path = field(metadata={"help": "A .png file, a .gif file or a folder."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the repository."})
    allow_unverified: bool = field(
        default=False,
        metadata={"help": "Take files of the cache that cannot be verified, since the Hub cannot be asked."},
    )
    class_labels: list[str] = field(
        default_factory=list, metadata={"help": "Numbers or names of classes: one for each image, or one for all."}
    )
    num_images: int | None = field(default=None, metadata={"help": "Number of images. By default one for each label."})
    image: Path | None = field(default=None, metadata={"help": "Image whose masked parts are made anew."})
    mask: Path | None = field(default=None, metadata={"help": "Picture that is white where the image is made anew."})
    seed: int = field(default=0, metadata={"help": "Image i is drawn with seed + i."})
    batch_size: int = field(default=16, metadata={"help": "Images at a time."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Where the model runs."}
    )
    duration: int = field(default=250, metadata={"help": "Milliseconds for each frame of a .gif."})

    def __post_init__(self) -> None:
        if (self.image is None) != (self.mask is None):
            raise ValueError("--image and --mask need each other. Give both or neither.")
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}.")


@command
def main(words: list[str]) -> None:
    """Parses the command line, generates images, and writes them."""
    with errors_in_a_line():
        options, _ = parse_command_line(GenerateArguments, None, words, __doc__, prog="hf-vq generate")
        model, _ = load_model(
            options.model, options.revision, noun="generator", allow_unverified=options.allow_unverified
        )
        model.to(options.device)
        labels = to_numbers(options.class_labels, model.config)
        count = len(labels) if labels is not None and options.num_images is None else options.num_images or 1
        if labels is not None and len(labels) not in (1, count):
            raise ValueError(
                f"There are {len(labels)} labels for {count} images. Give one label, or one for each image."
            )
        images, frames = generate(model, labels, count, options)
    write(images, frames, options.output, options.duration)


def to_numbers(labels: list[str], config: MaskGitConfig) -> list[int] | None:
    """Turns names of classes, or their numbers as text, into numbers. Without labels it returns None."""
    if not labels:
        return None
    numbers = {name: int(number) for number, name in (config.id2label or {}).items()}
    unknown = [label for label in labels if label not in numbers and not label.lstrip("-").isdigit()]
    if unknown:
        raise ValueError(f"There are no classes {unknown}. Give numbers, or names such as {list(numbers)[:5]}.")
    return [numbers[label] if label in numbers else int(label) for label in labels]


def generate(
    model: MaskGitModel, labels: list[int] | None, count: int, options: GenerateArguments
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Generates all images and, for an animation, pictures of each after every step."""
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
    """Reads `pixel_values` and `mask`, and brings both to the model's size in the same way."""
    config = model.config.vq_config
    processor = VQImageProcessor.for_config(config)
    pixel_values = processor(Image.open(image), return_tensors="pt").pixel_values
    gray = VQImageProcessor(image_size=config.image_size, num_channels=1, do_normalize=False)
    white = gray(Image.open(mask), return_tensors="pt").pixel_values[:, 0] > 0.5
    return {"pixel_values": pixel_values, "mask": white}


@torch.no_grad()
def render(model: MaskGitModel, tokens: torch.Tensor) -> list[Image.Image]:
    """Decodes tokens to pictures with gray cells for tokens that are missing.

    Args:
        model: The generator.
        tokens: (batch, h, w) or (batch, h, w, groups), -1 where there is no token yet.
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
    cells = empty.repeat_interleave(factor, 1).repeat_interleave(factor, 2).unsqueeze(1)
    gray = sum(config.pixel_range) / 2
    return VQImageProcessor.for_config(config).postprocess(pixel_values.masked_fill(cells, gray))  # type: ignore[return-value]


def write(images: list[Image.Image], frames: list[list[Image.Image]], output: Path, duration: int) -> None:
    """Writes a grid, an animated grid, or single files."""
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
    """Puts images of one size on a grid with about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new(images[0].mode, (columns * width, rows * height), "white")
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    return grid


if __name__ == "__main__":
    main()
