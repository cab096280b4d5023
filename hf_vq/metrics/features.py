"""Features of images, for distances between sets of images: one kind that needs nothing, and Inception's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.utils.hashes import weights_sha256

INCEPTION = "inception"
SHRUNK_PIXELS = "8x8_pixels"
FEATURES = (SHRUNK_PIXELS, INCEPTION)


class Features(NamedTuple):
    """What an extractor makes of a batch.

    Attributes:
        values: (batch, num_features), floating-point.
        logits: (batch, num_classes), of the classes that the extractor tells apart; None for one that knows none.
    """

    values: torch.Tensor
    logits: torch.Tensor | None


class FeatureExtractor(nn.Module):
    """Base of all extractors: a network, frozen and in eval mode, from 8-bit images to `Features`.

    Attributes:
        name: Goes into the names of the metrics, since numbers of different features cannot be compared.
        preprocessing: What is done to the images first, in words, for the protocol.
        num_features: Width of the features.
        num_classes: Width of the logits; 0 without logits.
    """

    name: str
    preprocessing: str
    num_features: int
    num_classes: int = 0

    def forward(self, images: torch.Tensor) -> Features:
        """Features of images.

        Args:
            images: (batch, channels, height, width), uint8.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """For a protocol: name, preprocessing, width, and the hash of the weights (None if there are none)."""
        return {
            "name": self.name,
            "preprocessing": self.preprocessing,
            "num_features": self.num_features,
            "weights_sha256": weights_sha256(self) if self.state_dict() else None,
        }


class ShrunkPixels(FeatureExtractor):
    """The image itself, shrunk to 8 x 8 pixels in [0, 1], as float64.

    It needs no weights and no download, and gives the same numbers on every machine. It sees colours and rough shapes
    and no details, so distances of it say little about how images look: they are for tests, and for following a run.

    Args:
        num_channels: Of the images.
    """

    name = SHRUNK_PIXELS
    preprocessing = "mean over each cell of an 8 x 8 grid, levels in [0, 1]"
    side = 8

    def __init__(self, num_channels: int = 3) -> None:
        super().__init__()
        self.num_features = num_channels * self.side**2

    def forward(self, images: torch.Tensor) -> Features:
        """Features (batch, channels x 8 x 8) of uint8 images; no logits."""
        # On the CPU, as not every device has float64.
        return Features(F.adaptive_avg_pool2d(images.cpu().double() / 255, self.side).flatten(1), None)


class Inception(FeatureExtractor):
    """Inception V3 as FID, KID and the Inception Score are defined with it: torch-fidelity's port of its weights.

    Features are the 2048 of its last pooling, logits the 1008 without bias. Grey images get three equal channels.

    Args:
        weights: File of the weights, which torch-fidelity unpickles: take none from people you do not trust. By
            default it downloads them and keeps them.

    Raises:
        ModuleNotFoundError: torch-fidelity, or what it needs, is not installed.
        FileNotFoundError: There is no such file of weights.
        OSError: They cannot be downloaded.
    """

    name = INCEPTION
    preprocessing = "299 x 299, bilinear as in TensorFlow 1 (not antialiased), levels (x - 128) / 128"
    num_features = 2048
    num_classes = 1008

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise ModuleNotFoundError(
                f"Inception's features need the package {package!r}. Install the extra that has it, "
                f"pip install 'hf_vq[inception]', or take features that need nothing: {SHRUNK_PIXELS!r} (no FID then)",
                name=package,
            ) from error
        if weights is not None and not Path(weights).expanduser().is_file():
            raise FileNotFoundError(f"there is no file of Inception's weights '{weights}'")
        path = None if weights is None else str(Path(weights).expanduser())
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
            )
        except OSError as error:
            raise OSError(
                f"Inception's weights could not be loaded ({error}). Where they cannot be downloaded, name their file"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> Features:
        """Features (batch, 2048) and logits (batch, 1008) of uint8 images."""
        device = next(self.network.parameters()).device
        images = images.to(device)
        return Features(*self.network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images))


def make_extractor(name: str, num_channels: int = 3, weights: str | Path | None = None) -> FeatureExtractor:
    """An extractor by its name.

    Args:
        name: One of `FEATURES`.
        num_channels: Of the images.
        weights: File of Inception's weights.

    Raises:
        ValueError: Unknown name, or weights for an extractor without any.
        ModuleNotFoundError: The extractor needs a package that is not installed.
    """
    if name not in FEATURES:
        raise ValueError(f"unknown features {name!r}: available are {', '.join(FEATURES)}")
    if name == INCEPTION:
        return Inception(weights)
    if weights is not None:
        raise ValueError(f"the features {name!r} have no weights: leave '{weights}' out, or take {INCEPTION!r}")
    return ShrunkPixels(num_channels)
