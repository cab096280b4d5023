"""LPIPS (arXiv 1801.03924): how different two images look to a network. Needs `hf_vq[lpips]`."""

from __future__ import annotations

from typing import Any

import torch

from hf_vq.metrics.reconstruction import ImageMetric
from hf_vq.utils.extras import require
from hf_vq.utils.hashes import weights_sha256

LPIPS = "lpips"
TITLE, FORMAT = "LPIPS (AlexNet)", "{:.4f}"
SMALLEST = 32  # pixels; smaller images do not reach the last layer


class Lpips:
    """LPIPS with AlexNet, version 0.1, as torchmetrics has it, for each image of its own.

    torchvision downloads AlexNet's weights and keeps them; the linear layers come with torchmetrics.

    Args:
        device: Where it is computed.

    Raises:
        ModuleNotFoundError: If torchvision is not installed.
        OSError: If AlexNet's weights cannot be downloaded.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        require(LPIPS, "torchvision", "torchmetrics")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            self.network: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex").net.to(device)
        except OSError as error:
            raise OSError(
                f"AlexNet's weights, which LPIPS needs, could not be loaded ({error}). torchvision keeps them in "
                f"'{torch.hub.get_dir()}/checkpoints': put the file there if it cannot be downloaded."
            ) from error
        self.device = device

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor | None:
        """LPIPS of each image, float64 (batch,) on the CPU; None for images of less than 32 pixels.

        Args:
            image: Images (batch, 1 or 3, height, width) in [0, 1]. Gray ones get three equal channels.
            decoded: Reconstructions of the same shape.
        """
        if min(image.shape[-2:]) < SMALLEST:
            return None
        shape = (-1, 3, -1, -1)
        first, second = (pixels.to(self.device).float().expand(shape) for pixels in (image, decoded))
        return self.network(first, second, normalize=True).flatten().double().cpu()

    def metric(self) -> ImageMetric:
        """What `TokenizerMetrics` takes."""
        return ImageMetric(TITLE, FORMAT, False, self)

    def describe(self) -> dict[str, str]:
        """For a protocol."""
        return {"network": "AlexNet, version 0.1", "weights_sha256": weights_sha256(self.network)}
