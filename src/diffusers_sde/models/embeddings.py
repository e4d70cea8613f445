"""Embeddings of the noise level."""

import logging
import math

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

from .activations import activation
from .initialization import scaled_xavier_uniform_

logger = logging.getLogger(__name__)


class Float32Frequencies:
    """Loading of networks whose `time_proj` holds Fourier frequencies: they stay in float32, whatever the dtype.

    To be named before `ModelMixin` among the bases. diffusers keeps parts of a network in float32 only where it loads
    parameter by parameter, and refuses `low_cpu_mem_usage=False`; the loaded network is the same either way.
    """

    _keep_in_fp32_modules = ["time_proj"]

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a network; see `ModelMixin.from_pretrained` for the arguments."""
        if kwargs.get("low_cpu_mem_usage") is False:
            logger.warning(
                f"{cls.__name__} is loaded parameter by parameter in spite of `low_cpu_mem_usage=False`, so that its "
                "Fourier frequencies stay in float32; the network is the same."
            )
            del kwargs["low_cpu_mem_usage"]
        return super().from_pretrained(*args, **kwargs)


class GaussianFourierProjection(nn.Module):
    """Random Fourier features of the log noise level: [sin, cos](2 pi W log sigma), W ~ N(0, scale^2).

    The frequencies reach hundreds of radians, so they stay in float32 whatever dtype the network is moved to: rounded
    to 16 bits the features would be noise.

    Args:
        num_features: number of frequencies; the output has twice as many features.
        scale: standard deviation of the frequencies.

    Reference: Song et al. 2021, arXiv:2011.13456, App. C.1; Tancik et al. 2020, arXiv:2006.10739.
    """

    def __init__(self, num_features: int, scale: float):
        super().__init__()
        self.register_buffer("weight", torch.randn(num_features, dtype=torch.float32) * scale)

    def _apply(self, fn, recurse: bool = True):
        weight = self.weight
        super()._apply(fn, recurse)
        if self.weight.dtype != weight.dtype:
            self.weight = weight.to(self.weight.device)
        return self

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        """Noise levels of shape (B,), positive -> float32 features of shape (B, 2 num_features)."""
        # In the official order: at hundreds of radians another rounding changes outputs by 2e-5, gradients by 1e-4.
        angles = sigma.float().log()[:, None] * self.weight * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def time_embedding(in_features: int, features: int, act_fn: str) -> TimestepEmbedding:
    """Two dense layers with an activation between them, initialised as in the DDPM family.

    Args:
        in_features: features of the encoded noise level.
        features: features of the embedding.
        act_fn: activation function, see `activation`.
    """
    embedding = TimestepEmbedding(in_features, features)
    embedding.act = activation(act_fn)
    for layer in (embedding.linear_1, embedding.linear_2):
        scaled_xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return embedding
