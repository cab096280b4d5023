"""Loads weights of vqtorch's layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_vq.modeling.quantizer_vq import VectorQuant
from hf_vq.utils.text import shorten


@torch.no_grad()
def load_vqtorch_state_dict(layer: VectorQuant, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Loads the state of a vqtorch layer into a layer of the same class and settings.

    A state does not contain all settings. You have to set the others on our layer, above all `affine_lr` and the
    norms. vqtorch's `cb_norm="l2"` is `"clip"` here. Its `cb_norm="l2c"` is `norm="clip"` with `cb_norm="l2"` here.

    Args:
        layer: `VectorQuant`, `GroupVectorQuant` or `ResidualVectorQuant`. It is changed in place.
        state_dict: `codebook.weight`, and as far as the vqtorch layer had them, `affine_transform.*`, `norm_layer.*`,
            `_counts` and `data_initialized`.

    Raises:
        ValueError: If the layers differ in codes, affine map or norm. The message lists what is missing, left over or
            of another shape. The layer stays as it was.
    """
    codebook = layer.codebook
    state = {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    counts = state.pop("_counts", None)
    initialized = state.pop("data_initialized", None)
    targets: dict[str, torch.Tensor] = {"codebook.weight": codebook.weight}
    if codebook.learned_affine:
        targets |= {"affine_transform.scale": codebook.affine_scale, "affine_transform.bias": codebook.affine_bias}
    if codebook.running_affine:
        targets["affine_transform.running_statistics_initialized"] = codebook.running_initialized
        for ours, theirs in (("z", "ze"), ("c", "c")):
            for moment in ("mean", "var"):
                name = f"affine_transform.running_{theirs}_{moment}"
                targets[name] = getattr(codebook, f"running_{ours}_{moment}")
    if layer.norm_layer is not None:
        targets |= {f"norm_layer.{key}": value for key, value in layer.norm_layer.state_dict(keep_vars=True).items()}
    missing, unknown = sorted(set(targets) - set(state)), sorted(set(state) - set(targets))
    problems = [f"missing: {shorten(missing, 40, quoted=True)}"] if missing else []
    if unknown:
        problems.append(f"not known to this layer: {shorten(unknown, 40, quoted=True)}")
    if counts is not None and codebook.replace_freq and counts.shape != codebook.unused_steps.shape:
        shapes = f"{tuple(counts.shape)}, expected {tuple(codebook.unused_steps.shape)}"
        problems.append(f"'_counts' has the shape {shapes}")
    if initialized is not None and initialized.numel() != 1:
        problems.append(f"'data_initialized' has the shape {tuple(initialized.shape)}, expected (1,)")
    for key in set(state) & set(targets):
        if key.startswith("affine_transform.") and codebook.num_books > 1:  # vqtorch has one map for all books
            state[key] = state[key].repeat(codebook.num_books, *[1] * (state[key].ndim - 1))
        if state[key].shape != targets[key].shape:
            shapes = f"{tuple(state[key].shape)}, expected {tuple(targets[key].shape)}"
            problems.append(f"{key!r} has the shape {shapes}")
    if problems:
        raise ValueError(
            "This state does not fit the layer. Give the layer the settings of vqtorch's.\n" + "\n".join(problems)
        )
    for key, value in state.items():
        targets[key].copy_(value)
    codebook.initialized.fill_(True if initialized is None else bool(initialized))
    codebook.unused_steps.zero_()
    if counts is not None and codebook.replace_freq:
        # vqtorch counts down from the patience to zero, we count up.
        codebook.unused_steps.copy_((codebook.replace_freq - counts).clamp_min(0))
