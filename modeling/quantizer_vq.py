# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Quantizer layers: straight-through vector quantization with the parts of Huh et al. (ICML 2023).

A layer owns its inner steps, clocks and collectives: a training loop calls it and steps an optimizer, nothing more.
`VectorQuant`, `GroupVectorQuant` and `ResidualVectorQuant` take vqtorch's arguments, with its defaults. But its
`cb_norm="l2"` is `"clip"` here, and `inplace_optimizer` is refused: docs/coming-from-vqtorch.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base_quantizer_vq import Quantizer
from .batch_norm_vq import in_backward
from .checks_quantizer_vq import check_quantizer
from .codebook_updates_vq import (
    begin_forward,
    collect_vectors,
    end_forward,
    finish_initialization,
    initialize_codes,
    initialize_for_now,
    inner_step,
    observe_moments,
    replace_due_codes,
)
from .codebook_vq import Codebook, normalize
from .codebook_words_vq import codebook_works, describe_codebook
from .distributed_vq import sum_over_ranks
from .gradient_vq import pass_gradient
from .input_norm_vq import apply_norm_layer, build_norm_layer
from .nearest_vq import nearest_code
from .quantizer_output_vq import QuantizerOutput, describe_counts
from .recent_forwards_vq import RecentForwards
from .wasserstein_vq import gaussian_wasserstein, moments_over_ranks


