"""Quality of a tokenizer: reconstruction errors and codebook use. Exact over any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from hf_vq.metrics.base import ExactSum, perplexity
from hf_vq.modeling.pixel_range_vq import SIGNED, UNIT, convert_pixels
from hf_vq.utils.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

SSIM_WINDOW = 11  # pixels; SSIM says little about smaller images


class ImageMetric(NamedTuple):
    """A number of an image and its reconstruction, averaged over images. Cards and reports show it as it says here.

    Attributes:
        title: Its name.
        format: For `str.format`.
        more_is_better: Whether a larger number is better.
        measure: From images and reconstructions (batch, channels, height, width) in [0, 1], in float64 where the
            device has it, to one number for each image, float64 (batch,) on the CPU; None where it cannot be measured.
    """

    title: str
    format: str
    more_is_better: bool
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]


def squared_error(image: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image."""
    return (image - decoded).square().flatten(1).mean(1).double().cpu()


def signal_to_noise(image: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """PSNR of each image in dB, at most 100, so that a perfect image leaves the mean finite."""
    return -10 * squared_error(image, decoded).clamp(min=1e-10).log10()


def structural_similarity(image: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor | None:
    """SSIM of each image, as in torchmetrics with a Gaussian window of 11 pixels; None for smaller images."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(image.shape[-2:]) < SSIM_WINDOW:
        return None
    # For a Gaussian window kernel_size is ignored. sigma 1.5 makes the window 11 pixels wide.
    values = structural_similarity_index_measure(decoded, image, sigma=1.5, reduction="none", data_range=1.0)
    assert isinstance(values, torch.Tensor)
    return values.flatten().double().cpu()


IMAGE_METRICS: dict[str, ImageMetric] = {
    "mse": ImageMetric("MSE", "{:.6f}", False, squared_error),
    "psnr": ImageMetric("PSNR (dB, mean of the images')", "{:.2f}", True, signal_to_noise),
    "ssim": ImageMetric("SSIM", "{:.4f}", True, structural_similarity),
}
"""Key -> metric. A new one is a function and a row: trainers, evaluation, cards and reports read it here."""

_QUANTIZATION_ERROR = "quantization_error"


class TokenizerMetrics:
    """Accumulates the reconstruction errors and the code counts of a data set, batch by batch.

    All sums are exact, so N processes that share the images get the numbers of one.

    Args:
        num_codes: Size of the codebook, over all groups.
        pixel_range: Range of the images, as in the configuration. Errors are measured on [0, 1].
        image_metrics: What is measured of each image, by its name in the result.

    Raises:
        ValueError: If `num_codes` is below 1.

    Example:
        >>> metrics = TokenizerMetrics(num_codes=1024, pixel_range=model.config.pixel_range)
        >>> for pixel_values in batches:
        ...     output = model(pixel_values)
        ...     metrics.update(
        ...         pixel_values, output.decoded_pixel_values, output.image_tokens, output.quantization_error
        ...     )
        >>> metrics.compute()["psnr"]
    """

    def __init__(
        self,
        num_codes: int,
        pixel_range: Sequence[float] = SIGNED,
        image_metrics: Mapping[str, ImageMetric] = IMAGE_METRICS,
    ):
        if num_codes < 1:
            raise ValueError(f"`num_codes` must be at least 1, got {num_codes}.")
        self.num_codes, self.pixel_range, self.image_metrics = num_codes, pixel_range, image_metrics
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._counts = torch.zeros(self.num_codes, dtype=torch.int64)
        # One sum and one weight for each number. The weights count images or vectors.
        names = (*self.image_metrics, _QUANTIZATION_ERROR)
        self._sums = {name: ExactSum() for name in names}
        self._weights = dict.fromkeys(names, 0)
        self._num_images = 0

    @torch.no_grad()
    def update(
        self,
        pixel_values: torch.Tensor,
        decoded_pixel_values: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        quantization_error: torch.Tensor | None = None,
    ) -> None:
        """Adds a batch. An empty batch adds nothing.

        Args:
            pixel_values: Images (batch, channels, height, width) in `pixel_range`.
            decoded_pixel_values: Reconstructions of the same shape. They are clamped to that range, as for a picture.
            image_tokens: Codes of the batch, integers in [0, num_codes), any shape.
            quantization_error: A scalar or one value for each vector. A scalar is the mean of the batch and counts
                once for each image.

        Raises:
            ValueError: If the shapes differ, or if a token is out of range.
        """
        if pixel_values.shape != decoded_pixel_values.shape or pixel_values.ndim != 4:
            raise ValueError(
                "`update` needs two batches (batch, channels, height, width) of the same shape, got "
                f"{tuple(pixel_values.shape)} and {tuple(decoded_pixel_values.shape)}."
            )
        batch = pixel_values.shape[0]
        if batch == 0:
            return
        if image_tokens is not None:
            self._count(image_tokens)
        # float64 where the device has it, so the size of a batch leaves no trace in the sums.
        dtype = torch.float32 if pixel_values.device.type == "mps" else torch.float64
        image = convert_pixels(pixel_values.to(dtype), self.pixel_range, UNIT)
        decoded = convert_pixels(decoded_pixel_values.to(dtype).clamp(*self.pixel_range), self.pixel_range, UNIT)
        self._num_images += batch
        for name, metric in self.image_metrics.items():
            values = metric.measure(image, decoded)
            if values is not None:
                self._add(name, values)
        if quantization_error is not None:
            error = quantization_error.detach().double().cpu()
            self._add(_QUANTIZATION_ERROR, error.expand(batch) if error.ndim == 0 else error.flatten())

    def _add(self, name: str, values: torch.Tensor) -> None:
        self._sums[name].add(values)
        self._weights[name] += values.numel()

    def _count(self, image_tokens: torch.Tensor) -> None:
        tokens = image_tokens.flatten()
        if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < self.num_codes):
            raise ValueError(
                f"Image tokens must be in [0, {self.num_codes}), got [{int(tokens.min())}, {int(tokens.max())}]. Make "
                "the metrics with the tokenizer's number of codes."
            )
        self._counts += torch.bincount(tokens, minlength=self.num_codes).cpu()

    def code_counts(self, accelerator: Accelerator | None = None) -> torch.Tensor:
        """Counts how often each code was used, over all processes. Every process must call it.

        Returns:
            Int64 tensor (num_codes,) on the CPU.
        """
        return sum_over_processes(self._counts, accelerator)

    def compute(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Computes the metrics over all processes. Every process must call it, and gets the same numbers.

        Args:
            accelerator: Sets the device of the collectives. Without it the backend of `torch.distributed` does.

        Returns:
            A number for each of these names. What `update` was not given is left out.

            - `num_images`
            - those of `IMAGE_METRICS`: `mse`, `psnr`, `ssim` and so on, means over the images
            - `quantization_error`
            - `usage`: share of the codes that are used at all
            - `active_codes`: number of these codes
            - `perplexity`

        Raises:
            ValueError: If no process has seen an image.
        """
        sums = {name: total.compute(accelerator) for name, total in self._sums.items()}
        own = torch.tensor([self._num_images, *self._weights.values()])
        num_images, *weights = sum_over_processes(own, accelerator).tolist()
        counts = self.code_counts(accelerator)
        if not num_images:
            raise ValueError("There are no images to measure. Call `update` with images before `compute`.")
        metrics: dict[str, float] = {"num_images": num_images}
        for name, weight in zip(self._weights, weights, strict=True):
            if weight:
                metrics[name] = float(sums[name] / weight)
        if counts.any():
            active = int((counts > 0).sum())
            metrics |= {"usage": active / self.num_codes, "active_codes": active, "perplexity": perplexity(counts)}
        return metrics
