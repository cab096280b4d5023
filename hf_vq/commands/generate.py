"""Generate images with a MaskGIT model.

    hf-vq generate --model user/maskgit-emoji --class_labels 3 3 7 --guidance_scale 3 --output grid.png

The name of `--output` decides what is written. A `.png`, `.jpg`, `.tif` or `.bmp` is a grid of all images. A `.gif` or
`.webp` shows the grid filling up step by step, gray where there are no tokens yet. A name of another kind is a folder
of single PNGs.

Image number i is drawn with seed `--seed` + i, whatever `--batch_size` is. `--image photo.png --mask mask.png` makes
parts of an image anew; the mask is white there. With `--keep_pixels` the rest comes back untouched. `--guidance_sweep
1 2 4 8` draws the same images with each strength of the guidance, one row for each.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from hf_vq.commands.parsing import parse_command_line
from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.hub.loading import load_model
from hf_vq.modeling.class_names_maskgit import class_numbers
from hf_vq.modeling.inpainting_maskgit import read_image_and_mask
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.modeling.options_maskgit import MaskGitSampling
from hf_vq.plots.canvases import render, to_grid
from hf_vq.utils.fields import RepeatedFields
from hf_vq.utils.text import counted

SAMPLING = RepeatedFields(MaskGitSampling)
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ANIMATIONS = (".gif", ".webp")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv")


@dataclass
@SAMPLING.add_to
class GenerateArguments:
    """What to generate, and where to write it. The options of `MaskGitSampling` are fields, too."""

    model: str = field(metadata={"help": "Folder, Hub id, or emoji-generator, the sample."})
    output: Path = field(
        default=Path("generated.png"),
        metadata={"help": "A picture (.png, .jpg), an animation (.gif, .webp) or a folder."},
    )
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
    keep_pixels: bool = field(default=False, metadata={"help": "Give back untouched what is outside of the mask."})
    guidance_sweep: list[float] = field(
        default_factory=list, metadata={"help": "Several guidance scales: a row of the same images for each."}
    )
    seed: int = field(default=0, metadata={"help": "Image i is drawn with seed + i."})
    batch_size: int = field(default=16, metadata={"help": "Images at a time."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Where the model runs."}
    )
    duration: int = field(default=250, metadata={"help": "Milliseconds for each frame of an animation."})

    def __post_init__(self) -> None:
        if (self.image is None) != (self.mask is None):
            raise ValueError("--image and --mask need each other. Give both or neither.")
        if self.keep_pixels and self.image is None:
            raise ValueError("--keep_pixels needs the image whose pixels are kept: --image and --mask.")
        if self.guidance_sweep and kind_of(self.output) == "animation":
            raise ValueError("--guidance_sweep makes a picture or folders. Give --output as a .png file or a folder.")
        if self.guidance_sweep and SAMPLING.read(self).guidance_scale != 1:
            raise ValueError("--guidance_sweep sets --guidance_scale itself. Give one of the two.")
        kind_of(self.output)
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
        labels = class_numbers(options.class_labels, model.config) or None
        count = len(labels) if labels is not None and options.num_images is None else options.num_images or 1
        if labels is not None and len(labels) not in (1, count):
            raise ValueError(
                f"There are {len(labels)} labels for {count} images. Give one label, or one for each image."
            )
        sampling = SAMPLING.read(options)
        if options.guidance_sweep:
            sweep = {
                scale: generate(model, labels, count, options, replace(sampling, guidance_scale=scale))[0]
                for scale in options.guidance_sweep
            }
            write_sweep(sweep, options.output)
        else:
            images, frames = generate(model, labels, count, options, sampling)
            write(images, frames, options.output, options.duration)
            print(f"Wrote {counted(len(images), 'image')} to {options.output}")


def kind_of(output: Path) -> Literal["picture", "animation", "folder"]:
    """What the name of the output asks for; raises a `ValueError` for a kind of file that cannot be written."""
    suffix = output.suffix.lower()
    if output.is_dir():
        return "folder"
    if suffix in PICTURES:
        return "picture"
    if suffix in ANIMATIONS:
        return "animation"
    if suffix in VIDEOS or suffix in Image.registered_extensions():
        raise ValueError(
            f"--output cannot be a {suffix} file. Give a picture ({', '.join(PICTURES)}), an animation "
            f"({', '.join(ANIMATIONS)}), or a folder."
        )
    return "folder"


def generate(
    model: MaskGitModel, labels: list[int] | None, count: int, options: GenerateArguments, sampling: MaskGitSampling
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Generates all images and, for an animation, pictures of each after every step."""
    arguments: dict[str, Any] = {"sampling": sampling}
    kept = None
    if options.image is not None and options.mask is not None:
        pixel_values, mask = read_image_and_mask(options.image, options.mask, model.config)
        arguments |= {"pixel_values": pixel_values, "mask": mask, "keep_pixels": options.keep_pixels}
        kept = (pixel_values.to(model.device), mask.to(model.device)) if options.keep_pixels else None
    animated = kind_of(options.output) == "animation"
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
            steps = [render(model, tokens, kept) for tokens in out.intermediates]
            frames += [list(pictures) for pictures in zip(*steps, strict=True)]
    return images, frames


def write(images: list[Image.Image], frames: list[list[Image.Image]], output: Path, duration: int) -> None:
    """Writes a grid, an animated grid, or single files."""
    kind = kind_of(output)
    (output if kind == "folder" else output.parent).mkdir(parents=True, exist_ok=True)
    if kind == "picture":
        save_picture(to_grid(images), output)
    elif kind == "animation":
        pictures = [to_grid(list(step)) for step in zip(*frames, strict=True)]
        options: dict[str, Any] = {"lossless": True} if output.suffix.lower() == ".webp" else {}
        pictures[0].save(output, save_all=True, append_images=pictures[1:], duration=duration, loop=0, **options)
    else:
        for number, image in enumerate(images):
            image.save(output / f"{number:05}.png")


def write_sweep(sweep: dict[float, list[Image.Image]], output: Path) -> None:
    """Writes a picture with a row for each guidance scale, or a folder of single files for each."""
    total = sum(map(len, sweep.values()))
    if kind_of(output) == "folder":
        for scale, images in sweep.items():
            write(images, [], output / f"guidance_{scale:g}", 0)
    else:
        from hf_vq.plots.images import sample_sheet

        images = [image for row in sweep.values() for image in row]
        labels = [f"guidance {scale:g}" for scale in sweep]
        output.parent.mkdir(parents=True, exist_ok=True)
        save_picture(sample_sheet(images, row_labels=labels, columns=total // len(sweep)), output)
    print(f"Wrote {counted(total, 'image')} with {counted(len(sweep), 'guidance scale')} to {output}")


def save_picture(picture: Image.Image, output: Path) -> None:
    """Saves a picture as the name says, JPEGs at a quality at which pixels stay sharp."""
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if output.suffix.lower() in (".jpg", ".jpeg") else {}
    picture.save(output, **options)


if __name__ == "__main__":
    main()
