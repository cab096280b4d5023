"""A kind of quantizer as somebody else would write it, from the public names alone."""

from __future__ import annotations

import torch
from torch import nn

from hf_vq import Quantizer, QuantizerOutput


class SignQuantizer(Quantizer):
    """Each channel becomes its sign, times a learned scale."""

    def __init__(self, feature_size: int, num_codes: int, dim: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        assert num_codes == 2**feature_size
        self.feature_size, self.num_codes, self.dim, self.code_dim = feature_size, num_codes, dim, feature_size
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, QuantizerOutput]:
        bits = z.moveaxis(self.dim, -1) > 0
        q = (bits * 2 ** torch.arange(self.feature_size, device=z.device)).sum(-1, keepdim=True)
        z_q = self.lookup(q)
        loss = (z.detach() - z_q).square().mean() + 0.1 * (z - z_q.detach()).square().mean()
        return z_q.detach() + (z - z.detach()), QuantizerOutput(q=q, loss=loss)

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        bits = (self.check_ids(q) >> torch.arange(self.feature_size, device=q.device)) % 2
        return (self.scale * (2.0 * bits - 1)).moveaxis(-1, self.dim)

    def get_codebook(self) -> torch.Tensor:
        ids = torch.arange(self.num_codes, device=self.scale.device)[:, None]
        return self.lookup(ids).detach().moveaxis(self.dim, -1)
