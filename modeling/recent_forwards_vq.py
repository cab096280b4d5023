# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What recent training forwards found, in case activation checkpointing runs them again."""

from __future__ import annotations

from collections import deque

import torch


class RecentForwards:
    """What the last training forwards found, ids for example, by their inputs."""

    def __init__(self, number: int = 16) -> None:
        self._forwards: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=number)

    def add(self, x: torch.Tensor, found: torch.Tensor) -> None:
        """Remembers what was found for the vectors `x`."""
        self._forwards.append((_probe(x), found))

    def find(self, x: torch.Tensor) -> torch.Tensor | None:
        """What was found for `x`; None if its forward is forgotten."""
        probe = _probe(x)
        for seen, found in reversed(self._forwards if not x.is_meta else ()):
            if torch.equal(seen, probe):
                return found
        return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    """A few entries of `x` and its size, by which a recomputed input is known again."""
    flat = x.flatten()
    return torch.cat([flat[:: max(1, flat.numel() // 256)], flat.new_full((1,), flat.numel())])


__all__ = ["RecentForwards"]
