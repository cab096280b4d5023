"""Losses of tokenizer training: reconstruction, and the optional perceptual and adversarial terms of VQGAN."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from hf_vq.modeling.pixel_range_vq import SIGNED, convert_pixels

VGG_WEIGHTS = "timm/vgg16.tv_in1k"
VGG_REVISION = "3394518cba29aee1ea82a49d971be90d2dd1dab7"
ReconstructionKind = Literal["l1", "l2"]
AdversarialKind = Literal["hinge", "nonsaturating"]


def reconstruction_loss(
    decoded_pixel_values: torch.Tensor,
    pixel_values: torch.Tensor,
    kind: ReconstructionKind = "l2",
    pixel_range: Sequence[float] = SIGNED,
) -> torch.Tensor:
    """Computes the mean error of the pixels, on the scale of images in [0, 1].

    Args:
        decoded_pixel_values: Reconstructions, any shape.
        pixel_values: Images of the same shape.
        kind: "l1" for the absolute error, "l2" for the squared error.
        pixel_range: Range of both, as in the configuration. The error is divided by its width.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: If the shapes differ (they would broadcast), or if the kind is unknown.
    """
    if decoded_pixel_values.shape != pixel_values.shape:
        raise ValueError(
            "`decoded_pixel_values` and `pixel_values` must have the same shape, but their shapes differ: "
            f"{tuple(decoded_pixel_values.shape)} and {tuple(pixel_values.shape)}."
        )
    if kind not in ("l1", "l2"):
        raise ValueError(f"The reconstruction loss must be 'l1' or 'l2', got {kind!r}.")
    dtype = torch.promote_types(decoded_pixel_values.dtype, torch.float32)
    low, high = pixel_range
    difference = (decoded_pixel_values.to(dtype) - pixel_values.to(dtype)) / (high - low)
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


class VGGDistance(nn.Module):
    """Distance of two images in the features of VGG16, the "baseline" of LPIPS (Zhang et al. 2018, eq. 1 with w = 1).

    It takes the features after the last rectifier of each of the five stages, and scales those of each position to
    unit length. The distance is their squared difference, averaged over positions and stages. It is in [0, 2].

    Args:
        weights: Folder or Hub repository with the classifier as `model.safetensors`. The default is the weights that
            torchvision trained on ImageNet. They are downloaded once (575 MB).
        revision: Commit, branch or tag of the repository.

    Raises:
        OSError: If the weights cannot be found or downloaded.
        ValueError: If they are not those of a VGG16.
    """

    # The convolutions of each stage, by their names in the file, `features.N`. A pooling by 2 lies between stages.
    STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

    def __init__(self, weights: str | Path = VGG_WEIGHTS, revision: str | None = None):
        super().__init__()
        if str(weights) == VGG_WEIGHTS and revision is None:
            revision = VGG_REVISION
        path = Path(weights) / "model.safetensors"
        if not path.is_file():
            try:
                path = Path(hf_hub_download(str(weights), "model.safetensors", revision=revision))
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                command = f"hf download {weights} model.safetensors" + (f" --revision {revision}" if revision else "")
                raise OSError(
                    f"The perceptual loss could not get model.safetensors of {weights}. Download it where the Hub "
                    f"can be reached ({command}), or train without this loss (perceptual_weight 0). The Hub client "
                    f"said: {error}"
                ) from error
        self.convolutions = nn.ModuleDict()
        with safe_open(path, "pt") as file:
            channels = 3
            for width, stage in zip((64, 128, 256, 512, 512), self.STAGES, strict=True):
                for index in stage:
                    layer = nn.Conv2d(channels, width, 3, padding=1)
                    try:
                        state = {name: file.get_tensor(f"features.{index}.{name}") for name in ("weight", "bias")}
                        layer.load_state_dict(state)
                    except (SafetensorError, RuntimeError) as error:
                        raise ValueError(
                            f"{path} does not hold a VGG16: features.{index}: {error}. Pass the folder or repository "
                            f"of a VGG16, such as {VGG_WEIGHTS}."
                        ) from error
                    self.convolutions[str(index)] = layer
                    channels = width
        # ImageNet's mean and standard deviation, for pixels in [-1, 1].
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", 2 * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Computes the distance of each pair of images.

        Args:
            first: Images (batch, 3, height, width) in [-1, 1], at least 16 x 16 pixels.
            second: Images of the same shape.

        Returns:
            Distances (batch,).
        """
        features = (torch.cat([first, second]) - self.mean) / self.std
        total = first.new_zeros(len(first))
        for number, stage in enumerate(self.STAGES):
            features = F.max_pool2d(features, 2) if number else features
            for index in stage:
                features = F.relu(self.convolutions[str(index)](features))
            a, b = F.normalize(features, dim=1, eps=1e-10).chunk(2)
            total = total + (a - b).square().sum(1).mean((1, 2))
        return total / len(self.STAGES)


