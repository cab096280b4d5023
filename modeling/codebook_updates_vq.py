# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What changes a codebook in training: initialization, replacement, running moments, inner steps.

A training forward calls these functions in the order in which they stand here. Every rank calls each of them, also
with an empty batch, since they reduce and broadcast what has to be equal on all ranks.

Formulas: Huh et al., "Straightening Out the Straight-Through Estimator", ICML 2023, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .codebook_vq import Codebook
from .distributed_vq import broadcast_from_first, decided_by_first, gather_sample, is_distributed, sum_over_ranks
from .kmeans_vq import kmeans, make_distinct

_RUNNING_MOMENTUM = 0.1
_SGD_MOMENTUM = 0.9
# An inner step of the default size moves a code at most so many times the way to the mean of its vectors, before
# momentum. Tried with 1 to 1,024 codes of 1 to 32 dimensions: at 2 few codes stay in use, from 3 on some runs diverge.
_MAX_CHANGE = 1.0
# A code so many times farther from the vectors than they and most codes spread is lost, if one code holds everything.
# With k-means and one outlier, use stayed at 97% up to outliers of 3e4 and fell from 1e5 on.
_LOST = 100.0
_REPLACEMENT_NOISE = 0.01
_KMEANS_SAMPLES_PER_CODE = 16


@torch.no_grad()
def begin_forward(codebook: Codebook) -> None:
    """Opens a training forward; ranks that were built with different seeds take over the codebook of rank 0."""
    codebook.rewritten = None
    if not codebook._ranks_agree and is_distributed():
        broadcast_from_first(*(tensor.data for tensor in (*codebook.parameters(), *codebook.buffers())))
        codebook._ranks_agree = True
        codebook._initialized_then = codebook._clocks_then = None  # written to without a trace


@torch.no_grad()
def collect_vectors(codebook: Codebook, part: int, num_parts: int, vectors: torch.Tensor) -> torch.Tensor:
    """Vectors `(N, code_dim)` of all ranks, and those kept before, to initialize a share of the codes with.

    When there are fewer than codes in the share, they are kept for the next batch. Infinite and NaN are left out.
    """
    assert codebook.samples is not None and codebook.num_samples is not None
    start, stop = codebook.part(part, num_parts)
    kept = codebook.samples[start : start + min(int(codebook.num_samples), stop - start)].to(vectors.dtype)
    pool = torch.cat([kept, gather_sample(_finite(vectors), _KMEANS_SAMPLES_PER_CODE * (stop - start))])
    if len(pool) < stop - start:
        codebook.samples[start : start + len(pool)] = pool
    return pool


@torch.no_grad()
def initialize_codes(codebook: Codebook, part: int, num_parts: int, pool: torch.Tensor) -> torch.Tensor:
    """Makes the `part`-th of `num_parts` equal shares of the codes the k-means centroids of `pool`.

    A pool smaller than the share stands in as it is, among jittered copies. Call `finish_initialization` after the
    last part. Returns the part's effective codes.
    """
    start, stop = codebook.part(part, num_parts)
    size = stop - start
    if len(pool) == 0:
        return codebook.effective(pool.dtype)[start:stop]
    if len(pool) < size:

        def choose() -> torch.Tensor:
            extra = torch.randint(len(pool), (size - len(pool),), device=pool.device)
            return make_distinct(torch.cat([pool, pool[extra]]))
    else:

        def choose() -> torch.Tensor:
            return kmeans(pool, size)

    codes = codebook.effective(pool.dtype).detach()
    codes[start:stop] = decided_by_first(choose, like=codes[start:stop])
    rows = torch.zeros_like(codebook.unused_steps, dtype=torch.bool)
    rows[start:stop] = True
    codebook.rewrite(codes, rows)
    return codebook.effective(pool.dtype)[start:stop]


@torch.no_grad()
def finish_initialization(codebook: Codebook, num_collected: int, size: int) -> None:
    """Ends initialization if the vectors collected for a share of `size` codes were enough."""
    assert codebook.num_samples is not None
    codebook.initialized.fill_(num_collected >= size)
    codebook.num_samples.fill_(0 if num_collected >= size else num_collected)


