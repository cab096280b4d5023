"""Forward and backward on the meta device, by which people estimate memory without any."""

from typing import Any

import pytest
import torch

from hf_vq import (
    MaskGitConfig,
    MaskGitModel,
    VQConfig,
    VQImageClassificationConfig,
    VQModel,
    VQModelForImageClassification,
)

VQGAN: dict[str, Any] = dict(
    architecture="vqgan",
    image_size=16,
    base_channels=8,
    channel_multiplier=[1, 2],
    num_res_blocks=1,
    latent_channels=8,
    embed_dim=8,
    norm_num_groups=4,
    num_codes=16,
    attn_resolutions=[8],
)
SQVAE: dict[str, Any] = dict(architecture="sqvae", image_size=16, base_channels=8, num_codes=16)
KINDS: dict[str, dict[str, Any]] = {
    "vqgan": VQGAN,
    "sqvae": SQVAE,
    "plain": dict(SQVAE, kmeans_init=False, replace_freq=0, alternating_steps=0, affine_lr=0.0, sync_nu=0.0),
    "sgd": dict(SQVAE, alternating_steps=2, alternating_kind="sgd"),
    "ema": dict(SQVAE, codebook_update="ema", alternating_steps=0, sync_nu=0.0),
    "running": dict(SQVAE, affine_mode="running"),
    "rotation, l2": dict(SQVAE, gradient_estimator="rotation", norm="l2", cb_norm="l2"),
    "batch norm, busy": dict(SQVAE, norm="bn", replace_policy="busy"),
    "group": dict(SQVAE, quantizer_type="group", num_groups=2, share_codebook=False),
    "residual": dict(SQVAE, quantizer_type="residual", num_groups=2),
    "lfq": dict(SQVAE, quantizer_type="lfq", embed_dim=4, num_codes=16),
    "bsq": dict(SQVAE, quantizer_type="bsq", embed_dim=4, num_groups=2, num_codes=4),
    "residual_fsq": dict(SQVAE, quantizer_type="residual_fsq", levels=[4, 4], embed_dim=2, num_groups=2, num_codes=32),
    "residual_lfq": dict(SQVAE, quantizer_type="residual_lfq", embed_dim=4, num_groups=2, num_codes=32),
    "simvq": dict(SQVAE, quantizer_type="simvq"),
    "ibq": dict(SQVAE, quantizer_type="ibq"),
    "diveq": dict(SQVAE, gradient_estimator="diveq", sync_nu=0.0),
    "fsq": dict(SQVAE, quantizer_type="fsq", levels=[4, 4], embed_dim=2, num_codes=16),
}


@pytest.mark.parametrize("name", KINDS)
def test_tokenizers(name):
    """Every kind of quantizer has a forward in both modes, a backward, and a decoder of tokens, all with shapes."""
    with torch.device("meta"):
        model = VQModel(VQConfig(**KINDS[name]))
        pixels = torch.empty(2, 3, 16, 16)
    for training in (True, False):
        output = model.train(training)(pixels)
        assert output.decoded_pixel_values.shape == pixels.shape and output.decoded_pixel_values.is_meta
        output.loss.backward()
        assert any(weight.grad is not None for weight in model.encoder.parameters())
    assert model.decode(output.image_tokens).decoded_pixel_values.shape == pixels.shape


def test_recomputation():
    """Activation checkpointing works there, too."""
    with torch.device("meta"):
        model = VQModel(VQConfig(**VQGAN)).train()
        pixels = torch.empty(2, 3, 16, 16)
    torch.utils.checkpoint.checkpoint(model, pixels, use_reentrant=False).loss.backward()

    assert next(iter(model.encoder.parameters())).grad.is_meta


def test_classifiers():
    """Logits and loss have shapes and a backward."""
    with torch.device("meta"):
        model = VQModelForImageClassification(
            VQImageClassificationConfig(num_labels=3, image_size=32, base_channels=4, num_codes=16)
        )
        pixels, labels = torch.empty(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    output = model.train()(pixels, labels=labels)
    output.loss.backward()

    assert output.logits.shape == (2, 3)


@pytest.mark.parametrize("conditioning", ["adaln_zero", "prefix"])
def test_generators(conditioning):
    """The forward of training gives logits and a loss with a backward."""
    config = MaskGitConfig(
        vq_config=VQGAN,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_classes=2,
        class_conditioning=conditioning,
    )
    with torch.device("meta"):
        model = MaskGitModel(config).train()
        tokens, labels = torch.zeros(2, 8, 8, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    output = model(image_tokens=tokens, class_labels=labels)
    output.loss.backward()

    assert output.logits.is_meta
