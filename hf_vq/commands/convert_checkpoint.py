"""Convert a tokenizer of another project, such as diffusers' VQModel, taming-transformers or LlamaGen.

    hf-vq convert --checkpoint vq_ds16_c2i.pt --output_dir tokenizer --image_size 256

The output is a complete folder for the Hub, with configuration, safetensors, image processor, card and code. The way
back turns such a folder into one that `diffusers.VQModel.from_pretrained` loads:

    hf-vq convert --checkpoint tokenizer --output_dir for_diffusers --to diffusers
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_vq.cards.merging import fill_card
from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.convert.checkpoints import Conversion, convert_checkpoint, save_for_diffusers
from hf_vq.convert.halton_maskgit import PROJECT, GeneratorConversion, convert_generator
from hf_vq.convert.layouts import LAYOUTS
from hf_vq.convert.reading import files_of, weights_file
from hf_vq.hub.loading import load_tokenizer
from hf_vq.kinds import write_card
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.pixel_range_vq import UNIT
from hf_vq.utils.files import write_text
from hf_vq.utils.hashes import file_sha256


def parse(words: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="hf-vq convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a .safetensors, .ckpt, .pth, .pt or .bin file, or a folder with one"
    )
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--to", choices=("hf_vq", "diffusers"), default="hf_vq")
    parser.add_argument("--layout", choices=LAYOUTS, help="default: the names of the weights decide")
    parser.add_argument("--prefix", help="what the names of the tokenizer begin with, if the file holds several")
    parser.add_argument("--image_size", type=int, help="default: what the configuration says, or 256")
    parser.add_argument("--use_ema", action="store_true", help="take the averaged weights, if the file has them")
    parser.add_argument(
        "--no_normalize", action="store_true", help="the network takes pixels in [0, 1], like aMUSEd's, not in [-1, 1]"
    )
    parser.add_argument(
        "--allow_unverified", action="store_true", help="take files of the cache that cannot be verified offline"
    )
    parser.add_argument("--license", help="the license of the weights, as its identifier on the Hub, for the card")
    parser.add_argument(
        "--tokenizer",
        help="for weights of a generator (Halton-MaskGIT): its tokenizer, in a folder of ours or as a file",
    )
    parser.add_argument("--num_attention_heads", type=int, help="of a generator whose size the project does not have")
    parser.add_argument("--source", help="where the file came from, such as a URL or an id on the Hub, for the card")
    return parser.parse_args(words)


def convert(args: argparse.Namespace) -> None:
    """Converts another project's tokenizer to a folder of ours."""
    conversion = convert_checkpoint(
        args.checkpoint,
        layout=args.layout,
        image_size=args.image_size,
        pixel_range=UNIT if args.no_normalize else None,
        use_ema=args.use_ema,
        prefix=args.prefix,
    )
    model, config = conversion.model, conversion.model.config
    layout = LAYOUTS[conversion.layout]
    # Nobody knows the loss that these weights were trained with.
    made_by = f"{layout.project}, or with the same names"
    _write(
        args, conversion, {"loss": None, "weights": f"converted from the layout of {layout.name}", "made by": made_by}
    )
    side = config.image_size // config.downsample_factor
    print(
        f"{args.output_dir}: layout {conversion.layout}, {model.num_parameters():,} parameters, "
        f"{config.num_codes:,} codes, {side} x {side} tokens at {config.image_size} px"
    )


def convert_transformer(args: argparse.Namespace) -> None:
    """Converts another project's generator to a folder of ours."""
    conversion = convert_generator(args.checkpoint, args.tokenizer, num_attention_heads=args.num_attention_heads)
    config = conversion.model.config
    _write(args, conversion, {"weights": "converted from Halton-MaskGIT", "made by": PROJECT})
    rows, columns = config.grid_size
    print(
        f"{args.output_dir}: a generator of Halton-MaskGIT, {config.num_classes:,} classes, {rows} x {columns} "
        f"tokens, {config.hidden_size} wide, {config.num_hidden_layers} layers"
    )


def _write(args: argparse.Namespace, conversion: Conversion | GeneratorConversion, rows: dict[str, Any]) -> None:
    """Writes model, image processor and card, and prints what was left out or assumed."""
    model, folder = conversion.model, args.output_dir
    vq_config = getattr(model.config, "vq_config", model.config)
    told = [*conversion.notes, *(f"assumed: {each}" for each in conversion.assumptions)]
    files = files_of(weights_file(Path(args.checkpoint)))
    recipe = {
        **rows,
        "source": args.source,
        "original file": "; ".join(f"{file.name}, SHA-256 {file_sha256(file)}" for file in files),
        "notes": "; ".join(told) or None,
    }
    card = write_card(model, {}, training=recipe, license=args.license, name=folder.resolve().name)
    readme = folder / "README.md"
    text = fill_card(readme.read_text(encoding="utf-8"), str(card)) if readme.exists() else str(card)
    model.save_pretrained(folder)
    if vq_config.num_channels in (1, 3):
        VQImageProcessor.for_config(vq_config).save_pretrained(folder)
    write_text(text, readme)
    for note in conversion.notes:
        print(f"note: {note}")
    for assumption in conversion.assumptions:
        print(f"assumed: {assumption}")


def export(args: argparse.Namespace) -> None:
    """Converts a folder of ours, or a repository, to a folder for diffusers."""
    model, _ = load_tokenizer(args.checkpoint, allow_unverified=args.allow_unverified)
    if args.no_normalize:
        model.config.pixel_range = list(UNIT)
    save_for_diffusers(model, args.output_dir)
    print(f"{args.output_dir}: load it with diffusers.VQModel.from_pretrained")


@command
def main(words: list[str]) -> None:
    """Converts one checkpoint, one way or the other."""
    args = parse(words)
    source = Path(args.checkpoint)
    source = source.parent if source.is_file() else source
    if source.is_dir() and source.resolve() == args.output_dir.resolve():
        raise SystemExit(f"error: {args.output_dir} holds the checkpoint. Choose another --output_dir.")
    with errors_in_a_line():
        if args.to == "diffusers":
            export(args)
        elif args.tokenizer is not None:
            convert_transformer(args)
        else:
            convert(args)


if __name__ == "__main__":
    main()