class VectorQuant(Quantizer):
    """Vector quantization layer.

    Per training forward: k-means initialization until done, replacement of dead codes, assignment, inner steps on the
    codebook, and the output read from the updated codes. Eval changes nothing and calls no collective.

    Args:
        feature_size: size of the quantized axis.
        num_codes: codes in total.
        beta: weight of the codebook's term of the commitment loss, in [0, 1]; the encoder's is `1 - beta`.
        sync_nu: synchronized commitment: each code also receives `sync_nu` times the task gradient of its vectors.
        affine_lr: above 0, a learned affine map `(1 + affine_lr s) c + affine_lr b` in front of the codes.
        affine_groups: contiguous blocks of codes with a map of their own; divides the codes of a codebook.
        replace_freq: a code unused for so many training forwards is replaced; 0 never. Large codebooks want more of
            them, enough to bring ten vectors for each code, and policy "kmeans". A code that an outlier has moved so
            far that one code holds everything is always replaced, see `codebook_updates_vq.lost_codes`.
        kmeans_init: initialize the codes by k-means++ of the first training vectors, before they are first read.
        norm: of the inputs: None, "l2" (unit norm), "clip" (norm at most 10), "bn", "gn", "in" (batch, group,
            instance).
        cb_norm: of the codes: None, "l2", "clip".
        dim: the axis to quantize.
        alternating_steps: inner steps on the commitment loss, for the codes alone, before each task step; 0 is off.
        alternating_kind: "sgd" or "centroid", see `codebook_updates_vq.inner_step`.
        alternating_lr: their step size; None is 0.3 for "centroid", and for "sgd" 50 or, for much used codes, less.
        affine_mode: "learned", or "running": scale and bias that match the moments of vectors and codes.
        codebook_update: "gradient", or "ema": codes are moving averages of their vectors, without gradient.
        codebook_decay: decay of these averages, in [0, 1).
        gradient_estimator: "ste" (straight-through), "rotation", "diveq" or "nsvq", see `gradient_vq.pass_gradient`.
        replace_policy: "input", "kmeans" or "busy", see `codebook_updates_vq.replace_codes`.
        wasserstein_weight: weight, at least 0, of `wasserstein_vq.gaussian_wasserstein` in the training loss.
        inplace_optimizer: not supported; `alternating_steps` does its work.

    Raises:
        ValueError: for values out of range and for combinations that make no sense.
    """

    kind = "vector"
    share = True
    quantizer_dropout: float = 0.0
    takes_nearest = True
    takes_mask = True
    changes_itself = True

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
        wasserstein_weight: float = 0.0,
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
        codebook: dict[str, Any] = {
            "affine_lr": affine_lr,
            "affine_groups": affine_groups,
            "affine_mode": affine_mode,
            "replace_freq": replace_freq,
            "replace_policy": replace_policy,
            "codebook_update": codebook_update,
            "codebook_decay": codebook_decay,
            "alternating_steps": alternating_steps,
            "alternating_kind": alternating_kind,
            "alternating_lr": alternating_lr,
            "cb_norm": cb_norm,
        }
        mine = {"beta": beta, "sync_nu": sync_nu, "norm": norm, "gradient_estimator": gradient_estimator}
        mine["wasserstein_weight"] = wasserstein_weight
        shape: dict[str, Any] = {"feature_size": feature_size, "num_codes": num_codes}
        shape |= {"groups": self.groups, "share": self.share, "quantizer_dropout": self.quantizer_dropout}
        check_quantizer(self.kind, codebook | mine | shape)
        num_books = 1 if self.share else self.groups

        self.feature_size, self.num_codes, self.dim = feature_size, num_codes, dim
        self.code_dim = feature_size // self._num_vectors
        self.beta, self.sync_nu, self.wasserstein_weight = beta, sync_nu, wasserstein_weight
        self.norm, self.gradient_estimator = norm, gradient_estimator
        self.norm_layer = build_norm_layer(norm, feature_size)
        self.codebook = Codebook(num_codes, self.code_dim, num_books, kmeans_init=kmeans_init, **codebook)
        self._recent = RecentForwards()
        self._moments: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the books' vectors
        self._held: list[torch.Tensor] = []  # vectors of this optimizer step's micro batches before the last one

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`, in float32 or better.

        Returns:
            The quantized tensor, of `z`'s shape, and a `QuantizerOutput`. Its value is that of the codes, to the bit,
            but for the noise of two estimators; its gradient goes to `z` by the gradient estimator.
        """
        x = self._prepare(z, mask)
        leading = x.shape[:-2]
        x = x.flatten(0, -3)  # (N, groups, code_dim)
        kept = None if mask is None else mask.flatten()
        codebook = self.codebook
        if not self.training:
            index = self._assign(x)[1]
            counts = codebook.count(index if kept is None else index.masked_fill(~kept[:, None], -1))
        else:
            index, counts = self._train_codebook(x.detach(), kept)

        z_q = self._read(codebook(x.dtype), index)
        size: Any = max(1, x.numel())
        if kept is not None:  # zero as their vectors are, so that they add nothing to the loss
            z_q = torch.where(kept[:, None, None], z_q, 0.0)
            size = (kept.sum() * (x.shape[1] * x.shape[2])).clamp_min(1).to(x.dtype)
        squared = (x.detach() - z_q).square().sum(-1)
        loss = squared.sum() / size
        if torch.is_grad_enabled():  # the two terms have one value
            loss = self.beta * loss + (1 - self.beta) * ((x - z_q.detach()).square().sum() / size)
        if self.training and self.wasserstein_weight > 0 and not x.is_meta:
            loss = loss + self.wasserstein_weight * self._wasserstein(x.dtype)

        quantized = pass_gradient(x, z_q, self.sync_nu, self.gradient_estimator, self.training)
        perplexity, usage = describe_counts(counts)
        output = QuantizerOutput(
            z=x.unflatten(0, leading),
            z_q=z_q.unflatten(0, leading),
            d=self._distance(x.detach(), index, squared.detach()).unflatten(0, leading),
            q=index.unflatten(0, leading),
            loss=loss,
            perplexity=perplexity,
            usage=usage,
            replaced=codebook.rewritten if self.training else None,
        )
        return self._restore(quantized.unflatten(0, leading)), output

    @torch.compiler.disable
    def _wasserstein(self, dtype: torch.dtype) -> torch.Tensor:
        """The mean over the books, of the last whole batch. Before there is one it is zero."""
        books = self.codebook(dtype).unflatten(0, (self.codebook.num_books, -1))
        terms = [gaussian_wasserstein(*moments, codes) for moments, codes in zip(self._moments, books, strict=False)]
        return sum(terms, books.new_zeros(())) / max(1, len(terms))

    @torch.compiler.disable
    def _train_codebook(self, x: torch.Tensor, kept: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """All that changes the codebook in a training forward. Returns ids and their counts over all ranks.

        It sees the vectors `x` `(N, groups, code_dim)` where `kept` `(N,)` is true. Its shapes and branches depend on
        values, and its collectives and random draws keep their order, so it stays out of compiled graphs.
        """
        if kept is None or x.is_meta:
            return self._update_codebook(x)
        found, counts = self._update_codebook(x[kept])
        index = found.new_full((len(x), *found.shape[1:]), -1)
        index[kept] = found
        return index, counts

    def _update_codebook(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codebook = self.codebook
        if in_backward():  # activation checkpointing recomputes: the same codes again, and no second update
            index = self._recent.find(x)
            index = self._assign(x)[1] if index is None else index
            return index, codebook.count(index)
        begin_forward(codebook)
        number, count = self.micro_batch
        self._held = [*self._held[:number], x]
        if number + 1 < count:
            return self._hold(x)
        size, x, self._held = len(x), torch.cat(self._held) if number else x, []
        if not x.is_meta:  # without values nothing says which codes have to be written anew
            if not codebook.is_initialized():
                self._initialize(x)
            replace_due_codes(codebook, lambda: self._vectors_of_books(x))
        levels = self._draw_levels(x)
        takes_part = codebook.in_first_books(levels) if levels < self.groups and not self.share else None
        vectors, index = self._assign(x, levels, observe=codebook.running_affine)
        if self.wasserstein_weight > 0:
            self._moments = [moments_over_ranks(each) for each in self._vectors_of_books(x)]
        steps = 1 if codebook.codebook_update == "ema" else codebook.alternating_steps
        for number in range(steps):
            if number:
                vectors, index = self._assign(x, levels)
            counts = inner_step(codebook, vectors.flatten(0, 1), index.flatten(), takes_part)
        if steps == 0:
            counts = codebook.count(index)
            sum_over_ranks(counts)
        end_forward(codebook, counts, takes_part)
        return self._remember(x[len(x) - size :], index[len(x) - size :]), counts

    def _hold(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of an early micro batch: the codes wait for the last one, but the very first step needs some to read."""
        if self.micro_batch[0] == 0 and not x.is_meta and not self.codebook.is_initialized():
            initialize_for_now(self.codebook, lambda: self._initialize(x))
        index = self._assign(x, self._draw_levels(x))[1]
        return self._remember(x, index), self.codebook.count(index)

    def _remember(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The ids of all groups, -1 where a group was left out; kept for a recomputation."""
        index = F.pad(index, (0, self.groups - index.shape[1]), value=-1)
        self._recent.add(x, index)
        return index

    # --- what group and residual layers do differently ------------------------------------------------------------

    @torch.no_grad()
    def _initialize(self, x: torch.Tensor) -> None:
        num_parts = self.codebook.num_books
        for part in range(num_parts):
            pool = collect_vectors(self.codebook, part, num_parts, x[:, part] if num_parts > 1 else x.flatten(0, 1))
            initialize_codes(self.codebook, part, num_parts, pool)
        finish_initialization(self.codebook, len(pool), self.num_codes // num_parts)

    def _vectors_of_books(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.flatten(0, 1)] if self.share else list(x.unbind(1))

    def _draw_levels(self, x: torch.Tensor) -> int:
        """How many of the groups a training batch uses, the first ones."""
        return self.groups

    @torch.no_grad()
    def _assign(
        self, x: torch.Tensor, levels: int | None = None, observe: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nearest codes of `x` `(N, groups, code_dim)`: what was compared, `(N, groups', code_dim)`, and ids.

        A residual layer takes only the first `levels`.
        """
        books = self._vectors_of_books(x)
        if observe:
            for book, vectors in enumerate(books):
                observe_moments(self.codebook, book, vectors)
        codes = self.codebook(x.dtype)
        found = []
        for book, vectors in enumerate(books):
            start, stop = self.codebook.part(book, self.codebook.num_books)
            found.append(nearest_code(vectors, codes[start:stop]) + start)
        index = found[0].unflatten(0, x.shape[:2]) if self.share else torch.stack(found, 1)
        return x, index

    def _read(self, codes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Vectors `(N, groups, code_dim)` that the ids `(N, groups)` stand for; of -1, any."""
        return F.embedding(index.clamp_min(0), codes)

    def _distance(self, x: torch.Tensor, index: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
        """`d`, given the squared distances of the output."""
        return squared.sqrt()

    # --- shapes and norms -----------------------------------------------------------------------------------------

    def _prepare(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`(..., groups, code_dim)`, normalized and contiguous; zero where the mask is false, as `z` is.

        A reshape that copies is one `_unsafe_view`, whose shape torch 2.13 forgets where a compiled graph ends with it
        (the result is an error or garbage). So copies are made by `contiguous`, and reshapes are views.
        """
        x = z.moveaxis(self.dim, -1).contiguous()
        if self.norm_layer is not None:
            x = apply_norm_layer(self.norm_layer, x, mask)
            if mask is not None:
                x = torch.where(mask[..., None], x, 0.0)
        x = x.unflatten(-1, (self._num_vectors, self.code_dim))
        return normalize(x, self.norm)

    @property
    def _num_vectors(self) -> int:
        return self.groups

    def _restore(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(-2).moveaxis(-1, self.dim)

    # --- for users ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def get_codebook(self) -> torch.Tensor:
        """Effective codes, `(num_codes, code_dim)`, float32 or better; a copy."""
        return self.codebook().clone()

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Quantized vectors of the ids `q` `(..., groups)` (any integer dtype), in the layout of the layer's output.

        In eval they equal the layer's output exactly, in float32 or better.

        Raises:
            ValueError: `q` is not of an integer type, has another last axis, or holds ids outside [0, num_codes).
        """
        q = self.check_ids(q)
        leading = q.shape[:-1]
        vectors = self._read(self.codebook(), q.reshape(-1, q.shape[-1]))
        return self._restore(vectors.unflatten(0, leading or (1,)))

    def unquantized(self, z: torch.Tensor) -> torch.Tensor:
        """The input with the layer's norm: the vectors that are compared with the codes."""
        return self._restore(self._prepare(z.to(torch.promote_types(z.dtype, torch.float32)))).to(z.dtype)

    def code_parameters(self) -> list[nn.Parameter]:
        """The raw codes and their learned affine map."""
        return list(self.codebook.parameters())

    def rewritten_rows(self) -> dict[nn.Parameter, torch.Tensor]:
        """The codes that the last training forward initialized or replaced, as a mask over the codebook's rows."""
        rows = None if self.is_frozen() else self.codebook.rewritten
        return {} if rows is None else {self.codebook.weight: rows.clone()}

    def take_over(self, source: Quantizer, rewritten: Mapping[nn.Parameter, torch.Tensor]) -> None:
        """Makes rewritten codes of `source` this layer's own as they are used, behind its affine map, another one."""
        assert isinstance(source, VectorQuant)
        rows = rewritten.get(source.codebook.weight)
        if rows is not None:
            self.codebook.overwrite(source.codebook.effective(), rows)

    def training_state(self) -> dict[str, torch.Tensor]:
        """Training-only state (momentum, moving averages, collected samples) that `state_dict()` leaves out."""
        return self.codebook.training_state()

    def load_training_state(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `training_state`."""
        self.codebook.load_training_state(state)

    @classmethod
    def card_words(cls, config: Any) -> str:
        """The parts of the quantizer that are on, in words."""
        return describe_codebook(cls.kind, config)

    @classmethod
    def card_loss(cls, config: Any) -> str:
        """With the codebook's share."""
        return f"{super().card_loss(config)} (codebook share beta {config.beta:g})"

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """The works whose methods are on."""
        return codebook_works(cls.kind, config)

    def extra_repr(self) -> str:
        return f"feature_size={self.feature_size}, num_codes={self.num_codes}, groups={self.groups}, dim={self.dim}"


__all__ = ["VectorQuant"]
