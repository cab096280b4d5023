"""Logits of a converted generator of Halton-MaskGIT against the original, at the size "large" that was published.

    make bench-converted

The original is the re-implementation of the tests with random weights. A part of the tokens is hidden.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import torch

from hf_vq import VQConfig, VQModel
from hf_vq.convert.halton_maskgit import convert_generator_state_dict
from hf_vq.utils.files import write_text

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[1] / "tests" / "hf_vq" / "convert"
CODES, SIDE, CLASSES = 16384, 24, 1000


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    reference = SimpleNamespace(**runpy.run_path(str(TESTS / "halton_reference.py")))
    theirs = reference.Generator(1024, 24, 16, 2816, SIDE, CODES, CLASSES).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    for embedding in (theirs.tok_emb, theirs.pos_emb, theirs.cls_emb, theirs.reg_tokens):
        torch.nn.init.normal_(embedding.weight, std=0.02)
    # Only its size matters here: the tokens come from nowhere.
    tokenizer = VQModel(VQConfig(image_size=16 * SIDE, base_channels=32, latent_channels=8, num_codes=CODES)).eval()
    model = convert_generator_state_dict(theirs.state_dict(), tokenizer).model
    tokens, mask = torch.randint(CODES, (2, SIDE, SIDE)), torch.rand(2, SIDE, SIDE) < 0.6
    ours = model(image_tokens=tokens, mask=mask, class_labels=torch.tensor([7, -1])).logits
    expected = theirs(tokens.masked_fill(mask, CODES), torch.tensor([7, CLASSES]))[..., :CODES].view_as(ours)
    record = {
        "parameters": model.num_parameters() - tokenizer.num_parameters(),
        "difference": float((ours - expected).abs().max()),
        "deviation": float(expected.std()),
        "equal": float((ours.argmax(-1) == expected.argmax(-1)).double().mean()),
    }
    print(record)
    lines = [
        f"Random weights, {SIDE} x {SIDE} tokens of {CODES:,} codes, {CLASSES:,} classes, float32, torch "
        f"{torch.__version__}, CPU.",
        "",
        "| generator | parameters | largest difference of logits | their deviation | equal most likely tokens |",
        "|---|---|---|---|---|",
        f"| Halton-MaskGIT large | {record['parameters'] / 1e6:.0f} M | {record['difference']:.1e} | "
        f"{record['deviation']:.2f} | {record['equal']:.2%} |",
    ]
    write_text(
        json.dumps({"torch": torch.__version__, **record}, indent=1) + "\n", RESULTS / "converted_generator.json"
    )
    write_text("\n".join(lines) + "\n", RESULTS / "converted_generator.md")


if __name__ == "__main__":
    main()
