"""Quality of a tokenizer, exact over any number of processes: reconstruction errors and codebook use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

SSIM_WINDOW = 11  # pixels; for smaller images SSIM says little


def perplexity(counts: torch.Tensor) -> float:
    """How many codes are in use, effectively: the exponential of the entropy of the code frequencies.

    Args:
        counts: How often each code was used, shape (num_codes,).

    Returns:
        Between 1 (one code does it all) and ``num_codes`` (all equally often); 0 where nothing was counted.
    """
    counts = counts.double()
    if not counts.sum() > 0:
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


class ExactSum:
    """A sum that is the same to the bit in whatever order, batches and processes its terms are added up.

    Each term is cut in two, on a coarse and on a fine grid. Float64 adds up numbers on a grid without rounding: here
    as long as the sum stays below 2^41 and there are fewer than two million terms. What a term has beyond the fine
    grid is dropped, at most 1.4e-14.

    Args:
        shape: Of a term.
    """

    COARSE, FINE = 2.0**12, 2.0**45

    def __init__(self, *shape: int) -> None:
        self._parts = torch.zeros(2, *shape, dtype=torch.float64)

    def add(self, terms: torch.Tensor) -> None:
        """Adds terms (number, *shape), in float64 on the CPU."""
        coarse = (terms * self.COARSE).round() / self.COARSE
        self._parts[0] += coarse.sum(0)
        self._parts[1] += ((terms - coarse) * self.FINE).round().sum(0) / self.FINE

    def compute(self, accelerator: Accelerator | None = None) -> torch.Tensor:
        """The sum over all processes, (*shape); a collective."""
        return sum_over_processes(self._parts, accelerator).sum(0)


def bits_per_image(
    tokens_per_image: int, num_codes: int, perplexity: float, num_codebooks: int = 1
) -> dict[str, float]:
    """What the tokens of an image take, in bits.

    Args:
        tokens_per_image: Over all groups.
        num_codes: Codes in total, over all codebooks.
        perplexity: Of all tokens together, as `TokenizerMetrics.compute` gives it.
        num_codebooks: Separate codebooks that share `num_codes` out evenly, each with as many tokens as the others.

    Returns:
        ``bits_per_image``, with a fixed length for each token; and ``entropy_bits_per_image``, what an ideal entropy
        code would take on average that knows how often each code was used, and nothing of its neighbours.
    """
    # Which codebook a token belongs to is known from its place: that share of the joint entropy need not be told.
    entropy = max(0.0, math.log2(max(perplexity, 1.0)) - math.log2(num_codebooks))
    return {
        "bits_per_image": tokens_per_image * math.log2(num_codes / num_codebooks),
        "entropy_bits_per_image": tokens_per_image * entropy,
    }


class TokenizerMetrics:
    """Accumulates the reconstruction errors and the code counts of a data set, batch by batch.

    All sums are exact, so N processes that share the images out give the numbers of one.

    Args:
        num_codes: Size of the codebook (over all groups).

    Example:
        >>> metrics = TokenizerMetrics(num_codes=1024)
        >>> for pixel_values in batches:
        ...     output = model(pixel_values)
        ...     metrics.update(
        ...         pixel_values, output.decoded_pixel_values, output.image_tokens, output.quantization_error
        ...     )
        >>> metrics.compute()["psnr"]
    """

    def __init__(self, num_codes: int):
        if num_codes < 1:
            raise ValueError(f"num_codes must be positive, got {num_codes}")
        self.num_codes = num_codes
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
            pixel_values: Images (batch, channels, height, width) in [-1, 1].
            decoded_pixel_values: Reconstructions of the same shape; clamped to [-1, 1], as for a picture.
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
        image = (pixel_values.to(dtype) + 1) / 2
        decoded = (decoded_pixel_values.to(dtype).clamp(-1, 1) + 1) / 2
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


def sum_over_processes(tensor: torch.Tensor, accelerator: Accelerator | None = None) -> torch.Tensor:
    """The sum of all processes' tensors, on the CPU and the same to the bit on each of them; a collective.

    Args:
        tensor: Of the same shape everywhere.
        accelerator: Tells the device of the collective; without it the backend of ``torch.distributed`` does.
    """
    # Gathered and then summed in the order of ranks, the same on each: a ring's order differs from chunk to chunk.
    return torch.stack(gather_over_processes(tensor, accelerator)).sum(0)


def gather_over_processes(tensor: torch.Tensor, accelerator: Accelerator | None = None) -> list[torch.Tensor]:
    """The tensors of all processes in the order of their ranks, on the CPU; a collective. Arguments as above."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [tensor.detach().clone().cpu()]
    if accelerator is not None:
        device = accelerator.device
    else:
        device = torch.device("cuda" if "nccl" in torch.distributed.get_backend() else "cpu")
    parts = [torch.empty_like(tensor, device=device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.to(device))
    return [part.cpu() for part in parts]


def _ssim(decoded: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """SSIM of each image, (batch,) in float64 on the CPU, for images in [0, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    # kernel_size is ignored for a Gaussian window: sigma 1.5 makes it 11 pixels.
    values = structural_similarity_index_measure(decoded, image, sigma=1.5, reduction="none", data_range=1.0)
    assert isinstance(values, torch.Tensor)
    return values.flatten().double().cpu()
