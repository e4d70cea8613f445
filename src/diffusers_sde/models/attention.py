"""Self-attention over pixels."""

import torch
import torch.nn.functional as F
from torch import nn

from .initialization import linear, scaled_xavier_uniform_
from .normalization import normalization


class AttentionBlock(nn.Module):
    """Single-head self-attention over the H * W pixels, with a residual connection.

    Args:
        channels: channels C of the feature map.
        norm_groups: groups of the normalisation.
        norm_type: normalisation, see `normalization`.
        init_scale: variance factor of the output projection.
        residual_scale: factor on the sum of input and branch: 1 or 1/sqrt(2).

    Reference: Ho et al. 2020, arXiv:2006.11239, App. B.
    """

    def __init__(
        self,
        channels: int,
        norm_groups: int,
        init_scale: float = 0.0,
        residual_scale: float = 1.0,
        norm_type: str = "group",
    ):
        super().__init__()
        self.residual_scale = residual_scale
        self.norm = normalization(norm_type, channels, norm_groups)
        self.to_qkv = linear(channels, 3 * channels)
        for projection in self.to_qkv.weight.chunk(3):  # the fan of each one, not of the fused three
            scaled_xavier_uniform_(projection, 0.1)
        self.to_out = linear(channels, channels, init_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.to_qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        tokens = self.to_out(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        h = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return (x + h) * self.residual_scale
