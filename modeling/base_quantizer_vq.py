# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What every quantizer layer offers: models, trainers, weight averages, monitors and cards use only this.

A kind of quantizer is a subclass of `Quantizer` that writes `forward`, `lookup` and `get_codebook`:

    class Signs(Quantizer):
        def __init__(self, feature_size, num_codes, dim=1):
            super().__init__()
            self.feature_size, self.num_codes, self.dim, self.code_dim = feature_size, num_codes, dim, feature_size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from .batch_norm_vq import in_backward
from .distributed_vq import is_distributed, sum_over_ranks
from .quantizer_output_vq import QuantizerOutput, blank, count_ids, describe_counts


class AveragedParameter(nn.Parameter):
    """A parameter that its layer moves itself, by moving averages for example, and that never requires a gradient.

    `requires_grad_` on it, or on a model around it, says whether the layer may move it: that is `trains`.
    """

    trains: bool = True

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False) -> AveragedParameter:
        return super().__new__(cls, data, False)

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        """False, also while the layer moves the parameter. Setting it sets `trains`."""
        return False

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        self.trains = requires_grad

    def requires_grad_(self, requires_grad: bool = True) -> AveragedParameter:
        """Sets `trains`."""
        self.trains = requires_grad
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AveragedParameter:
        copied = super().__deepcopy__(memo)
        copied.trains = self.trains
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The base class would come back from a pickle as an ordinary parameter, which counts as frozen.
        return _rebuild_averaged_parameter, (self.data, self.trains)


def _rebuild_averaged_parameter(data: torch.Tensor, trains: bool) -> AveragedParameter:
    parameter = AveragedParameter(data)
    parameter.trains = trains
    return parameter


