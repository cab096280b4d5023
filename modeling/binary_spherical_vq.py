# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Binary spherical quantization: the signs of a vector of unit length, without a codebook."""

from __future__ import annotations

import math
from typing import Any

import torch

from .codebook_vq import normalize
from .lookup_free_vq import LookupFreeQuant

BSQ = """@inproceedings{zhao2025image,
  title     = {Image and Video Tokenization with Binary Spherical Quantization},
  author    = {Zhao, Yue and Xiong, Yuanjun and Kr{\\"a}henb{\\"u}hl, Philipp},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  eprint    = {2406.07548},
  archivePrefix = {arXiv}
}"""


class BinarySphericalQuant(LookupFreeQuant):
    """Binary spherical quantization (Zhao et al. 2024): vectors and codes lie on the unit sphere.

    A vector is divided by its norm, and its code is its signs divided by the root of their number. The rest is that of
    [`LookupFreeQuant`], whose arguments it takes. The paper bounds the entropy of the mean assignment by a sum over
    bits; here it is exact.
    """

    kind = "bsq"
    words = "binary spherical quantization"

    @property
    def code_value(self) -> float:
        """Size of every entry of a code."""
        return 1 / math.sqrt(self.code_dim)

    def _prepare(self, z: torch.Tensor) -> torch.Tensor:
        return normalize(super()._prepare(z), "l2")

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """Of BSQ."""
        return [BSQ]


__all__ = ["BinarySphericalQuant"]
