# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Quantizer layers: straight-through vector quantization with the parts of Huh et al. (ICML 2023).

A layer owns its inner steps, clocks and collectives: a training loop calls it and steps an optimizer, nothing more.
`VectorQuant`, `GroupVectorQuant` and `ResidualVectorQuant` take the arguments and defaults of vqtorch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from .batch_norm_vq import BatchNorm1d, in_backward
from .codebook_vq import Codebook, normalise
from .distributed_vq import sum_over_ranks
from .gradient_vq import pass_gradient
from .nearest_vq import nearest_code

# Forwards before their backward whose ids are kept, in case activation checkpointing runs them again.
_REMEMBERED_FORWARDS = 16
_NORMS = (None, "l2", "clip", "bn", "gn", "in")


@dataclass
class QuantizerOutput(ModelOutput):
    """What a quantizer layer returns beside the quantized tensor. `...` are the axes of the input without `dim`.

    Args:
        z: the (normalised) input vectors, `(..., groups, code_dim)`, float32 or better; one group for residual layers.
        z_q: their codes, same shape; with gradient to the codebook, not to `z`.
        d: Euclidean distance of each vector to its code, `(..., groups)`; of a residual layer, after each level.
        q: ids of the codes, int64 `(..., groups)`; ids are global, with separate codebooks group g's start at
            `g * num_codes / groups`. None under `no_vq`.
        loss: `(1 - beta) mean((z - sg z_q)^2) + beta mean((sg z - z_q)^2)`, a scalar.
        perplexity: exponential of the entropy of the batch's code frequencies, in `[1, num_codes]`, a scalar. In
            training over all ranks, in eval over this one; 0 for an empty batch.
        usage: share of the codes used by the batch, in `[0, 1]`, a scalar; over the ranks as `perplexity`.
        replaced: bool `(num_codes,)`, the codes initialised or replaced at the start of this forward; None if none.
    """

    z: torch.Tensor | None = None
    z_q: torch.Tensor | None = None
    d: torch.Tensor | None = None
    q: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    usage: torch.Tensor | None = None
    replaced: torch.Tensor | None = None


