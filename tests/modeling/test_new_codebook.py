"""A checkpoint whose codebook has another size: `ignore_mismatched_sizes` gives a new one, which starts as new."""

from typing import Any

import pytest
import torch

from hf_vq import VQConfig, VQModel

SMALL: dict[str, Any] = dict(architecture="sqvae", image_size=16, base_channels=8, embed_dim=8, replace_freq=50)
KINDS: dict[str, dict[str, Any]] = {
    "k-means": dict(kmeans_init=True),
    "random": dict(kmeans_init=False),
    "ema": dict(kmeans_init=True, codebook_update="ema", alternating_steps=0, sync_nu=0.0),
    "affine": dict(kmeans_init=True, affine_lr=2.0),
    "running": dict(kmeans_init=True, affine_mode="running"),
    "residual": dict(kmeans_init=True, quantizer_type="residual", num_groups=2, share_codebook=False),
}


def _pixels() -> torch.Tensor:
    return torch.rand(16, 3, 16, 16) * 2 - 1


def _trained(tmp_path: Any, kind: str) -> VQModel:
    torch.manual_seed(0)
    model = VQModel(VQConfig(**SMALL, num_codes=16, **KINDS[kind])).train()
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 1e-3)
    for _ in range(3):
        model(_pixels()).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("change", [dict(num_codes=64), dict(num_codes=8), dict(embed_dim=4)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_codebook_of_another_size_starts_as_a_new_one(tmp_path, kind, change):
    """Flags, clocks, moments and the affine map are those of a fresh model; the encoder's weights are loaded."""
    trained = _trained(tmp_path, kind)
    model = VQModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **change)
    fresh = VQModel(model.config).quantize.codebook.state_dict()
    state = model.quantize.codebook.state_dict()

    assert [name for name in fresh if name != "weight" and not torch.equal(state[name], fresh[name])] == []
    assert state["weight"].std() > 0.5
    first = next(iter(trained.encoder.parameters()))
    assert torch.equal(next(iter(model.encoder.parameters())), first)


def test_k_means_runs_for_the_new_codes(tmp_path):
    """The first batches use all codes, as those of a fresh model do."""
    _trained(tmp_path, "k-means")
    model = VQModel.from_pretrained(tmp_path, num_codes=64, ignore_mismatched_sizes=True).train()
    out = model(_pixels())

    assert model.quantize.codebook.initialized
    assert out.usage > 0.9


def test_a_codebook_of_the_same_size_stays_as_it_was(tmp_path):
    """Loading with `ignore_mismatched_sizes` changes nothing where all sizes match."""
    trained = _trained(tmp_path, "affine")
    model = VQModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)

    state = trained.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
