r"""Exact answers to test against: Gaussian and Gaussian-mixture data under any SDE.

For x_0 ~ N(m, s^2) and p(x_t | x_0) = N(alpha x_0, sigma^2) everything is closed:

    p_t = N(alpha m, V),  V = alpha^2 s^2 + sigma^2,      score = -(x - alpha m) / V,
    x_0 | x_t ~ N(m + (alpha s^2 / V) (x - alpha m), s^2 sigma^2 / V),

and a mixture is the same, component by component, weighed by the posterior probabilities of the components. On
Gaussian data every predictor and corrector is linear, so `sampler_moments` follows mean and variance of a whole
sampler exactly. Everything is computed in float64 and returned in the dtype of the state.
"""

import math

import torch

from diffusers_sde.sde import VESDE, VPSDE, SubVPSDE

SDES = {"ve": VESDE(0.01, 50.0), "vp": VPSDE(0.1, 20.0), "subvp": SubVPSDE(0.1, 20.0)}
RANKS = {2: (60,), 3: (3, 20), 4: (3, 4, 5), 5: (3, 2, 2, 5)}  # shapes of 60 numbers by the rank of their batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(coefficient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """View one number per row, or one for all, so that it multiplies `x`. Deliberately not the package's own."""
    return coefficient.reshape(*coefficient.shape, *[1] * (x.ndim - coefficient.ndim))


class Gaussian:
    """x_0 ~ N(mean, std^2), numbers or tensors that broadcast to the shape of one sample (diagonal covariance)."""

    def __init__(self, mean=0.0, std=1.0):
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.std = torch.as_tensor(std, dtype=torch.float64)

    def sample(self, shape, generator=None, dtype=torch.float32):
        return (self.mean + self.std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    def moments(self, sde, x, t):
        """Mean and variance of p_t, elementwise."""
        t = torch.as_tensor(t).double()
        alpha, sigma = rows(sde.alpha(t), x), rows(sde.sigma(t), x)
        return alpha * self.mean, alpha**2 * self.std**2 + sigma**2

    def log_prob(self, sde, x, t):
        mean, variance = self.moments(sde, x, t)
        density = -0.5 * ((x.double() - mean) ** 2 / variance + torch.log(2 * math.pi * variance))
        return density.expand(x.shape).flatten(1).sum(dim=1).to(x.dtype)

    def score(self, sde, x, t):
        mean, variance = self.moments(sde, x, t)
        return (-(x.double() - mean) / variance).to(x.dtype)

    def posterior(self, sde, x, t):
        """Mean and elementwise variance of x_0 given x_t = x."""
        mean, variance = self.moments(sde, x, t)
        t = torch.as_tensor(t).double()
        gain = rows(sde.alpha(t), x) * self.std**2 / variance
        posterior_variance = self.std**2 * rows(sde.sigma(t), x) ** 2 / variance
        return (self.mean + gain * (x.double() - mean)).to(x.dtype), posterior_variance.expand(x.shape).to(x.dtype)

    def denoised(self, sde, x, t):
        return self.posterior(sde, x, t)[0]


class GaussianMixture:
    """x_0 from N(means[k], stds[k]^2 I) with probability weights[k]; `means` has shape (K, ...)."""

    def __init__(self, weights, means, stds):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.stds = torch.as_tensor(stds, dtype=torch.float64)

    def sample(self, batch_size, generator=None, dtype=torch.float32):
        k = torch.multinomial(self.weights, batch_size, replacement=True, generator=generator)
        noise = torch.randn(batch_size, *self.means.shape[1:], generator=generator, dtype=torch.float64)
        return (self.means[k] + rows(self.stds[k], noise) * noise).to(dtype)

    def _components(self, sde, x, t):
        """x - alpha m_k of shape (K, B, ...), V_k and log(w_k p_k(x)) of shape (K, B), alpha and sigma (B,)."""
        t = torch.as_tensor(t).double().expand(x.shape[0])
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        offset = x.double() - alpha.reshape(-1, *[1] * (x.ndim - 1)) * self.means.unsqueeze(1)
        variance = alpha**2 * self.stds[:, None] ** 2 + sigma**2
        distance = offset.flatten(2).square().sum(dim=2)
        log_density = -0.5 * (distance / variance + x[0].numel() * torch.log(2 * math.pi * variance))
        return offset, variance, self.weights.log()[:, None] + log_density, alpha, sigma

    def log_prob(self, sde, x, t):
        return self._components(sde, x, t)[2].logsumexp(dim=0).to(x.dtype)

    def score(self, sde, x, t):
        offset, variance, logits, _, _ = self._components(sde, x, t)
        return (-rows(logits.softmax(dim=0) / variance, offset) * offset).sum(dim=0).to(x.dtype)

    def posterior(self, sde, x, t):
        """Mean and elementwise variance of x_0 given x_t = x."""
        offset, variance, logits, alpha, sigma = self._components(sde, x, t)
        probability = rows(logits.softmax(dim=0), offset)
        means = self.means.unsqueeze(1) + rows(alpha * self.stds[:, None] ** 2 / variance, offset) * offset
        variances = rows(self.stds[:, None] ** 2 * sigma**2 / variance, offset)
        mean = (probability * means).sum(dim=0)
        return mean.to(x.dtype), (probability * (variances + (means - mean) ** 2)).sum(dim=0).to(x.dtype)

    def denoised(self, sde, x, t):
        return self.posterior(sde, x, t)[0]

    def cdf(self, sde, x, t, coordinate=0):
        """Distribution function of one coordinate of x_t, for `x` of shape (B,)."""
        t = torch.as_tensor(t).double()
        mean = sde.alpha(t) * self.means.flatten(1)[:, coordinate, None]
        std = (sde.alpha(t) ** 2 * self.stds[:, None] ** 2 + sde.sigma(t) ** 2).sqrt()
        return (self.weights[:, None] * torch.special.ndtr((x.double() - mean) / std)).sum(dim=0)


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
