"""LPIPS as the evaluator measures it. The tests need no torchvision: its AlexNet is built in its place, untrained."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate
from hf_vq.metrics.lpips import Lpips
from hf_vq.metrics.reconstruction import IMAGE_METRICS, TokenizerMetrics

from ...tiny_tokens import picture, save, tiny


def alexnet(weights: Any) -> Any:
    """The convolutions of torchvision's AlexNet."""
    torch.manual_seed(0)
    convolutions = [
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    ]
    layers: list[nn.Module] = []
    for number, (inputs, outputs, kernel, stride, padding) in enumerate(convolutions):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
    return types.SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in torchvision's place, which the two files of torchmetrics have found."""
    models = types.SimpleNamespace(
        alexnet=alexnet, AlexNet_Weights=types.SimpleNamespace(DEFAULT=None, IMAGENET1K_V1=None)
    )
    module = types.ModuleType("torchvision")
    module.models = models  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace(name="torchvision")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    for name in ("torchmetrics.image.lpip", "torchmetrics.functional.image.lpips"):
        monkeypatch.setattr(f"{name}._TORCHVISION_AVAILABLE", True)


def photos(channels: int = 3, size: int = 64) -> torch.Tensor:
    """Images in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, channels, 8, 8, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.usefixtures("torchvision")
def test_each_image_has_a_number_of_its_own() -> None:
    """Zero for the same image, more for more noise, as torchmetrics has it, in any batch; gray images, too."""
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity as reference

    lpips, image = Lpips(), photos()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slight, strong = ((image + scale * noise).clamp(0, 1) for scale in (0.02, 0.3))
    same, first, second = (lpips(image, other) for other in (image, slight, strong))
    assert same is not None and first is not None and second is not None and first.dtype == torch.float64

    assert (same == 0).all() and (first > 0).all() and (second > 2 * first).all()
    expected = reference(image.float(), strong.float(), normalize=True, reduction="mean")
    assert float(second.mean()) == pytest.approx(float(expected), rel=1e-5)
    alone = lpips(image[:1], strong[:1])
    assert alone is not None and alone[0] == pytest.approx(float(second[0]), rel=1e-5)
    assert lpips(photos(1), photos(1)) is not None and lpips(photos(size=16), photos(size=16)) is None


@pytest.mark.usefixtures("torchvision")
def test_it_stands_beside_the_other_errors(tmp_path: Path) -> None:
    """On request an evaluation has it in its tables, and says which network it is of; only then."""
    folder, images = save(tiny(), tmp_path / "vq"), tmp_path / "images"
    images.mkdir()
    for number in range(3):
        picture(number, (40, 40)).save(images / f"{number}.png")
    common: dict[str, Any] = {
        "model": folder,
        "split": "train",
        "use_cpu": True,
        "disable_tqdm": True,
        "image_size": 32,
    }
    report = evaluate(EvaluationArguments(str(images), output_dir=str(tmp_path / "a"), lpips=True, **common))
    assert 0 < report.results[0]["metrics"]["lpips"] < 2
    assert "| LPIPS (AlexNet) ↓ " in report.to_markdown() and "AlexNet, version 0.1" in report.to_markdown()
    assert r"LPIPS (AlexNet) $\downarrow$" in (tmp_path / "a" / "evaluation.tex").read_text()
    assert ",lpips" in (tmp_path / "a" / "evaluation.csv").read_text()

    without = evaluate(EvaluationArguments(str(images), output_dir=str(tmp_path / "b"), **common))
    assert "lpips" not in without.results[0]["metrics"] and "lpips" not in without.protocol
    assert "lpips" not in IMAGE_METRICS and TokenizerMetrics(4).image_metrics is IMAGE_METRICS


def test_a_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torchmetrics is asked, whose own message would name no extra."""
    monkeypatch.setattr("hf_vq.utils.extras.find_spec", lambda name: None if name == "torchvision" else object())
    with pytest.raises(ModuleNotFoundError, match=r"torchvision is not installed: pip install 'hf_vq\[lpips\]'"):
        Lpips()


@pytest.mark.usefixtures("torchvision")
def test_weights_that_cannot_be_fetched_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says where a file would be looked for."""

    def unreachable(weights: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["torchvision"].models, "alexnet", unreachable)
    with pytest.raises(OSError, match="AlexNet's weights.*no route to host.*checkpoints"):
        Lpips()