class VectorQuant(nn.Module):
    """Vector quantization layer.

    Per training forward: k-means initialisation until done, replacement of dead codes, assignment, inner steps on the
    codebook, and the output read from the updated codes. Eval changes nothing and calls no collective.

    Args:
        feature_size: size of the quantized axis.
        num_codes: codes in total.
        beta: weight of the codebook's term of the commitment loss, in [0, 1]; the encoder's is `1 - beta`.
        sync_nu: synchronized commitment: each code also receives `sync_nu` times the task gradient of its vectors.
        affine_lr: above 0, a learned affine map `(1 + affine_lr s) c + affine_lr b` in front of the codes.
        affine_groups: contiguous blocks of codes with a map of their own; divides the codes of a codebook.
        replace_freq: a code unused for so many training forwards is replaced; 0 never. Large codebooks want more of
            them, enough to bring ten vectors for each code, and policy "kmeans".
        kmeans_init: initialise the codes by k-means++ of the first training vectors, before they are first read.
        norm: of the inputs: None, "l2" (unit norm), "clip" (norm at most 10), "bn", "gn", "in" (batch, group,
            instance).
        cb_norm: of the codes: None, "l2", "clip".
        dim: the axis to quantize.
        alternating_steps: inner steps on the commitment loss, for the codes alone, before each task step; 0 is off.
        alternating_kind: "sgd" or "centroid", see `Codebook.step`.
        alternating_lr: their step size; None is 50 for "sgd", 0.3 for "centroid".
        affine_mode: "learned", or "running": scale and bias that match the moments of vectors and codes.
        codebook_update: "gradient", or "ema": codes are moving averages of their vectors, without gradient.
        codebook_decay: decay of these averages, in [0, 1).
        gradient_estimator: "ste" (straight-through) or "rotation" (Fifty et al. 2024).
        replace_policy: "input", "kmeans" or "busy", see `Codebook.replace`.
        inplace_optimizer: not supported; `alternating_steps` does its work.

    Raises:
        ValueError: for values out of range and for combinations that make no sense.
    """

    groups = 1
    share = True

    def __init__(
        self,
        feature_size: int,
        num_codes: int,
        beta: float = 0.95,
        sync_nu: float = 0.0,
        affine_lr: float = 0.0,
        affine_groups: int = 1,
        replace_freq: int = 0,
        kmeans_init: bool = False,
        norm: str | None = None,
        cb_norm: str | None = None,
        dim: int = 1,
        alternating_steps: int = 0,
        alternating_kind: str = "centroid",
        alternating_lr: float | None = None,
        affine_mode: str = "learned",
        codebook_update: str = "gradient",
        codebook_decay: float = 0.99,
        gradient_estimator: str = "ste",
        replace_policy: str = "input",
        inplace_optimizer: None = None,
    ):
        super().__init__()
        if inplace_optimizer is not None:
            raise ValueError(
                "inplace_optimizer is not supported: use alternating_steps=1, alternating_kind='sgd' (SGD with "
                "momentum 0.9, step size alternating_lr), which also works with affine_lr, sync_nu and replace_freq"
            )
        if "l2c" in (norm, cb_norm):
            raise ValueError(
                "'l2c' is ambiguous: it meant clipping for norm and unit norm for cb_norm; "
                "use 'l2' for unit norm, 'clip' for a norm of at most 10"
            )
        norm, cb_norm = (None if value == "none" else value for value in (norm, cb_norm))
        _check_choice("norm", norm, _NORMS)
        _check_choice("cb_norm", cb_norm, (None, "l2", "clip"))
        _check_choice("alternating_kind", alternating_kind, ("sgd", "centroid"))
        _check_choice("affine_mode", affine_mode, ("learned", "running"))
        _check_choice("codebook_update", codebook_update, ("gradient", "ema"))
        _check_choice("gradient_estimator", gradient_estimator, ("ste", "rotation"))
        _check_choice("replace_policy", replace_policy, ("input", "kmeans", "busy"))
        if not 0 <= beta <= 1:
            raise ValueError(
                f"beta must be in [0, 1], got {beta}: it weights the codebook's term, 1 - beta the encoder's"
            )
        for name, value in (
            ("feature_size", feature_size),
            ("num_codes", num_codes),
            ("affine_groups", affine_groups),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, number in (
            ("sync_nu", sync_nu),
            ("affine_lr", affine_lr),
            ("replace_freq", replace_freq),
            ("alternating_steps", alternating_steps),
            ("alternating_lr", alternating_lr or 0),
        ):
            if number < 0:
                raise ValueError(f"{name} must not be negative, got {number}")
        if not 0 <= codebook_decay < 1:
            raise ValueError(f"codebook_decay must be in [0, 1), got {codebook_decay}")
        if codebook_update == "ema" and sync_nu > 0:
            raise ValueError(
                "sync_nu needs codebook_update='gradient': EMA codes receive no gradient, so no task gradient"
            )
        if codebook_update == "ema" and alternating_steps > 0:
            raise ValueError(
                "alternating_steps needs codebook_update='gradient': an EMA codebook already moves to its vectors"
            )
        if affine_mode == "running" and affine_groups != 1:
            raise ValueError(
                "affine_groups needs affine_mode='learned': running moments are those of a whole codebook"
            )
        num_books = 1 if self.share else self.groups
        if num_codes % num_books:
            raise ValueError(f"num_codes ({num_codes}) must be divisible by the {num_books} separate codebooks")
        if num_codes // num_books % affine_groups:
            raise ValueError(
                f"affine_groups ({affine_groups}) must divide the {num_codes // num_books} codes of a codebook"
            )

        self.feature_size, self.num_codes, self.dim = feature_size, num_codes, dim
        self.beta, self.sync_nu = beta, sync_nu
        self.norm, self.gradient_estimator = norm, gradient_estimator
        self.enabled = True
        self.norm_layer: nn.Module | None = None
        if norm == "bn":
            self.norm_layer = BatchNorm1d(feature_size)
        elif norm == "gn":
            self.norm_layer = nn.GroupNorm(math.gcd(32, feature_size), feature_size, eps=1e-6)
        elif norm == "in":
            self.norm_layer = nn.InstanceNorm1d(feature_size)
        self.codebook = Codebook(
            num_codes,
            self.code_dim,
            num_books,
            cb_norm=cb_norm,
            affine_lr=affine_lr,
            affine_groups=affine_groups,
            affine_mode=affine_mode,
            replace_freq=replace_freq,
            replace_policy=replace_policy,
            kmeans_init=kmeans_init,
            codebook_update=codebook_update,
            codebook_decay=codebook_decay,
            alternating_steps=alternating_steps,
            alternating_kind=alternating_kind,
            alternating_lr=alternating_lr,
        )
        self._recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=_REMEMBERED_FORWARDS)

    @property
    def code_dim(self) -> int:
        """Size of a code."""
        return self.feature_size

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`, of any floating dtype, with `feature_size` along `dim` and any other axes.

        Returns:
            The quantized tensor, of `z`'s shape and dtype, and a `QuantizerOutput`. Its value is that of the codes, to
            the bit (in `z`'s dtype); its gradient goes to `z` by the gradient estimator.
        """
        if z.ndim < 2 or z.shape[self.dim] != self.feature_size:
            raise ValueError(
                f"expected at least 2 axes with feature_size={self.feature_size} along dim={self.dim}, "
                f"got shape {tuple(z.shape)}"
            )
        if not z.is_floating_point():
            raise ValueError(f"expected a floating point tensor, got {z.dtype}")
        if not self.enabled:
            loss = z.new_zeros((), dtype=torch.promote_types(z.dtype, torch.float32))
            if torch.is_grad_enabled() and self.training:  # several processes await a gradient of every parameter
                loss = loss + sum(weight.flatten()[:0].sum() for weight in self.parameters() if weight.requires_grad)
            return z, QuantizerOutput(loss=loss)
        with torch.autocast(z.device.type, enabled=False):
            return self._quantize(z)

    def _quantize(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        x = self._prepare(z)
        leading = x.shape[:-2]
        x = x.flatten(0, -3)  # (N, groups, code_dim)
        codebook = self.codebook
        if not self.training:
            index = self._assign(x)[1]
            counts = codebook.count(index)
        elif in_backward():
            # Recomputed by activation checkpointing: the same codes again, and no second update.
            index = self._recall(x.detach())
            counts = codebook.count(index)
        else:
            index, counts = self._train_codebook(x.detach())
            self._recent.append((_probe(x.detach()), index))

        z_q = self._read(codebook.effective(x.dtype), index)
        squared = (x.detach() - z_q).square().sum(-1)
        size = max(1, x.numel())
        loss = squared.sum() / size
        if torch.is_grad_enabled():  # the two terms have one value
            loss = self.beta * loss + (1 - self.beta) * ((x - z_q.detach()).square().sum() / size)

        quantized = pass_gradient(x, z_q, self.sync_nu, self.gradient_estimator)
        frequency = counts / counts.sum().clamp_min(1)
        output = QuantizerOutput(
            z=x.unflatten(0, leading),
            z_q=z_q.unflatten(0, leading),
            d=self._distance(x.detach(), index, squared.detach()).unflatten(0, leading),
            q=index.unflatten(0, leading),
            loss=loss,
            perplexity=(-torch.xlogy(frequency, frequency).sum()).exp() * (counts.sum() > 0),
            usage=(counts > 0).to(frequency.dtype).mean(),
            replaced=codebook.rewritten if self.training else None,
        )
        return self._restore(quantized.unflatten(0, leading)).to(z.dtype), output

    def _train_codebook(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All that changes the codebook in a training forward. Returns ids and their counts over all ranks."""
        codebook = self.codebook
        codebook.begin()
        if not codebook.initialized:
            self._initialise(x)
        dead = codebook.dead()
        if dead is not None:
            for book, vectors in enumerate(self._vectors_of_books(x)):
                codebook.replace(dead, book, vectors)
        vectors, index = self._assign(x, observe=codebook.running_affine)
        steps = 1 if codebook.codebook_update == "ema" else codebook.alternating_steps
        for step in range(steps):
            if step:
                vectors, index = self._assign(x)
            counts = codebook.step(vectors.flatten(0, 1), index.flatten())
        if steps == 0:
            counts = codebook.count(index)
            sum_over_ranks(counts)
        codebook.end(counts)
        return index, counts

    def _recall(self, x: torch.Tensor) -> torch.Tensor:
        """Ids that a recent training forward gave to `x`; found anew if it is forgotten."""
        probe = _probe(x)
        for seen, index in reversed(self._recent):
            if torch.equal(seen, probe):
                return index
        return self._assign(x)[1]

    # --- what group and residual layers do differently ------------------------------------------------------------

    def _initialise(self, x: torch.Tensor) -> None:
        num_parts = self.codebook.num_books
        for part in range(num_parts):
            pool = self.codebook.collect(part, num_parts, x[:, part] if num_parts > 1 else x.flatten(0, 1))
            self.codebook.initialise(part, num_parts, pool)
        self.codebook.finish_initialise(len(pool), self.num_codes // num_parts)

    def _vectors_of_books(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.flatten(0, 1)] if self.share else list(x.unbind(1))

    @torch.no_grad()
    def _assign(self, x: torch.Tensor, observe: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Nearest codes of `x` `(N, groups, code_dim)`: what was compared, `(N, groups', code_dim)`, and ids."""
        books = self._vectors_of_books(x)
        if observe:
            for book, vectors in enumerate(books):
                self.codebook.observe(book, vectors)
        codes = self.codebook.effective(x.dtype)
        found = []
        for book, vectors in enumerate(books):
            start, stop = self.codebook.part(book, self.codebook.num_books)
            found.append(nearest_code(vectors, codes[start:stop]) + start)
        index = found[0].unflatten(0, x.shape[:2]) if self.share else torch.stack(found, 1)
        return x, index

    def _read(self, codes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Vectors `(N, groups, code_dim)` that the ids `(N, groups)` stand for."""
        return F.embedding(index, codes)

    def _distance(self, x: torch.Tensor, index: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
        """`d`, given the squared distances of the output."""
        return squared.sqrt()

    # --- shapes and norms -----------------------------------------------------------------------------------------

    def _prepare(self, z: torch.Tensor) -> torch.Tensor:
        """`(..., groups, code_dim)` in float32 or better, normalised."""
        x = z.moveaxis(self.dim, -1).to(torch.promote_types(z.dtype, torch.float32))
        if self.norm_layer is not None:
            x = self._apply_norm_layer(x)
        x = x.unflatten(-1, (self._num_vectors, self.code_dim))
        return normalise(x, self.norm)

    @property
    def _num_vectors(self) -> int:
        return self.groups

    def _apply_norm_layer(self, x: torch.Tensor) -> torch.Tensor:
        assert self.norm_layer is not None
        shape, dtype = x.shape, x.dtype
        if x.numel():
            weight = getattr(self.norm_layer, "weight", None)
            x = x.reshape(shape[0], -1, shape[-1]).transpose(1, 2)
            x = self.norm_layer(x if weight is None else x.to(weight.dtype)).transpose(1, 2).reshape(shape).to(dtype)
        else:  # its parameters stay part of the graph, for ranks with data wait for their gradients
            for parameter in self.norm_layer.parameters():
                x = x + 0 * parameter.sum()
        if self.training and isinstance(self.norm_layer, BatchNorm1d) and not in_backward():
            self.norm_layer.average_over_ranks()
        return x

    def _restore(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(-2).moveaxis(-1, self.dim)

    # --- for users ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def get_codebook(self) -> torch.Tensor:
        """Effective codes, `(num_codes, code_dim)`, float32 or better; a copy."""
        return self.codebook.effective().clone()

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Quantized vectors of the ids `q` `(..., groups)` (any integer dtype), in the layout of the layer's output.

        In eval they equal the layer's output exactly, in float32 or better.

        Raises:
            ValueError: `q` is not of an integer type, has another last axis, or holds ids outside [0, num_codes).
        """
        if q.is_floating_point() or q.is_complex() or q.dtype == torch.bool:
            raise ValueError(f"expected integer ids, got {q.dtype}")
        if q.ndim == 0 or q.shape[-1] != self.groups:
            raise ValueError(f"expected ids of shape (..., {self.groups}), got {tuple(q.shape)}")
        q = q.long()
        if not torch.compiler.is_compiling() and q.numel() and not 0 <= int(q.min()) <= int(q.max()) < self.num_codes:
            raise ValueError(f"ids must be in [0, {self.num_codes}), got {int(q.min())} to {int(q.max())}")
        leading = q.shape[:-1]
        vectors = self._read(self.codebook.effective(), q.reshape(-1, self.groups))
        return self._restore(vectors.unflatten(0, leading or (1,)))

    def training_state(self) -> dict[str, torch.Tensor]:
        """Training-only state (momentum, moving averages, collected samples) that `state_dict()` leaves out."""
        return self.codebook.training_state()

    def load_training_state(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `training_state`."""
        self.codebook.load_training_state(state)

    def extra_repr(self) -> str:
        return f"feature_size={self.feature_size}, num_codes={self.num_codes}, groups={self.groups}, dim={self.dim}"


class GroupVectorQuant(VectorQuant):
    """Splits the features into `groups` equal parts and quantizes each, with one codebook or `groups` separate ones.

    Args:
        groups: divides `feature_size`.
        share: one codebook for all groups; else `num_codes` are split evenly.
        **kwargs: see `VectorQuant`.
    """

    def __init__(self, feature_size: int, num_codes: int, groups: int = 1, share: bool = True, **kwargs):
        if groups < 1 or feature_size % groups:
            raise ValueError(f"groups ({groups}) must divide feature_size ({feature_size})")
        self.groups, self.share = groups, share
        super().__init__(feature_size, num_codes, **kwargs)

    @property
    def code_dim(self) -> int:
        return self.feature_size // self.groups


def _probe(x: torch.Tensor) -> torch.Tensor:
    """A few entries of `x` and its size, by which a recomputed input is known again."""
    flat = x.flatten()
    return torch.cat([flat[:: max(1, flat.numel() // 256)], flat.new_tensor([flat.numel()])])


def _check_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def get_vq_layers(model: nn.Module) -> list[VectorQuant]:
    """All quantizer layers of a model, in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, VectorQuant)]


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
