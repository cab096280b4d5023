"""Quality of a classifier and use of its codes. The numbers are exact over any number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from hf_vq.metrics.base import perplexity
from hf_vq.utils.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator


class ClassificationMetrics:
    """Accumulates right answers, cross entropy and code counts. Every image counts the same, in any batch.

    Args:
        num_codes: Size of the codebook, over all groups.
    """

    def __init__(self, num_codes: int) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64)  # right answers, cross entropy, quantization error, images
        self._counts = torch.zeros(num_codes, dtype=torch.int64)

    @torch.no_grad()
    def update(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        quantization_error: torch.Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            logits: (batch, classes).
            labels: int64 (batch,), in [0, classes).
            image_tokens: Codes of the batch, integers in [0, num_codes), any shape.
            quantization_error: The mean of the batch, a scalar.
        """
        right = (logits.argmax(-1) == labels).sum()
        entropy = F.cross_entropy(logits.float(), labels, reduction="none").cpu().double().sum()
        error = 0.0 if quantization_error is None else float(quantization_error) * len(labels)
        self._sums += torch.tensor([float(right), float(entropy), error, len(labels)], dtype=torch.float64)
        if image_tokens is not None:
            self._counts += torch.bincount(image_tokens.flatten(), minlength=len(self._counts)).cpu()

    def compute(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Computes the metrics over all processes. Every process must call it, and gets the same numbers.

        Args:
            accelerator: Sets the device of the collectives. Without it the backend of `torch.distributed` does.

        Returns:
            `num_images`, `accuracy` in [0, 1], and `cross_entropy` in nats per image. If tokens were given, also
            `quantization_error`, `usage` (the share of codes that are used at all), `active_codes` (their number) and
            `perplexity`.

        Raises:
            ValueError: If no process has seen an image.
        """
        sums = sum_over_processes(self._sums, accelerator)
        counts = sum_over_processes(self._counts, accelerator)
        if not sums[3]:
            raise ValueError("There are no images to measure. Call `update` with images before `compute`.")
        right, entropy, error = (sums[:3] / sums[3]).tolist()
        metrics: dict[str, float] = {"num_images": int(sums[3]), "accuracy": right, "cross_entropy": entropy}
        if counts.any():
            active = int((counts > 0).sum())
            metrics |= {"quantization_error": error, "usage": active / len(counts), "active_codes": active}
            metrics["perplexity"] = perplexity(counts)
        return metrics