@torch.no_grad()
def initialize_for_now(codebook: Codebook, initialize: Callable[[], None]) -> None:
    """Initializes codes that a later micro batch of the step initializes once more, with all vectors of the step."""
    assert codebook.num_samples is not None
    collected = codebook.num_samples.clone()
    initialize()
    codebook.initialized.fill_(False)
    codebook.num_samples.copy_(collected)
    codebook.rewritten = None  # the later one says that they were written


@torch.no_grad()
def replace_due_codes(codebook: Codebook, books: Callable[[], list[torch.Tensor]]) -> None:
    """Replaces the codes that have been unused for too long, and those that an outlier has moved too far.

    Args:
        codebook: The codes.
        books: Makes for each book the vectors `(N, code_dim)` that it quantizes; called where a code may be due.
    """
    longest, breaks_down = codebook.read_clocks()
    due = 0 < codebook.replace_freq <= longest
    if not due and not breaks_down:
        return
    dead = codebook.unused_steps >= (codebook.replace_freq if due else longest + 1)
    vectors_of_books = books()
    if breaks_down:
        dead = dead | lost_codes(codebook, vectors_of_books)
    for book, vectors in enumerate(vectors_of_books if bool(dead.any()) else []):
        replace_codes(codebook, dead, book, vectors)


@torch.no_grad()
def lost_codes(codebook: Codebook, books: list[torch.Tensor]) -> torch.Tensor:
    """bool `(num_codes,)`: codes so far from the vectors of their book that the search can tell no others apart.

    The search rounds to the size of the farthest code. One bad batch can move a code so far that all vectors look the
    same from there. Then one code takes them all, and as it is in use, replacement never frees it. So call this when
    one code holds everything (`Codebook.read_clocks`). A code is lost if it is not finite, or if its distance to the
    mean of the vectors is over 100 times their spread (root mean square) and over 100 times the codes' median.

    Args:
        codebook: The codes.
        books: For each book the vectors `(N, code_dim)` that it quantizes.
    """
    codes = codebook.effective(books[0].dtype).detach()
    lost = torch.zeros_like(codebook.unused_steps, dtype=torch.bool)
    for book, vectors in enumerate(books):
        start, stop = codebook.part(book, codebook.num_books)
        count, mean, squares = _moments(_finite(vectors))
        spread = (squares.sum() / count.clamp_min(1)).sqrt()
        distance = (codes[start:stop] - mean).norm(dim=-1)
        bound = _LOST * torch.maximum(spread, distance.nanmedian())
        lost[start:stop] = ~(distance <= bound) & (count > 0)
    return lost


@torch.no_grad()
def replace_codes(codebook: Codebook, dead: torch.Tensor, book: int, vectors: torch.Tensor) -> None:
    """Replaces the dead codes of one book, by vectors `(N, code_dim)` that this book quantizes.

    Policies: "input", random vectors; "kmeans", their centroids; "busy", copies of the codes in use. The first
    and the last get 0.01 * norm * N(0, I) of noise. With fewer vectors than dead codes the others wait.
    """
    start, stop = codebook.part(book, codebook.num_books)
    rows = dead[start:stop].nonzero().squeeze(1) + start
    codes = codebook.effective(vectors.dtype).detach()
    policy = codebook.replace_policy
    if policy == "busy" and codebook.last_counts is not None:
        counts = torch.where(dead[start:stop], 0, codebook.last_counts[start:stop])
        pool = codes[start:stop][counts > 0]
        weights = counts[counts > 0]
        policy = "busy" if len(pool) else "input"  # the only code in use may be a lost one
    if policy != "busy":
        limit = len(rows) * (_KMEANS_SAMPLES_PER_CODE if policy == "kmeans" else 1)
        pool = gather_sample(_finite(vectors), limit)
        rows = rows[: len(pool)]
    if len(rows) == 0 or len(pool) == 0:
        return

    def choose() -> torch.Tensor:
        if policy == "kmeans":
            return kmeans(pool, len(rows))
        if policy == "busy":
            new = pool[torch.multinomial(weights, len(rows), replacement=True)]
        else:
            new = pool[torch.randperm(len(pool), device=pool.device)[: len(rows)]]
        return new + _REPLACEMENT_NOISE * new.norm(dim=-1, keepdim=True) * torch.randn_like(new)

    codes[rows] = decided_by_first(choose, like=codes[rows])
    mask = torch.zeros_like(dead)
    mask[rows] = True
    codebook.rewrite(codes, mask)


