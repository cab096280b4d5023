# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Group quantization: a code for each slice of the features."""

from .quantizer_vq import VectorQuant


class GroupVectorQuant(VectorQuant):
    """Splits the features into `groups` equal parts and quantizes each, with one codebook or `groups` separate ones.

    Args:
        groups: divides `feature_size`.
        share: one codebook for all groups; else `num_codes` are split evenly.
        **kwargs: see `VectorQuant`.
    """

    kind = "group"

    def __init__(self, feature_size: int, num_codes: int, groups: int = 1, share: bool = True, **kwargs):
        self.groups, self.share = groups, share
        super().__init__(feature_size, num_codes, **kwargs)


__all__ = ["GroupVectorQuant"]
