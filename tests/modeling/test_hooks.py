"""What hooks see of the models: feature extraction and Grad-CAM keep tensors and change gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, VQImageClassificationConfig, VQModel
from hf_vq import VQModelForImageClassification as Classifier

VQGAN: dict[str, Any] = dict(
    architecture="vqgan",
    image_size=16,
    base_channels=8,
    channel_multiplier=[1, 2],
    num_res_blocks=1,
    latent_channels=8,
    embed_dim=4,
    norm_num_groups=4,
    num_codes=16,
    attn_resolutions=[8],
)
SQVAE: dict[str, Any] = dict(architecture="sqvae", image_size=16, base_channels=8, embed_dim=8, num_codes=16)


def _vqgan() -> VQModel:
    return VQModel(VQConfig(**VQGAN))


MODELS = {
    "vqgan": _vqgan,
    "sqvae": lambda: VQModel(VQConfig(**SQVAE)),
    "classifier": lambda: Classifier(
        VQImageClassificationConfig(num_labels=3, image_size=32, base_channels=4)  # type: ignore[call-arg]
    ),
}


def _run(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    size = model.config.image_size
    output = model(pixel_values=torch.rand(2, 3, size, size) * 2 - 1)
    return output.logits if "logits" in output else output.decoded_pixel_values


def _keep_outputs(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Hooks every module; the outputs that they gave, each with a copy made at that time."""
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                kept[name] = (output, output.detach().clone())

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    return kept


@pytest.mark.parametrize("gradient", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_forward_hook_keeps_stays_as_it_was(name, gradient):
    """No module overwrites a tensor that a hook has seen, and hooks change no bit of the output."""
    model = MODELS[name]().eval()
    with torch.set_grad_enabled(gradient):
        expected = _run(model)
        kept = _keep_outputs(model)
        output = _run(model)

    assert len(kept) > 10
    assert [each for each, (tensor, copy) in kept.items() if not torch.equal(tensor, copy)] == []
    assert torch.equal(output, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:For backward hooks to be called")
def test_backward_hooks_on_every_module(name):
    """Full backward hooks run on every module that a gradient passes, and change no gradient by themselves."""
    model = MODELS[name]().train()
    plain = copy.deepcopy(model)
    _run(plain).square().mean().backward()
    expected = {key: weight.grad for key, weight in plain.named_parameters() if weight.grad is not None}
    seen = []
    for each, module in model.named_modules():
        module.register_full_backward_hook(lambda module, given, received, each=each: seen.append(each))
    _run(model).square().mean().backward()

    leaves = {each for each, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.GroupNorm))}
    reached = {key.removesuffix(".weight") for key in expected}
    assert leaves & reached
    assert leaves & reached <= set(seen)
    for key, weight in model.named_parameters():
        assert (weight.grad is None) == (key not in expected)
        assert weight.grad is None or torch.equal(weight.grad, expected[key])


def test_hooks_of_a_generator():
    """A generator's modules and those of its tokenizer keep what hooks saw, while it generates."""
    model = MaskGitModel(
        MaskGitConfig(vq_config=VQGAN, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_classes=2)
    ).eval()
    kept = _keep_outputs(model)
    model.generate(class_labels=torch.tensor([0, 1]), num_steps=2)

    assert any("proj_out" in each for each in kept)
    assert [each for each, (tensor, copy) in kept.items() if not torch.equal(tensor, copy)] == []


def test_global_hooks():
    """A hook on all modules of the process keeps what it saw."""
    model = _vqgan().eval()
    kept = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            kept.append((output, output.clone()))

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        with torch.no_grad():
            _run(model)
    finally:
        handle.remove()

    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


def test_a_wrapped_forward_keeps_its_outputs():
    """Libraries that replace the `forward` of an instance see tensors that stay as they were."""
    model = _vqgan().eval()
    kept = []

    def wrap(module: nn.Module) -> None:
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            kept.append((output, output.clone()))
            return output

        module.forward = forward

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.GroupNorm)):
            wrap(module)
    with torch.no_grad():
        _run(model)

    assert len(kept) > 10
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


def test_a_replaced_module_may_return_its_input():
    """With other modules in place of norms and convolutions the output is the same with and without gradients."""
    model = _vqgan().eval()
    for module in model.modules():
        for name in ("norm1", "norm2", "conv2", "proj_out", "norm"):
            if isinstance(getattr(module, name, None), (nn.GroupNorm, nn.Conv2d)):
                setattr(module, name, nn.Identity())
    expected = _run(model)
    with torch.no_grad():
        output = _run(model)

    torch.testing.assert_close(output, expected)
