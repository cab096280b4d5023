"""Losses: their scales, their gradients, and what they must not touch."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from hf_vq.losses import (
    VGG_REVISION,
    PatchDiscriminator,
    PerceptualLoss,
    VGGDistance,
    adaptive_weight,
    generator_loss,
    hinge_d_loss,
    nonsaturating_d_loss,
    reconstruction_loss,
)


def test_reconstruction_loss_is_on_the_unit_scale():
    """Black against white is an error of 1. A quarter of the range is an error of 1/4 or 1/16."""
    black, white = torch.full((2, 3, 4, 4), -1.0), torch.full((2, 3, 4, 4), 1.0)

    assert reconstruction_loss(black, white, "l1") == reconstruction_loss(black, white, "l2") == 1
    assert reconstruction_loss(black + 0.5, black, "l1") == 0.25
    assert reconstruction_loss(black + 0.5, black, "l2") == 0.0625


def test_reconstruction_loss_of_half_precision_is_computed_in_float32():
    """Errors below half precision's reach are not rounded away."""
    image = torch.zeros(1, 3, 64, 64, dtype=torch.float16)

    loss = reconstruction_loss(image + 1e-3, image, "l2")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2.5e-7, rel=1e-2)


def test_reconstruction_loss_refuses_what_it_cannot_mean():
    """Shapes that would broadcast and unknown kinds are errors."""
    with pytest.raises(ValueError, match="shapes differ"):
        reconstruction_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="'l1' or 'l2', got 'huber'"):
        reconstruction_loss(torch.zeros(1), torch.zeros(1), "huber")  # type: ignore[arg-type]


class FeatureDistance(nn.Module):
    """Stands in for LPIPS with the squared distance of the features of one convolution, for each image."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.features(x) - self.features(y)).square().mean((1, 2, 3), keepdim=True)


def test_perceptual_loss_trains_the_image_and_not_the_judge():
    """The gradient reaches the reconstruction, and the network stays frozen and in eval mode."""
    loss = PerceptualLoss(network=FeatureDistance()).train()
    image = torch.rand(2, 3, 8, 8)
    decoded = torch.rand(2, 3, 8, 8, requires_grad=True)

    assert loss(image, image) == 0  # with dropout on, it would not be
    loss(decoded, image).backward()
    assert decoded.grad is not None and decoded.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_perceptual_loss_takes_gray_images():
    """The network sees one channel as three equal ones."""
    loss = PerceptualLoss(network=FeatureDistance())
    gray, other = torch.rand(2, 2, 1, 8, 8)

    assert loss(gray, other) == loss(gray.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))


@pytest.fixture(scope="module")
def classifier() -> nn.Sequential:
    """Makes the convolutional part of a VGG16 as torchvision numbers it, with random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def weights(classifier: nn.Sequential) -> bytes:
    """Writes the file of such a classifier, with a part of the head that the loss does not need."""
    state = {f"features.{name}": value.data for name, value in classifier.named_parameters()}
    return safetensors.torch.save(state | {"head.fc.bias": torch.zeros(1000)})


def test_vgg_distance_is_that_of_the_unit_features_of_each_stage(classifier: nn.Sequential, weights: bytes, hub):
    """With weights from the Hub it equals a calculation with the whole classifier, layer by layer."""
    hub.store.create("models", "alice/vgg", private=False)
    hub.store.write("alice/vgg", "model.safetensors", weights)
    first, second = torch.rand(2, 2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, y = (first - mean) / std, (second - mean) / std
    expected = torch.zeros(2)
    with torch.no_grad():
        for number, layer in enumerate(classifier):
            x, y = layer(x), layer(y)
            if number in (3, 8, 15, 22, 29):
                cosine = nn.functional.cosine_similarity(x, y, dim=1)
                expected += (2 - 2 * cosine).mean((1, 2)) / 5

    loss = PerceptualLoss(VGGDistance("alice/vgg"))

    assert expected.min() > 0.01
    assert torch.allclose(loss.network(2 * first - 1, 2 * second - 1), expected, atol=1e-5)
    assert torch.allclose(loss(2 * first - 1, 2 * second - 1), expected.mean(), atol=1e-5)
    assert loss(first, first) == 0


def test_the_perceptual_loss_asks_for_one_commit_of_the_hub(hub):
    """By default the weights are pinned. A Hub without them is an error that names them and says what to do."""
    with pytest.raises(
        OSError, match=r"timm/vgg16.tv_in1k.*hf download timm/vgg16.tv_in1k model.safetensors.*perceptual_weight 0"
    ):
        PerceptualLoss()
    assert any(VGG_REVISION in path for _, path in hub.requests)


def test_weights_of_another_network_are_refused(weights: bytes, tmp_path: Path):
    """A tensor of another shape and a missing one are errors that name file and layer."""
    state = safetensors.torch.load(weights)
    other = state | {"features.5.weight": state["features.7.weight"].clone()}
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(other))
    with pytest.raises(ValueError, match=r"(?s)model.safetensors does not hold a VGG16: features\.5: .*size mismatch"):
        VGGDistance(tmp_path)
    del other["features.5.weight"]
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(other))
    with pytest.raises(ValueError, match=r"model.safetensors does not hold a VGG16: features\.5"):
        VGGDistance(tmp_path)


