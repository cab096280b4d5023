# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The codebook: raw codes and the affine map in front of them. What changes them is in codebook_updates_vq.py.

The effective code, the one that vectors are compared with, is `normalize(affine(raw))`. Whatever is written as an
effective code (k-means, replacement, centroid and EMA steps) goes through the inverse of the affine map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .base_quantizer_vq import AveragedParameter
from .late_values_vq import LateValues, Unchanged
from .precision_vq import at_least_float32
from .quantizer_output_vq import count_ids

MAX_NORM = 10.0
_MIN_SCALE = 1e-4
_SHORT = 1e-4
_RUNNING_EPS = 1e-8
# Booleans in state dicts. In memory they are numbers, and true above zero, since booleans cannot be averaged:
# `torch.optim.swa_utils.AveragedModel` averages buffers too.
_FLAGS = ("initialized", "running_initialized")
_DEFAULT_STEP = {"sgd": 50.0, "centroid": 0.3}


def normalize(vectors: torch.Tensor, norm: str | None) -> torch.Tensor:
    """`"l2"`: unit norm along the last axis; `"clip"`: norm at most 10; None: as they are.

    The gradient of "l2" grows as a vector shrinks. A vector shorter than 1e-4, such as the zeros of padding, has no
    direction worth the name, and its gradient passes straight through.
    """
    if norm == "l2":
        unit = F.normalize(vectors, dim=-1)
        if not (torch.is_grad_enabled() and vectors.requires_grad):
            return unit
        short = vectors.detach().norm(dim=-1, keepdim=True) < _SHORT
        return torch.where(short, unit.detach() + (vectors - vectors.detach()), unit)
    if norm == "clip":
        return vectors * (MAX_NORM / vectors.norm(dim=-1, keepdim=True).clamp_min(MAX_NORM))
    return vectors


