"""Losses of tokenizer training: reconstruction, and the optional perceptual and adversarial terms of VQGAN."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

ReconstructionKind = Literal["l1", "l2"]
AdversarialKind = Literal["hinge", "nonsaturating"]


def reconstruction_loss(
    decoded_pixel_values: torch.Tensor, pixel_values: torch.Tensor, kind: ReconstructionKind = "l2"
) -> torch.Tensor:
    """Mean error of the pixels, on the scale of images in [0, 1].

    Args:
        decoded_pixel_values: Reconstructions in [-1, 1], any shape.
        pixel_values: Images in [-1, 1], of the same shape.
        kind: "l1" for the absolute, "l2" for the squared error.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: Different shapes (which would broadcast), or an unknown kind.
    """
    if decoded_pixel_values.shape != pixel_values.shape:
        raise ValueError(f"shapes differ: {tuple(decoded_pixel_values.shape)} and {tuple(pixel_values.shape)}")
    if kind not in ("l1", "l2"):
        raise ValueError(f"unknown reconstruction loss {kind!r}: expected 'l1' or 'l2'")
    dtype = torch.promote_types(decoded_pixel_values.dtype, torch.float32)
    difference = (decoded_pixel_values.to(dtype) - pixel_values.to(dtype)) / 2
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al. 2018): distance of two images in the features of a frozen classifier.

    Needs ``pip install "hf_vq[perceptual]"``; the first use downloads the classifier's weights.

    Args:
        net: Backbone of LPIPS, "vgg" (the usual one for training), "alex" or "squeeze".
        network: Takes the place of LPIPS: a module that maps two image batches (batch, 3, height, width) in [-1, 1] to
            one distance for each image.

    Raises:
        ImportError: `lpips` is not installed and no ``network`` is given.
    """

    def __init__(self, net: str = "vgg", *, network: nn.Module | None = None):
        super().__init__()
        if network is None:
            try:
                import lpips
            except ImportError as error:
                raise ImportError(
                    'the perceptual loss needs the packages lpips and torchvision: pip install "hf_vq[perceptual]"'
                ) from error
            network = lpips.LPIPS(net=net, verbose=False)
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in eval mode: the judge does not change with the training it judges."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, decoded_pixel_values: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Mean distance.

        Args:
            decoded_pixel_values: Reconstructions (batch, 1 or 3, height, width) in [-1, 1]; grey is repeated.
            pixel_values: Images of the same shape.

        Returns:
            A scalar; its gradient reaches ``decoded_pixel_values``.
        """
        if decoded_pixel_values.shape != pixel_values.shape:
            raise ValueError(f"shapes differ: {tuple(decoded_pixel_values.shape)} and {tuple(pixel_values.shape)}")
        if pixel_values.shape[1] == 1:
            decoded_pixel_values = decoded_pixel_values.expand(-1, 3, -1, -1)
            pixel_values = pixel_values.expand(-1, 3, -1, -1)
        return self.network(decoded_pixel_values, pixel_values).mean()


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): says of each patch how real it looks.

    GroupNorm instead of the usual BatchNorm: an image's scores do not depend on the rest of the batch, so several
    processes and gradient accumulation give the gradients of one large batch.

    Args:
        num_channels: Channels of the images.
        base_channels: Channels after the first layer; they double with each further one, up to eight times as many.
        num_layers: Layers of stride 2. With 3, a score sees 70 pixels; use 2 for images of 32 pixels (34 pixels).
    """

    def __init__(self, num_channels: int = 3, base_channels: int = 64, num_layers: int = 3):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if base_channels % 8:
            raise ValueError(f"base_channels must be a multiple of 8, got {base_channels}")
        self.num_layers = num_layers
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
        """Scores.

        Args:
            pixel_values: Images (batch, channels, height, width) in [-1, 1].

        Returns:
            Logits (batch, 1, rows, columns), one for each patch; larger is more real.

        Raises:
            ValueError: The images are too small for the number of layers.
        """
        smallest = 3 * 2**self.num_layers  # the two last convolutions take one row each
        if min(pixel_values.shape[-2:]) < smallest:
            size = "x".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(
                f"a discriminator of {self.num_layers} layers needs images of at least {smallest} pixels, got {size}: "
                "use fewer layers"
            )
        return self.layers(pixel_values)


def hinge_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Discriminator loss that asks for scores above 1 for real and below -1 for reconstructed images, as a scalar."""
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def nonsaturating_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Discriminator loss of the original GAN, binary cross-entropy, as a scalar."""
    return (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2


def generator_loss(fake_logits: torch.Tensor, kind: AdversarialKind = "hinge") -> torch.Tensor:
    """What the tokenizer pays for reconstructions that look reconstructed.

    Args:
        fake_logits: Scores of the reconstructions, not detached.
        kind: The counterpart of `hinge_d_loss` or of `nonsaturating_d_loss`.

    Returns:
        A scalar.
    """
    if kind == "hinge":
        return -fake_logits.mean()
    if kind == "nonsaturating":
        return F.softplus(-fake_logits).mean()
    raise ValueError(f"unknown adversarial loss {kind!r}: expected 'hinge' or 'nonsaturating'")


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """Weight that makes the adversarial gradient as strong as the reconstruction's (Esser et al. 2021).

    Args:
        reconstruction_loss: Scalar with a graph that reaches ``last_layer``; the graph is kept.
        adversarial_loss: Likewise.
        last_layer: Weight of the decoder's last layer, where the two gradients are compared.

    Returns:
        Detached scalar, ``|grad reconstruction| / (|grad adversarial| + 1e-4)`` within [0, 1e4]. In data-parallel
        training each process has its own.
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial_grad,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    ratio = reconstruction_grad.float().norm() / (adversarial_grad.float().norm() + 1e-4)
    return ratio.clamp(0.0, 1e4).detach()
