# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Numbers that the host reads some time after the device has made them, so that it waits for no later work."""

from __future__ import annotations

from typing import Any

import torch


class LateValues:
    """A few numbers on their way to the host.

    On CUDA the copy is queued at once, and reading waits for nothing that was queued after it.

    Args:
        values: `(n,)`, on any device.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self._copied: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[Any]:
        """The numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()

    def __reduce__(self) -> tuple[Any, ...]:  # for copies and pickles, which cannot hold what is under way
        return LateValues, (torch.tensor(self.read()),)


class Unchanged:
    """Remembers tensors as they are now.

    Args:
        tensors: The tensors.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._versions = [_version(tensor) for tensor in tensors]

    def holds(self, *tensors: torch.Tensor) -> bool:
        """Whether these are the same tensors, and nothing has been written into them since. Reads no value."""
        return all(
            tensor is before and _version(tensor) == version is not None
            for tensor, before, version in zip(tensors, self._tensors, self._versions, strict=True)
        )


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
