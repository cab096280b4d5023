"""What each of some processes runs for `test_generation.py`: its share of two sets of features."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch


def main(store: str, rank: int, world_size: int, package: str) -> None:
    """Measures and writes `STORE-RANK-of-SIZE.json`."""
    # Only these modules, because the whole package takes seconds longer to import.
    sys.modules["hf_vq"] = types.ModuleType("hf_vq")
    sys.modules["hf_vq"].__path__ = [package]
    from hf_vq.metrics.generation import FeatureSample, GeneratorMetrics

    def features(values: torch.Tensor, logits: torch.Tensor | None) -> Any:
        return types.SimpleNamespace(values=values, logits=logits)

    if world_size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    generator = torch.Generator().manual_seed(0)
    reference, generated = (torch.randn(count, 6, generator=generator) for count in (40, 50))
    logits = torch.randn(50, 5, generator=generator)
    metrics, sample = GeneratorMetrics(6, 5, sample_size=32), FeatureSample(16, 6)
    if rank == world_size - 1:  # all of them on the last
        metrics.update(features(reference, None), torch.arange(40), generated=False)
    for own in torch.arange(50).split(4)[rank::world_size]:
        metrics.update(features(generated[own], logits[own]), own, generated=True)
        sample.update(generated[own], own)
    result = {"metrics": metrics.compute(), "sample": sample.compute().tolist()}
    Path(f"{store}-{rank}-of-{world_size}.json").write_text(json.dumps(result))
    if world_size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
