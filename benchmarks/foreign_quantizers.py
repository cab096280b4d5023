"""Quantizers of other libraries, and bare lists of codes, behind the interface of this package's layers."""

from __future__ import annotations

from typing import Any

import torch
from scipy.spatial import cKDTree
from torch import nn

from hf_vq import Quantizer, QuantizerOutput
from hf_vq.modeling.nearest_vq import nearest_code

MAX_TREE_DIMENSIONS = 4


class ForeignQuantizer(Quantizer):
    """A layer of vector-quantize-pytorch.

    Args:
        layer: takes `(batch, positions, feature_size)`, returns quantized vectors, ids and, if it has one, a loss.
        feature_size: size of the quantized axis, the second one.
        num_codes: how many codes the layer has.
    """

    def __init__(self, layer: nn.Module, feature_size: int, num_codes: int) -> None:
        super().__init__()
        self.layer: Any = layer
        self.feature_size = self.code_dim = feature_size
        self.num_codes = num_codes
        codes = getattr(layer, "codebook", None)
        self.takes_nearest = codes is not None and codes.shape[1] == feature_size  # not behind a projection

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes images `(batch, feature_size, height, width)`."""
        quantized, index, *loss = self.layer(z.flatten(2).transpose(1, 2))
        q = index.reshape(z.shape[0], *z.shape[2:], 1).long()
        output = QuantizerOutput(q=q, loss=loss[0].sum() if loss else None)
        return quantized.transpose(1, 2).unflatten(2, z.shape[2:]), output

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Quantized vectors of the ids `(..., 1)`, with their axis second."""
        read = getattr(self.layer, "get_output_from_indices", None) or self.layer.indices_to_codes
        codes = read(self.check_ids(q).flatten()[None]).reshape(*q.shape[:-1], self.feature_size)
        return codes.moveaxis(-1, self.dim)

    def get_codebook(self) -> torch.Tensor:
        """All codes, `(num_codes, feature_size)`."""
        device = next(iter(self.layer.state_dict().values())).device
        with torch.no_grad():
            return self.lookup(torch.arange(self.num_codes, device=device)[:, None]).clone()


class NearestCode(Quantizer):
    """Codes that do not change, and their nearest ones; a tree finds them soon if they have few dimensions.

    Args:
        codes: `(num_codes, feature_size)`.
        layer: whose norm the inputs get first.
    """

    takes_nearest = True

    def __init__(self, codes: torch.Tensor, layer: Quantizer | None = None) -> None:
        super().__init__()
        self.num_codes, self.feature_size = codes.shape
        self.code_dim = self.feature_size
        self.layer = layer
        self.codes: torch.Tensor
        self.register_buffer("codes", codes)
        self.tree = cKDTree(codes.cpu()) if self.feature_size <= MAX_TREE_DIMENSIONS else None

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `(batch, feature_size, ...)`, without gradient."""
        x = (z if self.layer is None else self.layer.unquantized(z)).moveaxis(1, -1)
        if self.tree is None:
            q = nearest_code(x.flatten(0, -2), self.codes)
        else:
            q = torch.from_numpy(self.tree.query(x.flatten(0, -2).cpu())[1]).to(z.device)
        q = q.view(*x.shape[:-1], 1)
        z_q = self.lookup(q)
        return z_q, QuantizerOutput(z=x.unsqueeze(-2), z_q=z_q.moveaxis(1, -1).unsqueeze(-2), q=q)

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Codes of the ids `(..., 1)`, with their axis second."""
        return self.codes[self.check_ids(q).squeeze(-1)].moveaxis(-1, 1)

    def get_codebook(self) -> torch.Tensor:
        """The codes, a copy."""
        return self.codes.clone()