class Codebook(nn.Module):
    """`num_codes` codes in `num_books` equal, separate books, with one affine map (or `affine_groups`) for each book.

    Persistent: the parameters, the clocks `num_forwards` (in training) and `unused_steps` (of them, since a code was
    last used), `initialized`, the running moments. Training-only state, in `training_state()` and not in
    `state_dict()`: momentum, EMA sums, samples collected for k-means. Arguments: see `VectorQuant`.

    Attributes:
        weight: raw codes `(num_codes, code_dim)`.
        affine_scale, affine_bias: `(num_books * affine_groups, code_dim)`, if `affine_lr > 0` in mode "learned".
        rewritten: bool `(num_codes,)`, the codes that the last training forward initialized or replaced; or None.
    """

    # Types of the buffers and of parameters that not every codebook has.
    affine_scale: nn.Parameter
    affine_bias: nn.Parameter
    running_z_mean: torch.Tensor
    running_z_var: torch.Tensor
    running_c_mean: torch.Tensor
    running_c_var: torch.Tensor
    running_initialized: torch.Tensor
    unused_steps: torch.Tensor
    initialized: torch.Tensor
    num_forwards: torch.Tensor
    momentum: torch.Tensor | None
    ema_count: torch.Tensor | None
    ema_sum: torch.Tensor | None
    last_counts: torch.Tensor | None
    samples: torch.Tensor | None
    num_samples: torch.Tensor | None

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        num_books: int = 1,
        *,
        cb_norm: str | None = None,
        affine_lr: float = 0.0,
        affine_groups: int = 1,
        affine_mode: str = "learned",
        replace_freq: int = 0,
        replace_policy: str = "input",
        kmeans_init: bool = False,
        codebook_update: str = "gradient",
        codebook_decay: float = 0.99,
        alternating_steps: int = 0,
        alternating_kind: str = "centroid",
        alternating_lr: float | None = None,
    ):
        super().__init__()
        self.num_codes, self.code_dim, self.num_books = num_codes, code_dim, num_books
        self.cb_norm, self.affine_lr, self.affine_mode = cb_norm, affine_lr, affine_mode
        self.num_maps = num_books * (affine_groups if affine_mode == "learned" else 1)
        self.replace_freq, self.replace_policy = replace_freq, replace_policy
        self.kmeans_init = kmeans_init
        self.codebook_update, self.codebook_decay = codebook_update, codebook_decay
        self.alternating_steps, self.alternating_kind = alternating_steps, alternating_kind
        self.alternating_lr = _DEFAULT_STEP[alternating_kind] if alternating_lr is None else alternating_lr
        self.limits_steps = alternating_lr is None  # a size that was asked for is taken as it is

        dtype = at_least_float32()
        self.weight = nn.Parameter(torch.empty(num_codes, code_dim, dtype=dtype))
        self.learned_affine = affine_mode == "learned" and affine_lr > 0
        if self.learned_affine:
            self.affine_scale = nn.Parameter(torch.empty(self.num_maps, code_dim, dtype=dtype))
            self.affine_bias = nn.Parameter(torch.empty(self.num_maps, code_dim, dtype=dtype))
        self.running_affine = affine_mode == "running"
        if self.running_affine:
            for name in ("running_z_mean", "running_z_var", "running_c_mean", "running_c_var"):
                self.register_buffer(name, torch.empty(num_books, code_dim, dtype=dtype))
            self.register_buffer("running_initialized", torch.empty(num_books, dtype=torch.float32))
        self.register_buffer("unused_steps", torch.empty(num_codes, dtype=torch.long))
        self.register_buffer("initialized", torch.empty((), dtype=torch.float32))
        self.register_buffer("num_forwards", torch.empty((), dtype=torch.long))

        wanted: dict[str, torch.Tensor | None] = dict.fromkeys(
            ("momentum", "ema_count", "ema_sum", "last_counts", "samples", "num_samples")
        )
        if alternating_steps and alternating_kind == "sgd":
            wanted["momentum"] = torch.empty(num_codes, code_dim, dtype=dtype)
        if codebook_update == "ema":
            wanted["ema_count"] = torch.empty(num_codes, dtype=dtype)
            wanted["ema_sum"] = torch.empty(num_codes, code_dim, dtype=dtype)
        if replace_freq and replace_policy == "busy":
            wanted["last_counts"] = torch.empty(num_codes, dtype=dtype)
        if kmeans_init:
            wanted["samples"] = torch.empty(num_codes, code_dim, dtype=dtype)
            wanted["num_samples"] = torch.empty((), dtype=torch.long)
        self._training_only = [name for name, buffer in wanted.items() if buffer is not None]
        for name, buffer in wanted.items():
            if buffer is None:  # an empty buffer would stop accelerate, which asks every buffer for its device
                setattr(self, name, None)
            else:
                self.register_buffer(name, buffer, persistent=False)
        self.rewritten: torch.Tensor | None = None
        self._ranks_agree = False
        self._initialized_then: Unchanged | None = None
        self._clocks_then: tuple[Unchanged, LateValues] | None = None
        self.reset_parameters()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of every module; the codes of an EMA codebook never require a gradient, also when they are loaded."""
        is_ordinary = param is not None and not isinstance(param, AveragedParameter)
        if name == "weight" and self.codebook_update == "ema" and is_ordinary:
            assert param is not None
            averaged = AveragedParameter(param.data)
            averaged.__dict__.update(param.__dict__)  # transformers marks what it has loaded
            param = averaged
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Codebook:
        super()._apply(fn, recurse)
        self.weight = self.weight  # moving from the meta device makes an ordinary parameter of it
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if (
            name in _FLAGS and isinstance(value, torch.Tensor) and value.dtype == torch.bool
        ):  # loaded with `assign=True`
            number = value.float()
            number.__dict__.update(value.__dict__)
            value = number
        super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in _FLAGS:
            if prefix + name in destination:
                destination[prefix + name] = destination[prefix + name] > 0

    def reset_parameters(self) -> None:
        """Sets every parameter and buffer; those that a checkpoint has just filled are left alone.

        If the checkpoint had no codes of this shape, what it says about codes (initialized, their clocks, the moments
        and the affine map) is about others, and starts anew with them.
        """
        if not getattr(self.weight, "_is_hf_initialized", False):
            for tensor in (*self.parameters(), *self.buffers()):
                if getattr(tensor, "_is_hf_initialized", False):
                    tensor._is_hf_initialized = False  # type: ignore[attr-defined]
        init.normal_(self.weight)
        for name, buffer in self.named_buffers():
            if name == "initialized":
                init.copy_(buffer, torch.tensor(float(not self.kmeans_init)))
            elif name in ("running_z_var", "running_c_var"):
                init.ones_(buffer)
            else:
                init.zeros_(buffer)
        if self.learned_affine:
            init.zeros_(self.affine_scale)
            init.zeros_(self.affine_bias)

    # --- effective codes ---------------------------------------------------------------------------------------

    def forward(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """See `effective`. Layers call the codebook, so that hooks that bring offloaded weights back can run."""
        return self.effective(dtype)

    def effective(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Effective codes `(num_codes, code_dim)`, float32 or better, with gradients to the raw codes and the map.

        They are computed in the precision of the weight (float32 at least) whatever `dtype` they are asked for, so
        that a lookup gives the values that an input of another precision was quantized with.
        """
        codes = self._effective(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)))
        return codes if dtype is None else codes.to(torch.promote_types(codes.dtype, dtype))

    def _effective(self, raw: torch.Tensor) -> torch.Tensor:
        affine = self._affine(raw.dtype)
        if affine is not None:
            scale, bias = affine
            raw = (raw.unflatten(0, (self.num_maps, -1)) * scale + bias).flatten(0, 1)
        return normalize(raw, self.cb_norm)

    def _affine(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Scale and bias, each `(num_maps, 1, code_dim)`."""
        if self.learned_affine:
            scale, bias = 1 + self.affine_lr * self.affine_scale.to(dtype), self.affine_lr * self.affine_bias.to(dtype)
        elif self.running_affine:
            z_var, c_var = self.running_z_var.to(dtype), self.running_c_var.to(dtype)
            scale = (z_var / (c_var + _RUNNING_EPS)).sqrt()
            bias = self.running_z_mean.to(dtype) - scale * self.running_c_mean.to(dtype)
            known = self.running_initialized[:, None] > 0
            scale, bias = torch.where(known, scale, 1.0), torch.where(known, bias, 0.0)
        else:
            return None
        return scale[:, None], bias[:, None]

    def _raw(self, effective: torch.Tensor) -> torch.Tensor:
        """Raw codes whose effective codes are `effective` `(num_codes, code_dim)`."""
        raw = normalize(effective, self.cb_norm)
        affine = self._affine(raw.dtype)
        if affine is not None:
            scale, bias = affine
            # A scale that is almost zero has no inverse; the clamp keeps the raw codes finite.
            sign = torch.where(scale < 0, -1.0, 1.0)
            raw = (
                (raw.unflatten(0, (self.num_maps, -1)) - bias) / (sign * scale.abs().clamp_min(_MIN_SCALE))
            ).flatten(0, 1)
        return raw.to(self.weight.dtype)

    @torch.no_grad()
    def rewrite(self, effective: torch.Tensor, rows: torch.Tensor) -> None:
        """Makes `effective[k]` the effective code of each row k where `rows` `(num_codes,)` is true.

        The code's clock, momentum and moving averages start anew; `rewritten` says so to the owner of an optimizer.
        """
        self.overwrite(effective, rows)
        self.unused_steps.masked_fill_(rows, 0)
        if self.momentum is not None:
            self.momentum.masked_fill_(rows[:, None], 0)
        if self.ema_count is not None and self.ema_sum is not None:  # as if one vector a batch had been its own
            self.ema_count.masked_fill_(rows, 1)
            self.ema_sum.copy_(torch.where(rows[:, None], effective, self.ema_sum))
        self.rewritten = rows if self.rewritten is None else self.rewritten | rows

    @torch.no_grad()
    def overwrite(self, effective: torch.Tensor, rows: torch.Tensor) -> None:
        """As `rewrite`, leaving clocks and averages as they are."""
        self.weight.copy_(torch.where(rows[:, None], self._raw(effective), self.weight))

    # --- what the host knows ---------------------------------------------------------------------------------------

    def is_initialized(self) -> bool:
        """The value of `initialized`. Once it is true, the device is not asked again until something writes to it."""
        if self._initialized_then is None or not self._initialized_then.holds(self.initialized):
            self._initialized_then = Unchanged(self.initialized) if bool(self.initialized) else None
        return self._initialized_then is not None

    def send_clocks(self) -> None:
        """Sends to the host what `read_clocks` returns in the next forward."""
        then = Unchanged(self.unused_steps, self.num_forwards)
        self._clocks_then = then, LateValues(self._clocks())

    def read_clocks(self) -> tuple[int, bool]:
        """The longest time that a code has been unused, in forwards; and whether some book broke down.

        A book of several codes broke down if all vectors of the last training forward went to one of them. What
        `send_clocks` sent is read, unless the clocks were written to since.
        """
        then, self._clocks_then = self._clocks_then, None
        if then is None or not then[0].holds(self.unused_steps, self.num_forwards):
            then = Unchanged(), LateValues(self._clocks())
        longest, breaks_down = then[1].read()
        return longest, bool(breaks_down)

    def _clocks(self) -> torch.Tensor:
        used = (self.unused_steps == 0).unflatten(0, (self.num_books, -1))
        breaks_down = (used.shape[1] > 1) & (used.sum(1) <= 1) & (self.num_forwards > 0)
        return torch.stack([self.unused_steps.amax(), breaks_down.any().long()])

    # --- shares and uses ------------------------------------------------------------------------------------------

    def part(self, part: int, num_parts: int) -> tuple[int, int]:
        """First and one past the last code of an (almost) equal share of the codes."""
        return part * self.num_codes // num_parts, (part + 1) * self.num_codes // num_parts

    def in_first_books(self, number: int) -> torch.Tensor:
        """bool `(num_codes,)`: the codes of the first books."""
        return torch.arange(self.num_codes, device=self.weight.device) < self.part(number, self.num_books)[0]

    def count(self, index: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """This rank's uses of each code, `(num_codes,)`; an id of -1 is no use."""
        return count_ids(index, self.num_codes, dtype)

    # --- training-only state ------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint of a training run needs besides `state_dict()`."""
        return {name: getattr(self, name).detach().clone() for name in self._training_only}

    def load_training_state(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `training_state`. Raises `KeyError` when the names differ, for the settings then do."""
        if set(state) != set(self._training_only):
            raise KeyError(f"training state holds {sorted(state)}, this codebook needs {sorted(self._training_only)}")
        for name in self._training_only:
            getattr(self, name).copy_(state[name])

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, code_dim={self.code_dim}, num_books={self.num_books}"
