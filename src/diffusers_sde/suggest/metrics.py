r"""How far samples are from data: one number from the features of both, small where the distributions are alike.

    sliced      W_2 between projections on random directions u of length 1, root mean square over the directions:
                sqrt(E_u int_0^1 (F_u^-1(p) - G_u^-1(p))^2 dp) in units of pixels in [0, 1]
    frechet     |m_a - m_b|^2 + tr (C_a + C_b - 2 (C_a C_b)^(1/2)) of a network's features

Both are biased upwards by the number of samples, which the same number everywhere makes comparable.
"""

from typing import Protocol

import torch

from ..evaluation.distances import frechet_distance
from ..evaluation.extractors import FeatureExtractor
from ..seeding import derive_seed


class Metric(Protocol):
    """A distance from a reference set that was seen before.

    Args:
        name: with what else fixes the number, as JSON takes it.
    """

    name: dict

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the distance needs of uint8 images of shape (B, C, H, W); shape (B, F), row by row."""
        ...

    def set_reference(self, features: torch.Tensor) -> None:
        """Take features of data, shape (N, F), as the reference."""
        ...

    def distance(self, features: torch.Tensor) -> float:
        """Distance of features of samples, shape (n, F), from the reference."""
        ...


class SlicedWasserstein:
    """The sliced 2-Wasserstein distance between pixels; needs no network.

    Args:
        dimension: D, numbers per image.
        num_projections: number of directions; they are the same for all samples, and so is what they miss.
        seed: of the directions.

    Reference: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures, Sec. 3.
    """

    def __init__(self, dimension: int, num_projections: int = 128, seed: int = 0):
        generator = torch.Generator().manual_seed(derive_seed(seed, 0))
        directions = torch.randn(dimension, num_projections, generator=generator, dtype=torch.float64)
        self.directions = directions / directions.norm(dim=0)
        self.name = {"metric": "sliced", "num_projections": num_projections, "projection_seed": seed}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1).cpu().double() / 255) @ self.directions

    def set_reference(self, features: torch.Tensor) -> None:
        self.reference = features.sort(dim=0).values

    def distance(self, features: torch.Tensor) -> float:
        return float(squared_wasserstein(features.sort(dim=0).values, self.reference).mean().sqrt())


class FrechetDistance:
    """The Frechet distance between features of an extractor.

    Args:
        extractor: see `evaluation.extractors.load_extractor`.
    """

    def __init__(self, extractor: FeatureExtractor):
        self.extractor = extractor
        self.name = {"metric": "frechet", "extractor": extractor.name, "extractor_sha256": extractor.fingerprint}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.extractor(images).features.cpu().double()

    def set_reference(self, features: torch.Tensor) -> None:
        self.reference = _moments(features)

    def distance(self, features: torch.Tensor) -> float:
        return frechet_distance(*_moments(features), *self.reference)


def squared_wasserstein(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """W_2^2 between the rows of two tables, column by column: the integral of the squared difference of quantiles.

    Args:
        a: shape (n, F), each column in ascending order.
        b: shape (m, F), likewise.

    Returns:
        Shape (F,).
    """
    n, m = len(a), len(b)
    # The quantile functions are constant between the multiples of 1/n and of 1/m, here in units of 1/(n m).
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique()
    widths = ends.diff(prepend=ends.new_zeros(1))
    difference = a[(ends - 1) // m] - b[(ends - 1) // n]
    return (widths.to(a.dtype)[:, None] * difference.square()).sum(dim=0) / (n * m)


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features.mean(dim=0), features.T.cov()
