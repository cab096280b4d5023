"""Speed of `MaskGitModel` beside the parts of diffusers' aMUSEd, in generating and in training.

    make bench-generator

Both have random weights and, within a percent, the same number of parameters. Both generate 16 x 16 tokens in 12 steps
with guidance, and end with the same tokenizer's decoder. They alternate in one run. Rates are those of the best round,
because other work on the machine can only add time. Ratios are medians over the rounds. aMUSEd's text conditions are
random tensors, so encoding text is not measured.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import speedup, timed_rounds
from torch import nn

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, draw_mask

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS = "hf_vq", "diffusers (UVit2DModel, AmusedScheduler)"
NUM_CODES, GRID, NUM_CLASSES, GUIDANCE = 1024, 16, 1000, 3.0


def our_model(hidden_size: int, num_layers: int, intermediate_size: int) -> MaskGitModel:
    vq_config = VQConfig(architecture="sqvae", image_size=4 * GRID, base_channels=32, embed_dim=8, num_codes=NUM_CODES)
    config = MaskGitConfig(
        vq_config=vq_config,
        num_classes=NUM_CLASSES,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=intermediate_size,
        dropout=0.0,  # like theirs
    )
    return MaskGitModel(config)


def their_model(hidden_size: int, num_layers: int) -> Any:
    from diffusers import UVit2DModel

    return UVit2DModel(
        hidden_size=hidden_size,
        cond_embed_dim=hidden_size,
        encoder_hidden_size=hidden_size,
        micro_cond_embed_dim=5 * 256,
        vocab_size=NUM_CODES + 1,
        codebook_size=NUM_CODES,
        in_channels=hidden_size,
        block_out_channels=hidden_size,
        num_res_blocks=1,
        block_num_heads=hidden_size // 64,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=hidden_size * 11 // 4,  # the ratio of the published model
    )


def count(model: nn.Module) -> int:
    """Number of the transformer's parameters, without the tokenizer."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("tokenizer."))


def closest(parameters: int, hidden_size: int, num_layers: int) -> MaskGitModel:
    """Our model of this width and depth, with the feed-forward width that best matches the number of parameters."""
    with torch.device("meta"):
        small, large = (count(our_model(hidden_size, num_layers, width)) for width in (64, 128))
    width = 64 + round((parameters - small) / (large - small) * 8) * 8
    return our_model(hidden_size, num_layers, width)


def their_inputs(hidden_size: int, batch: int, device: str) -> dict[str, torch.Tensor]:
    """Random text conditions, with the lengths that the pipeline uses."""
    return {
        "encoder_hidden_states": torch.randn(batch, 77, hidden_size, device=device),
        "pooled_text_emb": torch.randn(batch, hidden_size, device=device),
        "micro_conds": torch.rand(batch, 5, device=device),
    }


@torch.no_grad()
def their_generate(model: Any, tokenizer: Any, inputs: dict[str, torch.Tensor], num_steps: int) -> torch.Tensor:
    """The loop of `AmusedPipeline.__call__`, after the text is encoded."""
    from diffusers import AmusedScheduler

    batch, device = len(inputs["micro_conds"]) // 2, inputs["micro_conds"].device
    scheduler: Any = AmusedScheduler(mask_token_id=NUM_CODES)
    scheduler.set_timesteps(num_steps, (2, 0), device)
    tokens = torch.full((batch, GRID, GRID), NUM_CODES, dtype=torch.long, device=device)
    for timestep in scheduler.timesteps:
        output = model(torch.cat([tokens] * 2), **inputs)
        unconditional, conditional = output.chunk(2)
        output = unconditional + GUIDANCE * (conditional - unconditional)
        tokens = scheduler.step(model_output=output, timestep=timestep, sample=tokens).prev_sample
    return tokenizer.decode(tokens).decoded_pixel_values


def measure(options: argparse.Namespace) -> tuple[dict[tuple[str, str], list[float]], dict[str, int]]:
    """Milliseconds of each round, `{(library, "generate" or "train"): [...]}`, and each library's parameters."""
    torch.manual_seed(0)
    device, batch, width = options.device, options.batch_size, options.hidden_size
    theirs = their_model(width, options.num_layers).to(device)
    ours = closest(count(theirs), width, options.num_layers).to(device)
    labels = torch.arange(batch, device=device)
    inputs = their_inputs(width, batch, device)
    doubled = {name: torch.cat([value] * 2) for name, value in inputs.items()}
    tokens = torch.randint(0, NUM_CODES, (batch, GRID, GRID), device=device)
    mask = draw_mask((batch, GRID, GRID), 0.64, device=device)
    trainable = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    optimizers = {OURS: torch.optim.AdamW(trainable), THEIRS: torch.optim.AdamW(theirs.parameters())}

    def step(name: str, loss: torch.Tensor) -> None:
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    def train_ours() -> None:
        step(OURS, ours.train()(image_tokens=tokens, class_labels=labels, mask=mask).loss)

    def train_theirs() -> None:
        logits = theirs.train()(tokens.masked_fill(mask, NUM_CODES), **inputs)
        step(THEIRS, nn.functional.cross_entropy(logits, tokens.masked_fill(~mask, -100)))

    tasks: dict[tuple[str, str], Callable[[], object]] = {
        (OURS, "generate"): lambda: ours.eval().generate(
            class_labels=labels, num_steps=options.num_steps, guidance_scale=GUIDANCE, output_type="pt"
        ),
        (THEIRS, "generate"): lambda: their_generate(theirs.eval(), ours.tokenizer, doubled, options.num_steps),
        (OURS, "train"): train_ours,
        (THEIRS, "train"): train_theirs,
    }
    return timed_rounds(tasks, options.rounds, device), {OURS: count(ours), THEIRS: count(theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num_steps", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    times, parameters = measure(options)

    device_name = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    lines = [
        f"Best of {options.rounds} rounds, ratios: median of the rounds, {device_name}, torch {torch.__version__}, "
        f"{platform.machine()}. "
        f"{GRID} x {GRID} tokens of {NUM_CODES} codes, {options.num_steps} steps with guidance, batches of "
        f"{options.batch_size}, width {options.hidden_size}, {options.num_layers} layers, random weights.",
        "",
        "| library | parameters, millions | images a second | ratio | training, tokens a second | ratio |",
        "|---|---|---|---|---|---|",
    ]
    records = []
    for name in (OURS, THEIRS):
        images = 1e3 * options.batch_size / min(times[name, "generate"])
        tokens = 1e3 * options.batch_size * GRID**2 / min(times[name, "train"])
        ratios = [speedup(times[name, what], times[THEIRS, what]) for what in ("generate", "train")]
        lines.append(
            f"| {name} | {parameters[name] / 1e6:.1f} | {images:.2f} | {ratios[0]:.2f}x | {tokens:.0f} "
            f"| {ratios[1]:.2f}x |"
        )
        records.append(
            {
                "library": name,
                "parameters": parameters[name],
                "images_per_s": images,
                "images_ratio": ratios[0],
                "train_tokens_per_s": tokens,
                "train_tokens_ratio": ratios[1],
            }
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "generator_speed.md").write_text("\n".join(lines) + "\n")
    settings = {name: value for name, value in vars(options).items() if name != "device"}
    (RESULTS / "generator_speed.json").write_text(
        json.dumps({"device": device_name, **settings, "rows": records}, indent=1)
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
