r"""Noise levels from the data, by the analysis of Song & Ermon 2020 (arXiv:2006.09011), and what is left at t = 1.

Technique 1: sigma_max is the largest distance between two images, so that at the highest noise no image has a
region of its own.

Technique 2: |x| of noise of standard deviation sigma in D dimensions is nearly N(sqrt(D) sigma, sigma^2 / 2). Two
neighbouring levels with ratio gamma overlap by the probability that a draw from the higher one lies within three
standard deviations of the lower one:

    Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = overlap, about 0.5.

Technique 4: T steps of annealed Langevin dynamics of size epsilon sigma^2 / sigma_min^2 on one data point bring the
variance gamma^2 sigma^2, left by the level before, to v_T sigma^2; with eta = epsilon / sigma_min^2 and q = 1 - eta

    v_T = q^(2 T) (gamma^2 - v) + v,      v = 2 eta / (1 - q^2) = 1 / (1 - eta / 2),

and epsilon is chosen such that v_T is nearest to 1.
"""

import math
from dataclasses import dataclass

import torch

from ..sde import SDE


def overlap_of(ratio: float, dimension: int) -> float:
    """Overlap of two neighbouring noise levels.

    Args:
        ratio: gamma, at least 1.
        dimension: D, numbers per image.

    Reference: Song & Ermon 2020, arXiv:2006.09011, Technique 2.
    """
    shift = math.sqrt(2 * dimension) * (ratio - 1)
    return _normal_cdf(shift + 3 * ratio) - _normal_cdf(shift - 3 * ratio)


def geometric_ratio(dimension: int, overlap: float = 0.5) -> float:
    """gamma at which neighbouring noise levels have a given overlap, by bisection to the last digit.

    Args:
        dimension: D, numbers per image.
        overlap: in (0, 0.99). The numbers of levels that the paper uses (232, 500, 788, 1086) have 0.567.

    Raises:
        ValueError: if the overlap is not allowed, or D is so small that every ratio overlaps more.

    Reference: Song & Ermon 2020, arXiv:2006.09011, Technique 2.
    """
    if not 0 < overlap < 0.99:
        raise ValueError(f"the overlap is {overlap}; it must lie between 0 and 0.99 (the paper says about 0.5).")
    low, high = 1.0, 2.0
    while overlap_of(high, dimension) > overlap:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(
                f"noise in {dimension} dimensions overlaps by more than {overlap} at every ratio; the rule is one for "
                "images, of at least 8 x 8 pixels or so."
            )
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if overlap_of(middle, dimension) > overlap else (low, middle)
    return low


def num_noise_levels(sigma_min: float, sigma_max: float, ratio: float) -> int:
    """L, the fewest levels from `sigma_min` to `sigma_max`, both included, of which no two neighbours exceed a ratio.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min = {sigma_min} and sigma_max = {sigma_max}; 0 < sigma_min < sigma_max is needed. A data set "
            "whose images are all alike has no noise schedule."
        )
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(ratio))


def langevin_variance(eta: torch.Tensor, ratio: float, num_steps: int) -> torch.Tensor:
    """v_T, the variance after T steps in units of sigma^2; the shape of `eta`.

    Args:
        eta: epsilon / sigma_min^2, in (0, 2).
        ratio: gamma.
        num_steps: T.

    Reference: Song & Ermon 2020, arXiv:2006.09011, Proposition 3.
    """
    stationary = 1 / (1 - eta / 2)
    return (1 - eta) ** (2 * num_steps) * (ratio**2 - stationary) + stationary


def langevin_step_size(sigma_min: float, ratio: float, num_steps: int = 5) -> float:
    """epsilon of annealed Langevin dynamics at which the variance after T steps is nearest to that of its level.

    Args:
        sigma_min: of the lowest level, in units of the data.
        ratio: gamma between neighbouring levels.
        num_steps: T, at each level.

    Returns:
        epsilon in units of the data squared, to a relative 2e-4 (grid search).

    Reference: Song & Ermon 2020, arXiv:2006.09011, Technique 4.
    """
    eta = torch.logspace(-8, 0, 100_000, dtype=torch.float64)[:-1]
    distance = (langevin_variance(eta, ratio, num_steps) - 1).abs()
    return float(eta[distance.argmin()]) * sigma_min**2


def langevin_snr(step_size: float, sigma_min: float) -> float:
    """`snr` with which the `ald` corrector, whose steps are 2 (snr sigma(t))^2, makes those of this epsilon."""
    return math.sqrt(step_size / 2) / sigma_min


@dataclass(frozen=True)
class PriorMismatch:
    """How far the noisy data at t = 1 are from what sampling starts with.

    Args:
        alpha: what is left of the signal, alpha(1).
        separation: alpha(1) d / sigma(1) for the largest distance d: of the two most different images, in standard
            deviations of the noise.
        kl: Kullback-Leibler divergence of p_1 from the prior, nats per image, were the pixels independent Gaussians.
        wasserstein: 2-Wasserstein distance of the same two, in units of the data.
    """

    alpha: float
    separation: float
    kl: float
    wasserstein: float


def prior_mismatch(sde: SDE, mean: torch.Tensor, variance: torch.Tensor, distance: float) -> PriorMismatch:
    r"""Compare p_1 = N(alpha m, alpha^2 s^2 + sigma^2), pixel by pixel, with the prior N(0, p^2).

    With v the variance of p_1:  KL = 1/2 sum (v / p^2 - 1 - log(v / p^2) + (alpha m / p)^2),
    W^2 = sum ((alpha m)^2 + (sqrt(v) - p)^2).

    Args:
        sde: the forward process.
        mean: m of each pixel over the data set, in its data range, any shape.
        variance: s^2, likewise.
        distance: the largest between two images.
    """
    one = torch.ones((), dtype=torch.float64)
    alpha, sigma, prior_std = float(sde.alpha(one)), float(sde.sigma(one)), sde.prior_std
    mean, variance = alpha * mean.double(), alpha**2 * variance.double() + sigma**2
    excess = variance / prior_std**2 - 1
    kl = 0.5 * (excess - excess.log1p() + (mean / prior_std).square()).sum()
    wasserstein = (mean.square() + (variance.sqrt() - prior_std).square()).sum().sqrt()
    return PriorMismatch(alpha, alpha * distance / sigma, float(kl), float(wasserstein))


def beta_max_of(distance: float, beta_min: float = 0.1) -> float:
    """beta_max at which VP leaves a separation of 1 at t = 1, as sigma_max = `distance` does for VE.

    alpha / sigma = 1 / d with int beta = (beta_min + beta_max) / 2 = - log alpha^2 = log(1 + d^2). Sub-VP differs by
    a relative 1 / (2 d^2) of the separation.

    Args:
        distance: d, the largest between two images in the data range.
        beta_min: beta(0).
    """
    return 2 * math.log1p(distance**2) - beta_min


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
