"""Tokens and pixels of converted tokenizers against the originals, at the sizes that were published.

    make bench-converted

The originals are the re-implementations of the tests, or classes of installed libraries, with random weights: norms
and biases drawn, too, and codes placed where the vectors are. A token is unequal if both differ in float32. Then the
column beside it tells how near the two codes are to a tie: the larger distance (of IBQ the larger product) over the
smaller one, minus one. Pixels are those that both decode from the same tokens. An interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from hf_vq import VQModel
from hf_vq.convert.checkpoints import convert_checkpoint
from hf_vq.data.sources import load_images
from hf_vq.utils.files import write_text

DIFFUSERS: Any = diffusers.VQModel  # type checkers do not see what it inherits
RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[1] / "tests" / "hf_vq" / "convert"
VQGAN, MASKGIT, COSMOS, MAGVIT = (
    SimpleNamespace(**runpy.run_path(str(TESTS / f"{name}.py")))
    for name in ("vqgan_references", "maskgit_references", "cosmos_reference", "magvit_reference")
)
F16: dict[str, Any] = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "blocks": 2, "z_channels": 256}


def maskbit(bits: int) -> Callable[[], Any]:
    """The original of MaskBit with so many bits."""
    return lambda: MASKGIT.MaskBit(width=128, multipliers=(1, 1, 2, 2, 4), z_channels=bits, num_codes=2**bits)


def janus() -> Any:
    """transformers' class at the size of Janus-Pro, for images of 384 px."""
    return JanusVQVAE(JanusVQVAEConfig(num_patches=24))


def amused() -> Any:
    """diffusers' class at the size of aMUSEd's."""
    kinds: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * 5,
        "up_block_types": ["UpDecoderBlock2D"] * 5,
    }
    return DIFFUSERS(
        **kinds,
        block_out_channels=(128, 256, 256, 512, 768),
        latent_channels=64,
        num_vq_embeddings=8192,
        vq_embed_dim=64,
        layers_per_block=2,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )


# name -> how to make the original, side of the image
CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "taming VQGAN f16, 16,384 codes": (lambda: VQGAN.Taming(**F16, attention=(4,), embed_dim=256, n_embed=16384), 256),
    "taming VQGAN f8, Gumbel, 8,192 codes": (
        lambda: VQGAN.Gumbel(**F16 | {"ch_mult": (1, 1, 2, 4)}, attention=(3,), embed_dim=256, n_embed=8192),
        256,
    ),
    "RQ-VAE 8 x 8 x 4, 16,384 codes": (
        lambda: VQGAN.RQVAE(
            **F16 | {"ch_mult": (1, 1, 2, 2, 4, 4)}, levels=4, attention=(5,), embed_dim=256, n_embed=16384
        ),
        256,
    ),
    "Chameleon, 8,192 codes": (lambda: VQGAN.Taming(**F16, attention=(), embed_dim=256, n_embed=8192), 512),
    "IBQ, 16,384 codes": (
        lambda: VQGAN.IBQ(**F16 | {"blocks": 4}, attention=(4,), embed_dim=256, n_embed=16384),
        256,
    ),
    "LlamaGen f16": (lambda: VQGAN.LlamaGen(**F16, attention=(4,), embed_dim=8, n_embed=16384), 256),
    "Janus-Pro (transformers)": (janus, 384),
    "aMUSEd (diffusers)": (amused, 256),
    "maskgit-vqgan": (
        lambda: MASKGIT.MaskGit(width=128, multipliers=(1, 1, 2, 2, 4), z_channels=256, num_codes=1024),
        256,
    ),
    "VQGAN+, 12 bits": (
        lambda: MASKGIT.VQGANPlus(width=128, multipliers=(1, 1, 2, 2, 4), z_channels=64, num_codes=4096),
        256,
    ),
    "MaskBit, 10 bits": (maskbit(10), 256),
    "MaskBit, 14 bits": (maskbit(14), 256),
    "MaskBit, 18 bits": (maskbit(18), 256),
    "Show-o MAGVITv2": (
        lambda: VQGAN.ShowO(128, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4), (1, 1, 2, 2, 4), (4, 4, 3, 4, 3), bits=13),
        256,
    ),
    "Open-MAGVIT2, 14 bits": (lambda: MAGVIT.OpenMagvit2(128, (1, 1, 2, 2, 4), 4, 14), 256),
    "Open-MAGVIT2, 18 bits": (lambda: MAGVIT.OpenMagvit2(128, (1, 1, 2, 2, 4), 4, 18), 256),
    "Cosmos DI8x8": (lambda: COSMOS.Cosmos(128, (2, 4, 4), 2, 256, steps=1), 256),
    "Cosmos DI16x16": (lambda: COSMOS.Cosmos(128, (2, 4, 4), 2, 256), 512),
}