@torch.no_grad()
def observe_moments(codebook: Codebook, book: int, vectors: torch.Tensor) -> None:
    """Running affine map: takes in the moments of the vectors `(N, code_dim)` that this book quantizes.

    Biased variances over all ranks; momentum 0.1; the first batch is copied. A batch changes nothing if a moment of
    its vectors or of the codes is not finite.
    """
    count, mean, squares = _moments(vectors)
    start, stop = codebook.part(book, codebook.num_books)
    raw = codebook.weight[start:stop].to(vectors.dtype)
    moments = {
        "z_mean": mean,
        "z_var": squares / count.clamp_min(1),
        "c_mean": raw.mean(0),
        "c_var": raw.var(0, correction=0),
    }
    seen = (count > 0) & torch.stack([value.isfinite().all() for value in moments.values()]).all()
    momentum = torch.where(codebook.running_initialized[book] > 0, _RUNNING_MOMENTUM, 1.0) * seen
    for name, value in moments.items():
        buffer = getattr(codebook, f"running_{name}")[book]
        buffer.lerp_(torch.where(seen, value, 0.0).to(buffer.dtype), momentum.to(buffer.dtype))
    codebook.running_initialized[book].masked_fill_(seen.squeeze(), 1)


@torch.no_grad()
def inner_step(
    codebook: Codebook, vectors: torch.Tensor, index: torch.Tensor, takes_part: torch.Tensor | None = None
) -> torch.Tensor:
    """One inner step on the commitment loss, for the codes alone; assignments are kept.

    - "sgd": gradient step with momentum 0.9 on `mean((c[index] - sg z)^2)`, through the affine map to raw codes. The
      default size of 50 is made smaller for a code with so many vectors that the step, before momentum, would pass
      their mean; a size that was asked for is taken as it is;
    - "centroid": each used code moves the fraction `alternating_lr` of the way to the mean of its vectors;
    - EMA codebook (van den Oord et al. 2017): each used code becomes the ratio of two moving averages, of the sum
      and of the number of its vectors. Both start at zero, so the ratio needs no other correction of its bias.

    Args:
        vectors: `(N, code_dim)`.
        index: int64 `(N,)`, global ids.
        takes_part: bool `(num_codes,)`, the codes that the batch could use; None for all. The averages of the others
            stay as they are.

    Returns:
        Number of vectors of each code over all ranks, `(num_codes,)`, in the vectors' dtype.
    """
    counts = codebook.count(index, vectors.dtype)
    sums = vectors.new_zeros(codebook.num_codes, codebook.code_dim).index_add_(0, index, vectors)
    squares = vectors.new_zeros(codebook.num_codes).index_add_(0, index, vectors.square().sum(1))
    sum_over_ranks(counts, sums, squares)
    # A vector that is not finite, or whose square is not, moves no code: the loss will tell, and the codebook is
    # still good then.
    finite = sums.isfinite().all(1) & squares.isfinite()
    used = (counts > 0) & finite
    sums = torch.where(finite[:, None], sums, 0.0)
    if codebook.ema_count is not None and codebook.ema_sum is not None:
        # Loaded without its averages, a trained codebook counts as one vector a batch for each code.
        lost = (codebook.num_forwards > 0) & (codebook.ema_count.sum() == 0)
        codebook.ema_count.copy_(torch.where(lost, 1.0, codebook.ema_count))
        codebook.ema_sum.copy_(torch.where(lost, codebook.effective(vectors.dtype), codebook.ema_sum))
        for average, value in ((codebook.ema_count, counts), (codebook.ema_sum, sums)):
            value = value.to(average.dtype)
            if takes_part is not None:
                value = torch.where(takes_part.view(-1, *[1] * (value.ndim - 1)), value, average)
            average.lerp_(value, 1 - codebook.codebook_decay)
        codebook.overwrite((codebook.ema_sum / codebook.ema_count.clamp_min(1e-12)[:, None]).to(vectors.dtype), used)
    elif codebook.alternating_kind == "centroid":
        codes = codebook.effective(vectors.dtype)
        codebook.overwrite(codes.lerp(sums / counts.clamp_min(1)[:, None], codebook.alternating_lr), used)
    else:
        assert codebook.momentum is not None
        with torch.enable_grad():
            raw = codebook.weight.detach().to(vectors.dtype).requires_grad_()
            codes = codebook._effective(raw)
        size = (counts.sum() * codebook.code_dim).clamp_min(1)
        gradient = torch.where(finite[:, None], counts[:, None] * codes.detach() - sums, 0.0) * (2 / size)
        (gradient,) = torch.autograd.grad(codes, raw, gradient)
        if codebook.limits_steps:
            gradient = gradient * _step_limit(codebook, raw.detach(), 2 * counts / size)
        codebook.momentum.mul_(_SGD_MOMENTUM).add_(gradient)
        codebook.weight.sub_(codebook.alternating_lr * codebook.momentum)
    return counts


