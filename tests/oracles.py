"""Exact answers to test against, besides the closed forms of `diffusers_sde.sde.targets`.

On Gaussian data every predictor and corrector is linear, so `sampler_moments` follows mean and variance of a whole
sampler exactly.
"""

import math

import torch

from diffusers_sde.sde import VESDE, VPSDE, Gaussian, GaussianMixture, SubVPSDE  # noqa: F401 tests take all from here

SDES = {"ve": VESDE(0.01, 50.0), "vp": VPSDE(0.1, 20.0), "subvp": SubVPSDE(0.1, 20.0)}
RANKS = {2: (60,), 3: (3, 20), 4: (3, 4, 5), 5: (3, 2, 2, 5)}  # shapes of 60 numbers by the rank of their batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ks_distance(samples: torch.Tensor, cdf) -> float:
    """Kolmogorov-Smirnov distance of `samples`, shape (n,), from the distribution function `cdf`."""
    expected = cdf(samples.double().sort().values)
    steps = torch.arange(len(samples) + 1, dtype=torch.float64) / len(samples)
    return float(torch.maximum(steps[1:] - expected, expected - steps[:-1]).max())


def ks_critical(n: int, p: float = 1e-5) -> float:
    """Distance that n draws exceed with probability `p` (asymptotic Kolmogorov distribution)."""
    return math.sqrt(-math.log(p / 2) / (2 * n))


# The schemes of the paper for one number, written anew from its formulas.


def coefficients(sde, t: float) -> tuple[float, float, float, float]:
    """alpha, sigma, f and g^2 at `t`; sigma = 0 at t = -inf."""
    if isinstance(sde, VESDE):
        sigma = sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** t
        return 1.0, sigma, 0.0, 2 * math.log(sde.sigma_max / sde.sigma_min) * sigma**2
    beta = sde.beta_min + (sde.beta_max - sde.beta_min) * t
    integral = sde.beta_min * t + (sde.beta_max - sde.beta_min) * t**2 / 2
    alpha, variance = math.exp(-integral / 2), -math.expm1(-integral)
    if isinstance(sde, VPSDE):
        return alpha, math.sqrt(variance), -beta / 2, beta
    return alpha, variance, -beta / 2, -beta * math.expm1(-2 * integral)


def forward_step(sde, t: float, s: float) -> tuple[float, float]:
    """a and b^2 of the discretised forward step from s to t."""
    _, sigma_t, f, g_squared = coefficients(sde, t)
    if isinstance(sde, VESDE):
        return 1.0, sigma_t**2 - coefficients(sde, s)[1] ** 2
    if isinstance(sde, VPSDE):
        return math.sqrt(1 - g_squared * (t - s)), g_squared * (t - s)
    return 1 + f * (t - s), g_squared * (t - s)


def predictor_step(sde, name: str, probability_flow: bool, t: float, s: float) -> tuple[float, float, float]:
    """p, q and r of x_next = p x + q score + r z."""
    if name == "none":
        return 1.0, 0.0, 0.0
    if name == "euler_maruyama":
        _, _, f, g_squared = coefficients(sde, t)
        a, b_squared = 1 + f * (t - s), g_squared * (t - s)
    else:
        a, b_squared = forward_step(sde, t, s)
    if name == "ancestral_sampling":
        posterior_ratio = coefficients(sde, s)[1] / coefficients(sde, t)[1] if isinstance(sde, VESDE) else 1.0
        return 1 / a, b_squared / a, posterior_ratio * math.sqrt(b_squared)
    if probability_flow:
        return 2 - a, b_squared / 2, 0.0
    return 2 - a, b_squared, math.sqrt(b_squared)


def step_times(sde, name: str, t: float, step: int, num_steps: int) -> tuple[float, float]:
    """Times between which step 0, ..., N - 1 of the official sampler goes at the network's time `t`."""
    if name == "euler_maruyama" or isinstance(sde, SubVPSDE):
        return t, t - 1 / num_steps
    place = (num_steps - 1 - step) / max(num_steps - 1, 1) if num_steps > 1 else 1.0
    if isinstance(sde, VPSDE):
        return place, place - 1 / num_steps
    return place, (place - 1 / (num_steps - 1) if step < num_steps - 1 else -math.inf)


def sampler_moments(sde, data: Gaussian, scheduler, num_steps: int) -> tuple[float, float]:
    """Mean and variance after Predictor-Corrector sampling of scalar Gaussian data with the exact score.

    Exact for the "ald" corrector and for none; for "langevin" in the limit of many dimensions, where the norms of
    score and noise are their root mean squares. The last step is without noise.
    """
    config = scheduler.config
    mean, variance = 0.0, sde.prior_std**2
    for step in range(num_steps):
        t = 1 - (1 - config.sampling_eps) * step / max(num_steps - 1, 1)
        alpha, sigma, _, _ = coefficients(sde, t)
        center, total = alpha * float(data.mean), alpha**2 * float(data.std) ** 2 + sigma**2
        for _ in range(config.correct_steps if config.corrector != "none" else 0):
            a, _ = forward_step(sde, t, t - 1 / num_steps)
            inverse_score_square = total**2 / (variance + (mean - center) ** 2)
            unit = sigma**2 if config.corrector == "ald" else inverse_score_square
            epsilon = 2 * a**2 * config.snr**2 * unit
            mean = center + (1 - epsilon / total) * (mean - center)
            variance = (1 - epsilon / total) ** 2 * variance + 2 * epsilon
        times = step_times(sde, config.predictor, t, step, num_steps)
        p, q, r = predictor_step(sde, config.predictor, config.probability_flow, *times)
        mean = (p - q / total) * mean + q / total * center
        variance = (p - q / total) ** 2 * variance + (r**2 if step < num_steps - 1 else 0.0)
    return mean, variance
