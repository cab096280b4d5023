"""Quality of a tokenizer, exact over any number of processes: reconstruction errors and codebook use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hf_vq.metrics.base import ExactSum, perplexity
from hf_vq.modeling.pixel_range_vq import SIGNED, UNIT, convert_pixels
from hf_vq.utils.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

SSIM_WINDOW = 11  # pixels; for smaller images SSIM says little


class TokenizerMetrics:
    """Accumulates the reconstruction errors and the code counts of a data set, batch by batch.

    All sums are exact, so N processes that share the images out give the numbers of one.

    Args:
        num_codes: Size of the codebook (over all groups).
        pixel_range: Of the images, as the configuration says. Errors are measured on [0, 1].

    Example:
        >>> metrics = TokenizerMetrics(num_codes=1024, pixel_range=model.config.pixel_range)
        >>> for pixel_values in batches:
        ...     output = model(pixel_values)
        ...     metrics.update(
        ...         pixel_values, output.decoded_pixel_values, output.image_tokens, output.quantization_error
        ...     )
        >>> metrics.compute()["psnr"]
    """

    def __init__(self, num_codes: int, pixel_range: Sequence[float] = SIGNED):
        if num_codes < 1:
            raise ValueError(f"num_codes must be positive, got {num_codes}")
        self.num_codes, self.pixel_range = num_codes, pixel_range
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._counts = torch.zeros(self.num_codes, dtype=torch.int64)
        # One sum and one weight each: MSE, PSNR, SSIM, quantization error. The weights count images or vectors.
        self._sums = [ExactSum() for _ in range(4)]
        self._weights = torch.zeros(4, dtype=torch.int64)

    @torch.no_grad()
    def update(
        self,
        pixel_values: torch.Tensor,
        decoded_pixel_values: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        quantization_error: torch.Tensor | None = None,
    ) -> None:
        """Adds a batch; an empty one adds nothing.

        Args:
            pixel_values: Images (batch, channels, height, width) in `pixel_range`.
            decoded_pixel_values: Reconstructions of the same shape; clamped to that range, as for a picture.
            image_tokens: Codes of the batch, integers in [0, num_codes), any shape.
            quantization_error: A scalar, the batch's mean, which counts once for each image; or one value for each
                vector.

        Raises:
            ValueError: Shapes differ, or a token is out of range.
        """
        if pixel_values.shape != decoded_pixel_values.shape or pixel_values.ndim != 4:
            raise ValueError(
                "expected two batches (batch, channels, height, width) of one shape, got "
                f"{tuple(pixel_values.shape)} and {tuple(decoded_pixel_values.shape)}"
            )
        batch = pixel_values.shape[0]
        if batch == 0:
            return
        if image_tokens is not None:
            self._count(image_tokens)
        # float64 where the device has it, so that the size of a batch leaves no trace in the sums.
        dtype = torch.float32 if pixel_values.device.type == "mps" else torch.float64
        image = convert_pixels(pixel_values.to(dtype), self.pixel_range, UNIT)
        decoded = convert_pixels(decoded_pixel_values.to(dtype).clamp(*self.pixel_range), self.pixel_range, UNIT)
        mse = (image - decoded).square().flatten(1).mean(1).double().cpu()
        self._add(0, mse)
        # An error below 1e-10 counts as one: a perfect image gets 100 dB, not infinity, and the mean stays finite.
        self._add(1, -10 * mse.clamp(min=1e-10).log10())
        if min(image.shape[-2:]) >= SSIM_WINDOW:
            self._add(2, _ssim(decoded, image))
        if quantization_error is not None:
            error = quantization_error.detach().double().cpu()
            self._add(3, error.expand(batch) if error.ndim == 0 else error.flatten())

    def _add(self, index: int, values: torch.Tensor) -> None:
        self._sums[index].add(values)
        self._weights[index] += values.numel()

    def _count(self, image_tokens: torch.Tensor) -> None:
        tokens = image_tokens.flatten()
        if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < self.num_codes):
            raise ValueError(
                f"image tokens must be in [0, {self.num_codes}), got [{int(tokens.min())}, {int(tokens.max())}]"
            )
        self._counts += torch.bincount(tokens, minlength=self.num_codes).cpu()

    def code_counts(self, accelerator: Accelerator | None = None) -> torch.Tensor:
        """How often each code was used, over all processes; a collective, like `compute`.

        Returns:
            Int64 tensor (num_codes,) on the CPU.
        """
        return sum_over_processes(self._counts, accelerator)

    def compute(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The metrics over all processes. Every process must call it, and gets the same numbers.

        Args:
            accelerator: Tells the device of the collectives; without it the backend of ``torch.distributed`` does.

        Returns:
            ``num_images``; ``mse`` and ``ssim``, means over images in [0, 1] (SSIM as in torchmetrics, with a Gaussian
            window of 11 pixels; left out for smaller images); ``psnr`` in dB, the mean of each image's own, at most
            100; ``quantization_error``; and of the codes ``usage`` (share used at all), ``active_codes`` (their
            number) and ``perplexity``. What was not given to `update` is left out.

        Raises:
            ValueError: No process has seen an image.
        """
        sums = [total.compute(accelerator) for total in self._sums]
        weights = sum_over_processes(self._weights, accelerator)
        counts = self.code_counts(accelerator)
        if not weights[0]:
            raise ValueError("no images to measure: update was never called with any")
        metrics: dict[str, float] = {"num_images": int(weights[0])}
        for index, name in enumerate(("mse", "psnr", "ssim", "quantization_error")):
            if weights[index]:
                metrics[name] = float(sums[index] / weights[index])
        if counts.any():
            active = int((counts > 0).sum())
            metrics |= {"usage": active / self.num_codes, "active_codes": active, "perplexity": perplexity(counts)}
        return metrics


def _ssim(decoded: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """SSIM of each image, (batch,) in float64 on the CPU, for images in [0, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    # kernel_size is ignored for a Gaussian window: sigma 1.5 makes it 11 pixels.
    values = structural_similarity_index_measure(decoded, image, sigma=1.5, reduction="none", data_range=1.0)
    assert isinstance(values, torch.Tensor)
    return values.flatten().double().cpu()