def _step_limit(codebook: Codebook, raw: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """Factors `(num_codes, 1)`, at most 1, that keep the steps of `inner_step` with its default size stable.

    A code's loss is a parabola, whose curvature `(num_codes,)` grows with the code's share of the vectors. The affine
    map and the norm in front of the code change it by the square of their slope.
    """
    slope = torch.ones_like(curvature)
    affine = codebook._affine(raw.dtype)
    if affine is not None:
        scale, bias = affine
        slope = scale.abs().amax(-1).expand(-1, codebook.num_codes // codebook.num_maps).flatten()
        raw = (raw.unflatten(0, (codebook.num_maps, -1)) * scale + bias).flatten(0, 1)
    if codebook.cb_norm == "l2":
        slope = slope / raw.norm(dim=-1).clamp_min(1e-12)
    change = codebook.alternating_lr * curvature * slope.square()  # 1 would reach the minimum without momentum
    return (_MAX_CHANGE / change).clamp_max(1)[:, None]


@torch.no_grad()
def end_forward(codebook: Codebook, counts: torch.Tensor, takes_part: torch.Tensor | None = None) -> None:
    """Closes a training forward: `counts` `(num_codes,)` are the uses of each code over all ranks.

    A code that the batch could not use, where `takes_part` is false, is not one that was left unused.
    """
    codebook.num_forwards.add_(1)
    codebook.unused_steps.add_(1 if takes_part is None else takes_part.long()).masked_fill_(counts > 0, 0)
    if codebook.last_counts is not None:
        known = counts if takes_part is None else torch.where(takes_part, counts, codebook.last_counts)
        codebook.last_counts.copy_(known)
    if not counts.is_meta:
        codebook.send_clocks()


def _finite(vectors: torch.Tensor) -> torch.Tensor:
    """The rows without infinite or NaN entries whose squared norm is finite, too."""
    return vectors.detach()[vectors.detach().square().sum(-1).isfinite()]


def _moments(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number `(1,)`, mean and sum of squared deviations `(code_dim,)` of all ranks' vectors."""
    count = vectors.new_full((1,), vectors.shape[0])
    total = vectors.sum(0)
    sum_over_ranks(count, total)
    mean = total / count.clamp_min(1)
    squares = (vectors - mean).square().sum(0)
    sum_over_ranks(squares)
    return count, mean, squares