class PerceptualLoss(nn.Module):
    """Mean distance of two batches of images, as a frozen network sees it.

    Args:
        network: A module that maps two image batches (batch, 3, height, width) in [-1, 1] to one distance for each
            image. The default is `VGGDistance()`. The package lpips has others.
        pixel_range: Range of the images that `forward` takes, as in the configuration.
    """

    def __init__(self, network: nn.Module | None = None, pixel_range: Sequence[float] = SIGNED):
        super().__init__()
        self.pixel_range = pixel_range
        self.network = (network or VGGDistance()).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Keeps the network in eval mode, so that the judge does not change with the training that it judges."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, decoded_pixel_values: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Computes the mean distance.

        Args:
            decoded_pixel_values: Reconstructions (batch, 1 or 3, height, width) in `pixel_range`. The one channel of
                gray images is repeated.
            pixel_values: Images of the same shape.

        Returns:
            A scalar. Its gradient reaches `decoded_pixel_values`.

        Raises:
            ValueError: If the shapes differ.
        """
        if decoded_pixel_values.shape != pixel_values.shape:
            raise ValueError(
                "`decoded_pixel_values` and `pixel_values` must have the same shape, but their shapes differ: "
                f"{tuple(decoded_pixel_values.shape)} and {tuple(pixel_values.shape)}."
            )
        if pixel_values.shape[1] == 1:
            decoded_pixel_values = decoded_pixel_values.expand(-1, 3, -1, -1)
            pixel_values = pixel_values.expand(-1, 3, -1, -1)
        decoded_pixel_values, pixel_values = (
            convert_pixels(pixels, self.pixel_range, SIGNED) for pixels in (decoded_pixel_values, pixel_values)
        )
        return self.network(decoded_pixel_values, pixel_values).mean()


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017). It scores each patch of an image by how real it looks.

    It uses GroupNorm instead of the usual BatchNorm. So the scores of an image do not depend on the rest of the batch,
    and several processes or gradient accumulation give the gradients of one large batch.

    Args:
        num_channels: Channels of the images.
        base_channels: Channels after the first layer. They double with each further layer, up to eight times as many.
        num_layers: Layers of stride 2. With 3, a score sees 70 pixels. For images of 32 pixels use 2 (34 pixels).
        pixel_range: Range of the images, as in the configuration. The layers see [-1, 1].

    Raises:
        ValueError: If `num_layers` is below 1, or if `base_channels` is no multiple of 8.
    """

    def __init__(
        self,
        num_channels: int = 3,
        base_channels: int = 64,
        num_layers: int = 3,
        pixel_range: Sequence[float] = SIGNED,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1, got {num_layers}.")
        if base_channels % 8:
            raise ValueError(f"`base_channels` must be a multiple of 8, got {base_channels}.")
        self.num_layers, self.pixel_range = num_layers, pixel_range
        layers: list[nn.Module] = [nn.Conv2d(num_channels, base_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = base_channels
        for level in range(1, num_layers + 1):
            before, channels = channels, base_channels * min(2**level, 8)
            stride = 2 if level < num_layers else 1
            layers += [
                nn.Conv2d(before, channels, 4, stride, 1, bias=False),
                nn.GroupNorm(channels // 8, channels),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scores the patches of images.

        Args:
            pixel_values: Images (batch, channels, height, width) in `pixel_range`.

        Returns:
            Logits (batch, 1, rows, columns), one for each patch. A larger one is more real.

        Raises:
            ValueError: If the images are too small for the number of layers.
        """
        smallest = 3 * 2**self.num_layers  # the last two convolutions take one row each
        if min(pixel_values.shape[-2:]) < smallest:
            size = "x".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(
                f"A discriminator of {self.num_layers} layers needs images of at least {smallest} pixels, got {size}. "
                "Use fewer layers."
            )
        return self.layers(convert_pixels(pixel_values, self.pixel_range, SIGNED))


def hinge_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Discriminator loss that asks for scores above 1 for real images and below -1 for reconstructions. A scalar."""
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def nonsaturating_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Discriminator loss of the original GAN: binary cross-entropy. A scalar."""
    return (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2


def generator_loss(fake_logits: torch.Tensor, kind: AdversarialKind = "hinge") -> torch.Tensor:
    """Computes what the tokenizer pays for reconstructions that the discriminator recognizes.

    Args:
        fake_logits: Scores of the reconstructions, not detached.
        kind: "hinge" is the counterpart of `hinge_d_loss`, "nonsaturating" that of `nonsaturating_d_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind == "hinge":
        return -fake_logits.mean()
    if kind == "nonsaturating":
        return F.softplus(-fake_logits).mean()
    raise ValueError(f"The adversarial loss must be 'hinge' or 'nonsaturating', got {kind!r}.")


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """Computes the weight that makes the adversarial gradient as strong as the reconstruction's (Esser et al. 2021).

    Args:
        reconstruction_loss: Scalar with a graph that reaches `last_layer`. The graph is kept.
        adversarial_loss: Scalar with such a graph, too.
        last_layer: Weight of the decoder's last layer, where the two gradients are compared.

    Returns:
        Detached scalar, `|grad reconstruction| / (|grad adversarial| + 1e-4)`, limited to [0, 1e4]. In data-parallel
        training each process has its own.
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial_grad,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    ratio = reconstruction_grad.float().norm() / (adversarial_grad.float().norm() + 1e-4)
    return ratio.clamp(0.0, 1e4).detach()