@torch.no_grad()
def randomize(theirs: Any, images: torch.Tensor) -> Any:
    """Draws weights so that every one counts, and puts codes where the vectors are."""
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.eval()
    book = getattr(getattr(theirs, "quantize", None), "embedding", None)
    last = [module for name, module in theirs.named_modules() if name.endswith("quant_conv") and "post" not in name]
    outputs: list[torch.Tensor] = []
    layer = last[0] if last else theirs.encoder.conv_out
    handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    encode(theirs, images)
    handle.remove()
    vectors = outputs[0].movedim(1, -1).flatten(0, -2)
    if isinstance(book, nn.Embedding):
        rows = torch.randint(len(vectors), (book.num_embeddings,))
        noise = torch.randn(book.num_embeddings, book.embedding_dim) * vectors.std(0)
        book.weight.copy_((vectors[rows] + vectors.mean(0)) / 2 + 0.5 * noise)
    else:  # signs or levels: the layer's output is centered and scaled, so that all of them vary
        layer.bias.sub_(vectors.mean(0))
        for parameter in (layer.weight, layer.bias):
            parameter.div_(vectors.std(0).view(-1, *[1] * (parameter.ndim - 1)))
    return theirs


def encode(theirs: Any, images: torch.Tensor) -> torch.Tensor:
    """The original's ids (1, h, w), or (1, h, w, levels)."""
    side = int(images.shape[-1])
    if isinstance(theirs, DIFFUSERS):
        ids = theirs.quantize(theirs.encode(images).latents)[2][2]
    else:
        ids = theirs.encode(images)
        if isinstance(theirs, VQGAN.RQVAE):
            return ids
    ids = getattr(ids, "image_tokens", ids)
    rows = round(ids.numel() ** 0.5)
    assert side % rows == 0
    return ids.reshape(1, rows, rows)


def decode(theirs: Any, ids: torch.Tensor) -> torch.Tensor:
    """The original's pixels."""
    if isinstance(theirs, DIFFUSERS):
        shape = (*ids.shape, theirs.config.vq_embed_dim)
        return theirs.decode(ids.flatten(), force_not_quantize=True, shape=shape).sample
    is_janus = isinstance(theirs, JanusVQVAE)
    return theirs.decode(ids.flatten(1) if is_janus else ids)


def gap(model: VQModel, images: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How near the two codes of unequal tokens are to a tie, of the farthest."""
    vectors = model.quantize.unquantized(model.encode(images).last_hidden_state.double())
    first, second = (
        (vectors * codes).sum(1)[ours != theirs]
        if model.config.quantizer_type == "ibq"
        else (codes - vectors).square().sum(1).sqrt()[ours != theirs]
        for codes in (model.get_codebook_entry(ids).double() for ids in (ours, theirs))
    )
    return float((torch.maximum(first, second) / torch.minimum(first, second) - 1).abs().max())


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """One line of the table."""
    make, side = CASES[name]
    torch.manual_seed(0)
    row: Any = load_images("noto-emoji-32", "test")[0]
    picture = Image.open(BytesIO(row["image"]["bytes"])).convert("RGB").resize((side, side))
    pixels = torch.tensor(np.asarray(picture), dtype=torch.float32).movedim(-1, 0)[None]
    images = (pixels / 255 + 0.1 * torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    theirs: Any = make()
    probe = images if isinstance(theirs, MASKGIT.MaskGit) else images * 2 - 1
    theirs = randomize(theirs, probe)
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(theirs, "save_pretrained"):
            theirs.save_pretrained(folder)
            source = Path(folder)
        else:
            source = Path(folder) / "weights.pt"
            torch.save({"state_dict": theirs.state_dict()}, source)
        start = time.perf_counter()
        layout = "ibq" if isinstance(theirs, VQGAN.IBQ) else None
        conversion = convert_checkpoint(source, image_size=side, layout=layout)
        seconds = time.perf_counter() - start
    model = conversion.model
    ours, expected = model.encode(probe).image_tokens, encode(theirs, probe)
    unequal = int((ours != expected).sum())
    decoded, reference = model.decode(expected).decoded_pixel_values, decode(theirs, expected)
    return {
        "name": name,
        "layout": conversion.layout,
        "parameters": model.num_parameters(),
        "codes": model.config.num_codes,
        "side": side,
        "tokens": ours.numel(),
        "different": len(ours.unique()),
        "unequal": unequal,
        "gap": gap(model, probe, ours, expected) if unequal else 0.0,
        "pixels": float((decoded - reference).abs().max()),
        "contrast": float(reference.std()),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="a part of the names")
    options = parser.parse_args()
    path = RESULTS / "converted_tokenizers.json"
    records = {record["name"]: record for record in json.loads(path.read_text())["records"]} if path.exists() else {}
    for name in CASES:
        if name not in records if options.only is None else options.only in name:
            records[name] = measure(name)
            print(records[name], flush=True)
            save(path, [records[each] for each in CASES if each in records])


def save(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes the records and their table."""
    lines = [
        f"Random weights at published sizes, one image, float32, torch {torch.__version__}, CPU.",
        "",
        "| tokenizer | layout | parameters | codes | pixels | tokens | different ids | unequal tokens | their gap | "
        "largest difference of pixels | their deviation |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in records:
        near = f"{each['gap']:.1e}" if each["unequal"] else ""
        lines.append(
            f"| {each['name']} | `{each['layout']}` | {each['parameters'] / 1e6:.1f} M | {each['codes']:,} | "
            f"{each['side']} | {each['tokens']:,} | {each['different']:,} | {each['unequal']} | {near} | "
            f"{each['pixels']:.1e} | {each['contrast']:.2f} |"
        )
    path.parent.mkdir(exist_ok=True)
    write_text(json.dumps({"torch": torch.__version__, "records": records}, indent=1) + "\n", path)
    write_text("\n".join(lines) + "\n", path.with_suffix(".md"))


if __name__ == "__main__":
    main()