class Quantizer(nn.Module):
    """Base class of quantizer layers.

    A call checks the input and hands it to `forward` in float32 or better, whatever autocast says. While the layer is
    frozen, `forward` runs in eval mode; under `no_vq` it does not run at all. So a subclass asks only `self.training`.

    A layer is frozen after `freeze()`, and after `requires_grad_(False)` on itself or on a model around it: nothing
    moves its codes, be it a gradient, an average, an initialization or a replacement. `requires_grad_(True)` thaws
    it. A checkpoint does not say whether a layer was frozen. Codes that a layer moves by itself are buffers or an
    `AveragedParameter`: a layer whose parameters are all without gradient counts as frozen.

    Attributes:
        feature_size: size of the quantized axis.
        num_codes: codes in total.
        dim: the axis to quantize.
        groups: ids for each position, the last axis of `q`.
        code_dim: size of a code.
        enabled: False under `no_vq`.
        changes_itself: whether a training forward changes the layer, by steps that depend on values and on all ranks.
            `torch.compile` leaves such a forward out of its graphs.
        micro_batch: which of how many micro batches of an optimizer step the next forward is, see `micro_batch`.
        takes_nearest: whether a vector's code is the nearest one of a list, which other libraries can hold as well.
        takes_mask: whether `forward` takes a mask. A call has checked it and made the masked vectors zero. `forward`
            must leave them out of loss, statistics and updates; what it returns at their places does not matter.
        fewest_ids: the least ids for each position that `lookup` takes, the first ones; most kinds need all `groups`.
    """

    feature_size: int
    num_codes: int
    code_dim: int
    dim: int = 1
    groups: int = 1
    enabled: bool = True
    takes_nearest: bool = False
    takes_mask: bool = False
    changes_itself: bool = False
    micro_batch: tuple[int, int] = (0, 1)
    _frozen: bool = False
    _no_split_modules: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._no_split_modules = (cls.__name__,)  # transformers asks the children of a model

    # Any, as of every module: a caller knows which fields of the output are there, a type checker does not.
    def __call__(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        """Quantizes `z`, of any floating dtype, with `feature_size` along `dim` and any other axes.

        Args:
            z: the vectors.
            mask: bool, the shape of `z` without `dim`, for padded sequences. The vectors where it is false take no
                part in anything: loss, statistics, norms, initialization, inner steps, averages, replacement. They
                may even be NaN.

        Returns:
            The quantized tensor, of `z`'s shape and dtype, and a `QuantizerOutput`. Where the mask is false, the
            quantized tensor is 0 and the ids are -1.

        Raises:
            ValueError: shape or dtype of `z` or of the mask is another.
            NotImplementedError: this kind of quantizer takes no mask; or ONNX's older exporter, which is wrong, asks.
        """
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
            raise NotImplementedError(
                "the ONNX exporter that traces writes wrong tokens; call torch.onnx.export(..., dynamo=True)"
            )
        if self.training and torch.compiler.is_compiling() and (self.changes_itself or is_distributed()):
            return _out_of_graph(self, z, mask)
        return self._quantize(z, mask)

    def _quantize(self, z: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, QuantizerOutput]:
        self._check_input(z)
        if mask is not None:
            self._check_mask(z, mask)
        dtype = torch.promote_types(z.dtype, torch.float32)
        if not self.enabled:
            loss = z.new_zeros((), dtype=dtype)
            if torch.is_grad_enabled() and self.training:  # several processes await a gradient of every parameter
                loss = loss + sum(weight.flatten()[:0].sum() for weight in self.parameters() if weight.requires_grad)
            return z, QuantizerOutput(loss=loss)
        x = z.to(dtype)
        if self.training and self.is_frozen():
            with _in_eval_mode(self):
                z_q, output = self._call(x, mask)
        else:
            z_q, output = self._call(x, mask)
        return z_q.to(z.dtype), output

    def _call(self, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, QuantizerOutput]:
        # The meta device knows no autocast.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            if mask is None:
                z_q, output = super().__call__(x)
            else:
                x = torch.where(mask.unsqueeze(self.dim), x, 0.0)
                z_q, output = super().__call__(x, mask)
                z_q, output = blank(z_q, output, mask, self.dim)
            return z_q, self.complete(output, x, z_q)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`, in float32 or better. Called through the layer itself, which prepares `z`.

        With `takes_mask = True` its signature is `forward(self, z, mask=None)`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it quantizes: write its `forward`.")

    @property
    def fewest_ids(self) -> int:
        """See the class."""
        return self.groups

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Quantized vectors of the ids `q` `(..., groups)`, in the layout of the layer's output."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its ids stand for: write its `lookup`.")

    def get_codebook(self) -> torch.Tensor:
        """All codes, `(num_codes, code_dim)`, float32 or better; a copy.

        Raises:
            ValueError: the codes are implicit and too many to list.
        """
        raise NotImplementedError(f"{type(self).__name__} does not list its codes: write its `get_codebook`.")

    def unquantized(self, z: torch.Tensor) -> torch.Tensor:
        """What the layer would return of `z` if every vector were a code: `z` with the layer's norm, for example."""
        return z

    # --- for trainers ---------------------------------------------------------------------------------------------

    def code_parameters(self) -> list[nn.Parameter]:
        """The parameters that make the codes. They take no weight decay, which would pull unused codes to zero."""
        return list(self.parameters())

    def rewritten_rows(self) -> dict[nn.Parameter, torch.Tensor]:
        """The rows of parameters, as bool masks, that the last training forward initialized or replaced.

        What an optimizer remembers about such a row describes the vector that it held before.
        """
        return {}

    def take_over(self, source: Quantizer, rewritten: Mapping[nn.Parameter, torch.Tensor]) -> None:
        """In a layer that averages the weights of `source`: makes the codes that were rewritten there its own.

        The rows themselves have been copied already; this is for codes that are more than a row of a parameter.
        """

    def training_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint of a training run needs besides `state_dict()`."""
        return {}

    def load_training_state(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `training_state`. Raises `KeyError` when the names differ, for the settings then do."""
        if state:
            raise KeyError(f"training state holds {sorted(state)}, but {type(self).__name__} has none")

    def reset_parameters(self) -> None:
        """Sets parameters and buffers through `transformers.initialization`, which leaves loaded ones alone."""

    # --- freezing -------------------------------------------------------------------------------------------------

    def freeze(self) -> Quantizer:
        """Keeps the codes as they are, also after `train()`; `requires_grad_(True)` thaws them."""
        for parameter in self.parameters():
            parameter.grad = None  # an optimizer's next step would still use it
        return self.requires_grad_(False)

    def requires_grad_(self, requires_grad: bool = True) -> Quantizer:
        """As of every module; also freezes or thaws a layer without parameters."""
        super().requires_grad_(requires_grad)
        self._frozen = not requires_grad
        return self

    def is_frozen(self) -> bool:
        """Whether nothing may move the codes."""
        parameters = self.code_parameters()
        if not parameters:
            return self._frozen
        return not any(getattr(parameter, "trains", parameter.requires_grad) for parameter in parameters)

    # --- for cards ------------------------------------------------------------------------------------------------

    @classmethod
    def card_words(cls, config: Any) -> str:
        """The settings that matter, of a model's configuration, in words."""
        options = ", ".join(f"{name} {value}" for name, value in (config.quantizer_options or {}).items())
        return f"{config.quantizer_type}, {options}" if options else config.quantizer_type

    @classmethod
    def card_loss(cls, config: Any) -> str:
        """The layer's term of the training loss, in words; empty if it has none."""
        return f"{config.commitment_weight:g} x commitment"

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """The works whose methods these settings use: keys of `hf_vq`'s citations, or BibTeX entries."""
        return []

    # --- for subclasses -------------------------------------------------------------------------------------------

    def statistics(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Perplexity and usage of the ids `q`, in training over all ranks; every rank must call it then.

        Ids of -1 do not count.
        """
        counts = count_ids(q, self.num_codes)
        # A recomputation by activation checkpointing is this rank's affair.
        if self.training and is_distributed() and not in_backward():
            sum_over_ranks(counts)
        return describe_counts(counts)

    def check_ids(self, q: torch.Tensor) -> torch.Tensor:
        """The ids as int64.

        Raises:
            ValueError: `q` is not of an integer type, has another last axis, or holds ids outside [0, num_codes).
        """
        if q.is_floating_point() or q.is_complex() or q.dtype == torch.bool:
            raise ValueError(f"expected integer ids, got {q.dtype}")
        if q.ndim == 0 or not self.fewest_ids <= q.shape[-1] <= self.groups:
            least = f"{self.fewest_ids} to " if self.fewest_ids < self.groups else ""
            raise ValueError(f"expected ids of shape (..., {least}{self.groups}), got {tuple(q.shape)}")
        q = q.long()
        if torch.compiler.is_compiling() or q.is_meta or not q.numel():
            return q
        low, high = int(q.min()), int(q.max())
        if not 0 <= low <= high < self.num_codes:
            hint = ". -1 says that there is no code: pass `q[mask]`, or fewer levels" if low == -1 else ""
            raise ValueError(f"ids must be in [0, {self.num_codes}), got {low} to {high}{hint}")
        return q

    def _check_input(self, z: torch.Tensor) -> None:
        has_axis = z.ndim >= 2 and -z.ndim <= self.dim < z.ndim
        if not has_axis or z.shape[self.dim] != self.feature_size:
            fitting = [axis for axis, size in enumerate(z.shape) if size == self.feature_size]
            hint = ""
            if z.ndim >= 2 and fitting:
                axis = -1 if fitting[-1] == z.ndim - 1 else fitting[0]
                layout = ": (batch, positions, features)" if axis == -1 and z.ndim == 3 else ""
                hint = f". Did you mean dim={axis}{layout}? Pass it when you build the layer"
            raise ValueError(
                f"expected at least 2 axes with feature_size={self.feature_size} along dim={self.dim}, "
                f"got shape {tuple(z.shape)}{hint}"
            )
        if not z.is_floating_point():
            raise ValueError(f"expected a floating point tensor, got {z.dtype}")

    def _check_mask(self, z: torch.Tensor, mask: torch.Tensor) -> None:
        if not self.takes_mask:
            raise NotImplementedError(
                f"{type(self).__name__} takes no mask. Its class says that it does with `takes_mask = True` and a "
                "`forward(self, z, mask=None)` that leaves masked vectors out of loss, statistics and updates. "
                "Without it, call the layer on the vectors that count alone."
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"a mask must be bool, true where a vector counts, got {mask.dtype}. Pass `mask.bool()`")
        expected = list(z.shape)
        del expected[self.dim]
        if list(mask.shape) != expected:
            raise ValueError(
                f"a mask must have the shape of the input without dim={self.dim}, {tuple(expected)}, "
                f"got {tuple(mask.shape)} for an input of {tuple(z.shape)}"
            )

    def complete(self, output: QuantizerOutput, z: torch.Tensor, z_q: torch.Tensor) -> QuantizerOutput:
        """The output with what `forward` left out. A call does it by itself; a forward hook sees the output before."""
        if output.q is None:
            raise ValueError(f"The `forward` of {type(self).__name__} must return the ids `q` in its QuantizerOutput.")
        missing: dict[str, torch.Tensor] = {}
        vectors, codes = output.z, output.z_q
        if vectors is None or codes is None:
            vectors, codes = (each.detach().moveaxis(self.dim, -1).unsqueeze(-2) for each in (z, z_q))
            missing |= {"z": vectors, "z_q": codes}
        if output.d is None:
            missing["d"] = (vectors.detach() - codes.detach()).norm(dim=-1)
        if output.loss is None:
            missing["loss"] = z_q.new_zeros(())
        if output.perplexity is None or output.usage is None:
            missing["perplexity"], missing["usage"] = self.statistics(output.q)
        return dataclasses.replace(output, **missing) if missing else output


@torch.compiler.disable
def _out_of_graph(
    layer: Quantizer, z: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, QuantizerOutput]:
    """A training forward of a layer as it is without `torch.compile`, up to the mask of replaced codes.

    An output that has a mask in one step and None in the next would compile twice whatever reads it.
    """
    z_q, output = layer._quantize(z, mask)
    if output.q is not None and output.replaced is None:
        output = dataclasses.replace(output, replaced=torch.zeros(layer.num_codes, dtype=torch.bool, device=z.device))
    return z_q, output


@contextmanager
def _in_eval_mode(layer: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in layer.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def get_vq_layers(model: nn.Module) -> list[Quantizer]:
    """All quantizer layers of a model, in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, Quantizer)]


@contextmanager
def no_vq(model: nn.Module | list[nn.Module]) -> Iterator[None]:
    """Within the context, the quantizer layers of a model (or of several) pass their input through, with loss 0.

    Nests, and restores what was, also after an exception.
    """
    models = model if isinstance(model, (list, tuple)) else [model]
    layers = [layer for each in models for layer in get_vq_layers(each)]
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled
