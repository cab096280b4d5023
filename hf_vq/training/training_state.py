"""The state of training beside a published model: moments of optimizers, discriminator, averages of the codebook.

It is one safetensors file, in which tensors have the names of what they belong to, so that nothing is unpickled and a
run on another model takes what fits it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_vq.hub.folders import STATE_FILE
from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.training.networks import MODEL, TrainedNetworks


def write_training_state(folder: Path, networks: TrainedNetworks) -> None:
    """Writes the state of training into the folder of a model."""
    tensors: dict[str, torch.Tensor] = {}
    for network, module in networks.modules.items():
        states = networks.optimizers[network].state
        for name, parameter in module.named_parameters():
            tensors |= {f"{network}/optimizer/{name}/{key}": value for key, value in states.get(parameter, {}).items()}
        if network != MODEL:
            tensors |= {f"{network}/weights/{name}": value for name, value in module.state_dict().items()}
    for number, layer in enumerate(get_vq_layers(networks.modules[MODEL])):
        tensors |= {f"quantizers/{number}/{name}": value for name, value in layer.training_state().items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / STATE_FILE)


def read_training_state(file: Path, networks: TrainedNetworks) -> int:
    """Puts what `write_training_state` wrote into the networks of a run, as far as it fits them.

    Returns:
        Of how many parameters the optimizers got their moments.
    """
    tensors = load_file(file)
    count = 0
    for network, module in networks.modules.items():
        optimizer = networks.optimizers[network]
        for name, parameter in module.named_parameters():
            state = _below(tensors, f"{network}/optimizer/{name}/")
            if state and all(value.shape in (parameter.shape, torch.Size()) for value in state.values()):
                optimizer.state[parameter] = {key: _placed(key, value, parameter) for key, value in state.items()}
                count += 1
        weights = _below(tensors, f"{network}/weights/")
        if weights and {name: value.shape for name, value in weights.items()} == {
            name: value.shape for name, value in module.state_dict().items()
        }:
            module.load_state_dict(weights)
    for number, layer in enumerate(get_vq_layers(networks.modules[MODEL])):
        own, saved = layer.training_state(), _below(tensors, f"quantizers/{number}/")
        fitting = {name: value for name, value in saved.items() if name in own and value.shape == own[name].shape}
        layer.load_training_state(own | fitting)
    return count


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _placed(key: str, value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """On the parameter's device, but for the count of steps, which AdamW keeps on the CPU."""
    return value if key == "step" else value.to(parameter)