def test_discriminator_scores_each_image_by_itself():
    """Scores do not depend on the rest of the batch, so a batch can be split over processes."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8, num_layers=2).train()
    images = torch.rand(4, 3, 32, 32) * 2 - 1

    scores = discriminator(images)
    assert scores.shape == (4, 1, 6, 6)
    torch.testing.assert_close(scores[:1], discriminator(images[:1]))
    assert not list(discriminator.buffers())


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_discriminator_works_down_to_the_size_it_states(num_layers: int):
    """The smallest size that the message names gives a score, and one pixel less gives the message."""
    discriminator = PatchDiscriminator(base_channels=8, num_layers=num_layers)
    smallest = 3 * 2**num_layers

    assert discriminator(torch.zeros(1, 3, smallest, smallest)).numel() == 1
    with pytest.raises(ValueError, match=f"at least {smallest} pixels.*fewer layers"):
        discriminator(torch.zeros(1, 3, smallest - 1, smallest))


def test_adversarial_losses_have_their_textbook_values():
    """At score 0 the hinge loss is 1 and cross-entropy is ln 2. A sure discriminator has no hinge loss."""
    zero, sure = torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 2.0)

    assert hinge_d_loss(zero, zero) == 1
    assert hinge_d_loss(sure, -sure) == 0 and hinge_d_loss(-sure, sure) == 3
    assert nonsaturating_d_loss(zero, zero).item() == pytest.approx(0.693147, abs=1e-6)
    assert nonsaturating_d_loss(sure, -sure) < nonsaturating_d_loss(-sure, sure)
    assert generator_loss(sure) == -2
    assert generator_loss(zero, "nonsaturating").item() == pytest.approx(0.693147, abs=1e-6)
    with pytest.raises(ValueError, match="'wasserstein'"):
        generator_loss(zero, "wasserstein")  # type: ignore[arg-type]


def test_adversarial_training_separates_real_from_fake():
    """A few steps on the hinge loss train the discriminator, and its gradient makes fakes look more real to it."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8, num_layers=1)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    real, fake = torch.rand(8, 3, 8, 8), -torch.rand(8, 3, 8, 8)
    for _ in range(20):
        optimizer.zero_grad()
        hinge_d_loss(discriminator(real), discriminator(fake)).backward()
        optimizer.step()

    assert discriminator(real).mean() > discriminator(fake).mean() + 1
    fake.requires_grad_(True)
    loss = generator_loss(discriminator(fake))
    (grad,) = torch.autograd.grad(loss, fake)
    assert generator_loss(discriminator(fake - 0.1 * grad / grad.abs().max())) < loss


def test_adaptive_weight_balances_the_two_gradients():
    """At the last layer the weighted adversarial gradient is as long as the reconstruction's."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    output = layer(torch.rand(8, 4, dtype=torch.float64))
    reconstruction, adversarial = output.square().mean(), 100 * output.mean()

    weight = adaptive_weight(reconstruction, adversarial, layer.weight)
    grads = [torch.autograd.grad(x, layer.weight, retain_graph=True)[0] for x in (reconstruction, adversarial)]
    assert (weight * grads[1].norm()).item() == pytest.approx(grads[0].norm().item(), rel=1e-4)
    assert not weight.requires_grad
    (reconstruction + weight * adversarial).backward()


def test_adaptive_weight_is_bounded_where_the_adversarial_gradient_vanishes():
    """A flat discriminator does not blow up the loss."""
    value = torch.ones(1, requires_grad=True)

    assert adaptive_weight(1e9 * value.sum(), 0 * value.sum(), value) == 1e4
