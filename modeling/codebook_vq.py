# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The codebook: raw codes, the affine map in front of them, and all that keeps codes in use.

The effective code, the one that vectors are compared with, is `normalise(affine(raw))`. Whatever is written as an
effective code (k-means, replacement, centroid and EMA steps) goes through the inverse of the affine map.

Formulas: Huh et al., "Straightening Out the Straight-Through Estimator", ICML 2023, unless said otherwise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .distributed_vq import broadcast_from_first, decided_by_first, gather_sample, is_distributed, sum_over_ranks
from .kmeans_vq import kmeans, make_distinct

MAX_NORM = 10.0
_MIN_SCALE = 1e-4
_RUNNING_EPS = 1e-8
_RUNNING_MOMENTUM = 0.1
_SGD_MOMENTUM = 0.9
_REPLACEMENT_NOISE = 0.01
_KMEANS_SAMPLES_PER_CODE = 16
_DEFAULT_STEP = {"sgd": 50.0, "centroid": 0.3}


def normalise(vectors: torch.Tensor, norm: str | None) -> torch.Tensor:
    """`"l2"`: unit norm along the last axis; `"clip"`: norm at most 10; None: as they are."""
    if norm == "l2":
        return F.normalize(vectors, dim=-1)
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
        rewritten: bool `(num_codes,)`, the codes that the last training forward initialised or replaced; or None.
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

        self.weight = nn.Parameter(torch.empty(num_codes, code_dim), requires_grad=codebook_update == "gradient")
        self.learned_affine = affine_mode == "learned" and affine_lr > 0
        if self.learned_affine:
            self.affine_scale = nn.Parameter(torch.empty(self.num_maps, code_dim))
            self.affine_bias = nn.Parameter(torch.empty(self.num_maps, code_dim))
        self.running_affine = affine_mode == "running"
        if self.running_affine:
            for name in ("running_z_mean", "running_z_var", "running_c_mean", "running_c_var"):
                self.register_buffer(name, torch.empty(num_books, code_dim))
            self.register_buffer("running_initialized", torch.empty(num_books, dtype=torch.bool))
        self.register_buffer("unused_steps", torch.empty(num_codes, dtype=torch.long))
        self.register_buffer("initialized", torch.empty((), dtype=torch.bool))
        self.register_buffer("num_forwards", torch.empty((), dtype=torch.long))

        wanted: dict[str, torch.Tensor | None] = dict.fromkeys(
            ("momentum", "ema_count", "ema_sum", "last_counts", "samples", "num_samples")
        )
        if alternating_steps and alternating_kind == "sgd":
            wanted["momentum"] = torch.empty(num_codes, code_dim)
        if codebook_update == "ema":
            wanted["ema_count"], wanted["ema_sum"] = torch.empty(num_codes), torch.empty(num_codes, code_dim)
        if replace_freq and replace_policy == "busy":
            wanted["last_counts"] = torch.empty(num_codes)
        if kmeans_init:
            wanted["samples"] = torch.empty(num_codes, code_dim)
            wanted["num_samples"] = torch.empty((), dtype=torch.long)
        self._training_only = [name for name, buffer in wanted.items() if buffer is not None]
        for name, buffer in wanted.items():
            self.register_buffer(name, buffer, persistent=False)
        self.rewritten: torch.Tensor | None = None
        self._ranks_agree = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets every parameter and buffer; those that a checkpoint has just filled are left alone."""
        init.normal_(self.weight)
        for name, buffer in self.named_buffers():
            if name == "initialized":
                init.copy_(buffer, torch.tensor(not self.kmeans_init))
            elif name in ("running_z_var", "running_c_var"):
                init.ones_(buffer)
            else:
                init.zeros_(buffer)
        if self.learned_affine:
            init.zeros_(self.affine_scale)
            init.zeros_(self.affine_bias)

    # --- effective codes ---------------------------------------------------------------------------------------

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
        return normalise(raw, self.cb_norm)

    def _affine(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Scale and bias, each `(num_maps, 1, code_dim)`."""
        if self.learned_affine:
            scale, bias = 1 + self.affine_lr * self.affine_scale.to(dtype), self.affine_lr * self.affine_bias.to(dtype)
        elif self.running_affine:
            z_var, c_var = self.running_z_var.to(dtype), self.running_c_var.to(dtype)
            scale = (z_var / (c_var + _RUNNING_EPS)).sqrt()
            bias = self.running_z_mean.to(dtype) - scale * self.running_c_mean.to(dtype)
            known = self.running_initialized[:, None]
            scale, bias = torch.where(known, scale, 1.0), torch.where(known, bias, 0.0)
        else:
            return None
        return scale[:, None], bias[:, None]

    def _raw(self, effective: torch.Tensor) -> torch.Tensor:
        """Raw codes whose effective codes are `effective` `(num_codes, code_dim)`."""
        raw = normalise(effective, self.cb_norm)
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

    # --- a training forward, in this order; every rank calls each of these, also with an empty batch ---------------

    @torch.no_grad()
    def begin(self) -> None:
        """Opens a training forward; ranks that were built with different seeds take over the codebook of rank 0."""
        self.rewritten = None
        if not self._ranks_agree and is_distributed():
            broadcast_from_first(*(tensor.data for tensor in (*self.parameters(), *self.buffers())))
            self._ranks_agree = True

    @torch.no_grad()
    def collect(self, part: int, num_parts: int, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors `(N, code_dim)` of all ranks, and those kept before, to initialise a share of the codes with.

        When there are fewer than codes in the share, they are kept for the next batch. Infinite and NaN are left out.
        """
        assert self.samples is not None and self.num_samples is not None
        start, stop = self.part(part, num_parts)
        kept = self.samples[start : start + min(int(self.num_samples), stop - start)].to(vectors.dtype)
        pool = torch.cat([kept, gather_sample(_finite(vectors), _KMEANS_SAMPLES_PER_CODE * (stop - start))])
        if len(pool) < stop - start:
            self.samples[start : start + len(pool)] = pool
        return pool

    @torch.no_grad()
    def initialise(self, part: int, num_parts: int, pool: torch.Tensor) -> torch.Tensor:
        """Makes the `part`-th of `num_parts` equal shares of the codes the k-means centroids of `pool`.

        A pool smaller than the share stands in as it is, among jittered copies. Call `finish_initialise` after the
        last part. Returns the part's effective codes.
        """
        start, stop = self.part(part, num_parts)
        size = stop - start
        if len(pool) == 0:
            return self.effective(pool.dtype)[start:stop]
        if len(pool) < size:

            def choose() -> torch.Tensor:
                extra = torch.randint(len(pool), (size - len(pool),), device=pool.device)
                return make_distinct(torch.cat([pool, pool[extra]]))
        else:

            def choose() -> torch.Tensor:
                return kmeans(pool, size)

        codes = self.effective(pool.dtype).detach()
        codes[start:stop] = decided_by_first(choose, like=codes[start:stop])
        rows = torch.zeros_like(self.unused_steps, dtype=torch.bool)
        rows[start:stop] = True
        self.rewrite(codes, rows)
        return self.effective(pool.dtype)[start:stop]

    @torch.no_grad()
    def finish_initialise(self, num_collected: int, size: int) -> None:
        """Ends initialisation if the vectors collected for a share of `size` codes were enough."""
        assert self.num_samples is not None
        self.initialized.fill_(num_collected >= size)
        self.num_samples.fill_(0 if num_collected >= size else num_collected)

    def part(self, part: int, num_parts: int) -> tuple[int, int]:
        """First and one past the last code of an (almost) equal share of the codes."""
        return part * self.num_codes // num_parts, (part + 1) * self.num_codes // num_parts

    def dead(self) -> torch.Tensor | None:
        """bool `(num_codes,)`: codes due for replacement; None if there are none."""
        if not self.replace_freq:
            return None
        dead = self.unused_steps >= self.replace_freq
        return dead if bool(dead.any()) else None

    @torch.no_grad()
    def replace(self, dead: torch.Tensor, book: int, vectors: torch.Tensor) -> None:
        """Replaces the dead codes of one book, by vectors `(N, code_dim)` that this book quantizes.

        Policies: "input", random vectors; "kmeans", their centroids; "busy", copies of the codes in use. The first
        and the last get 0.01 * norm * N(0, I) of noise. With fewer vectors than dead codes the others wait.
        """
        start, stop = self.part(book, self.num_books)
        rows = dead[start:stop].nonzero().squeeze(1) + start
        codes = self.effective(vectors.dtype).detach()
        if self.replace_policy == "busy":
            assert self.last_counts is not None
            counts = self.last_counts[start:stop]
            pool = codes[start:stop][counts > 0]
            weights = counts[counts > 0]
        else:
            limit = len(rows) * (_KMEANS_SAMPLES_PER_CODE if self.replace_policy == "kmeans" else 1)
            pool = gather_sample(_finite(vectors), limit)
            rows = rows[: len(pool)]
        if len(rows) == 0 or len(pool) == 0:
            return

        def choose() -> torch.Tensor:
            if self.replace_policy == "kmeans":
                return kmeans(pool, len(rows))
            if self.replace_policy == "busy":
                new = pool[torch.multinomial(weights, len(rows), replacement=True)]
            else:
                new = pool[torch.randperm(len(pool), device=pool.device)[: len(rows)]]
            return new + _REPLACEMENT_NOISE * new.norm(dim=-1, keepdim=True) * torch.randn_like(new)

        codes[rows] = decided_by_first(choose, like=codes[rows])
        mask = torch.zeros_like(dead)
        mask[rows] = True
        self.rewrite(codes, mask)

    @torch.no_grad()
    def observe(self, book: int, vectors: torch.Tensor) -> None:
        """Running affine map: takes in the moments of the vectors `(N, code_dim)` that this book quantizes.

        Biased variances over all ranks; momentum 0.1; the first batch is copied.
        """
        count = vectors.new_full((1,), vectors.shape[0])
        total = vectors.sum(0)
        sum_over_ranks(count, total)
        mean = total / count.clamp_min(1)
        squares = (vectors - mean).square().sum(0)
        sum_over_ranks(squares)
        start, stop = self.part(book, self.num_books)
        raw = self.weight[start:stop].to(vectors.dtype)
        seen = (count > 0) & squares.isfinite().all()
        mean, squares = torch.where(seen, mean, 0.0), torch.where(seen, squares, 0.0)
        momentum = torch.where(self.running_initialized[book], _RUNNING_MOMENTUM, 1.0) * seen
        for name, value in (
            ("z_mean", mean),
            ("z_var", squares / count.clamp_min(1)),
            ("c_mean", raw.mean(0)),
            ("c_var", raw.var(0, correction=0)),
        ):
            buffer = getattr(self, f"running_{name}")[book]
            buffer.lerp_(value.to(buffer.dtype), momentum.to(buffer.dtype))
        self.running_initialized[book] |= seen.squeeze()

    @torch.no_grad()
    def step(self, vectors: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """One inner step on the commitment loss, for the codes alone; assignments are kept.

        - "sgd": gradient step with momentum 0.9 on `mean((c[index] - sg z)^2)`, through the affine map to raw codes;
        - "centroid": each used code moves the fraction `alternating_lr` of the way to the mean of its vectors;
        - EMA codebook (van den Oord et al. 2017): each used code becomes the ratio of two moving averages, of the sum
          and of the number of its vectors. Both start at zero, so the ratio needs no other correction of its bias.

        Args:
            vectors: `(N, code_dim)`.
            index: int64 `(N,)`, global ids.

        Returns:
            Number of vectors of each code over all ranks, `(num_codes,)`, in the vectors' dtype.
        """
        counts = self.count(index, vectors.dtype)
        sums = vectors.new_zeros(self.num_codes, self.code_dim).index_add_(0, index, vectors)
        sum_over_ranks(counts, sums)
        # A vector that is not finite moves no code: the loss will tell, and the codebook is still good then.
        finite = sums.isfinite().all(1)
        used = (counts > 0) & finite
        sums = torch.where(finite[:, None], sums, 0.0)
        if self.ema_count is not None and self.ema_sum is not None:
            # Loaded without its averages, a trained codebook counts as one vector a batch for each code.
            lost = (self.num_forwards > 0) & (self.ema_count.sum() == 0)
            self.ema_count.copy_(torch.where(lost, 1.0, self.ema_count))
            self.ema_sum.copy_(torch.where(lost, self.effective(vectors.dtype), self.ema_sum))
            self.ema_count.lerp_(counts.to(self.ema_count.dtype), 1 - self.codebook_decay)
            self.ema_sum.lerp_(sums.to(self.ema_sum.dtype), 1 - self.codebook_decay)
            self.overwrite((self.ema_sum / self.ema_count.clamp_min(1e-12)[:, None]).to(vectors.dtype), used)
        elif self.alternating_kind == "centroid":
            codes = self.effective(vectors.dtype)
            self.overwrite(codes.lerp(sums / counts.clamp_min(1)[:, None], self.alternating_lr), used)
        else:
            assert self.momentum is not None
            with torch.enable_grad():
                raw = self.weight.detach().to(vectors.dtype).requires_grad_()
                codes = self._effective(raw)
            size = (counts.sum() * self.code_dim).clamp_min(1)
            gradient = torch.where(finite[:, None], counts[:, None] * codes.detach() - sums, 0.0) * (2 / size)
            (gradient,) = torch.autograd.grad(codes, raw, gradient)
            self.momentum.mul_(_SGD_MOMENTUM).add_(gradient)
            self.weight.sub_(self.alternating_lr * self.momentum)
        return counts

    @torch.no_grad()
    def end(self, counts: torch.Tensor) -> None:
        """Closes a training forward: `counts` `(num_codes,)` are the uses of each code over all ranks."""
        self.num_forwards.add_(1)
        self.unused_steps.add_(1).masked_fill_(counts > 0, 0)
        if self.last_counts is not None:
            self.last_counts.copy_(counts)

    def count(self, index: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """This rank's uses of each code, `(num_codes,)`."""
        index = index.flatten()
        ones = torch.ones_like(index, dtype=dtype)
        return torch.zeros(self.num_codes, dtype=dtype, device=index.device).index_add_(0, index, ones)

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


def _finite(vectors: torch.Tensor) -> torch.Tensor:
    """The rows without infinite or NaN entries."""
    return vectors.detach()[vectors.isfinite().all(-1)]
