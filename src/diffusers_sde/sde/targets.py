r"""Data whose scores, densities and denoised means are known in closed form under any SDE, to test and measure with.

For x_0 ~ N(m, s^2) and p(x_t | x_0) = N(alpha x_0, sigma^2)

    p_t = N(alpha m, V),  V = alpha^2 s^2 + sigma^2,      score = -(x - alpha m) / V,
    x_0 | x_t ~ N(m + (alpha s^2 / V) (x - alpha m), s^2 sigma^2 / V),

and a mixture is the same, component by component, weighed by the posterior probabilities of the components. Everything
is computed in float64 and returned in the dtype of the state.
"""

import math

import torch

from .base import SDE


class Gaussian:
    """x_0 ~ N(mean, std^2) with independent elements.

    Args:
        mean: number, or tensor that broadcasts to the shape of one sample.
        std: standard deviation, in the same form.
    """

    def __init__(self, mean: float | torch.Tensor = 0.0, std: float | torch.Tensor = 1.0):
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.std = torch.as_tensor(std, dtype=torch.float64)

    def sample(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Draw x_0 of shape (B, ...)."""
        return (self.mean + self.std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    def moments(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of p_t, elementwise."""
        t = torch.as_tensor(t).double()
        alpha, sigma = _rows(sde.alpha(t), x), _rows(sde.sigma(t), x)
        return alpha * self.mean, alpha**2 * self.std**2 + sigma**2

    def log_prob(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """log p_t(x) in nats, shape (B,)."""
        mean, variance = self.moments(sde, x, t)
        density = -0.5 * ((x.double() - mean) ** 2 / variance + torch.log(2 * math.pi * variance))
        return density.expand(x.shape).flatten(1).sum(dim=1).to(x.dtype)

    def score(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Gradient of log p_t(x); shape of `x`."""
        mean, variance = self.moments(sde, x, t)
        return (-(x.double() - mean) / variance).to(x.dtype)

    def posterior(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and elementwise variance of x_0 given x_t = x."""
        mean, variance = self.moments(sde, x, t)
        t = torch.as_tensor(t).double()
        gain = _rows(sde.alpha(t), x) * self.std**2 / variance
        posterior_variance = self.std**2 * _rows(sde.sigma(t), x) ** 2 / variance
        return (self.mean + gain * (x.double() - mean)).to(x.dtype), posterior_variance.expand(x.shape).to(x.dtype)

    def denoised(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """E[x_0 | x_t = x]; shape of `x`."""
        return self.posterior(sde, x, t)[0]


class GaussianMixture:
    """x_0 from N(means[k], stds[k]^2 I) with probability weights[k].

    Args:
        weights: probabilities, shape (K,).
        means: shape (K, ...).
        stds: standard deviations, shape (K,).
    """

    def __init__(self, weights: torch.Tensor, means: torch.Tensor, stds: torch.Tensor):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.stds = torch.as_tensor(stds, dtype=torch.float64)

    def sample(
        self, batch_size: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Draw x_0 of shape (batch_size, ...)."""
        k = torch.multinomial(self.weights, batch_size, replacement=True, generator=generator)
        noise = torch.randn(batch_size, *self.means.shape[1:], generator=generator, dtype=torch.float64)
        return (self.means[k] + _rows(self.stds[k], noise) * noise).to(dtype)

    def _components(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x - alpha m_k of shape (K, B, ...), V_k and log(w_k p_k(x)) of shape (K, B), alpha and sigma (B,)."""
        t = torch.as_tensor(t).double().expand(x.shape[0])
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        offset = x.double() - alpha.reshape(-1, *[1] * (x.ndim - 1)) * self.means.unsqueeze(1)
        variance = alpha**2 * self.stds[:, None] ** 2 + sigma**2
        distance = offset.flatten(2).square().sum(dim=2)
        log_density = -0.5 * (distance / variance + x[0].numel() * torch.log(2 * math.pi * variance))
        return offset, variance, self.weights.log()[:, None] + log_density, alpha, sigma

    def log_prob(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """log p_t(x) in nats, shape (B,)."""
        return self._components(sde, x, t)[2].logsumexp(dim=0).to(x.dtype)

    def score(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Gradient of log p_t(x); shape of `x`."""
        offset, variance, logits, _, _ = self._components(sde, x, t)
        return (-_rows(logits.softmax(dim=0) / variance, offset) * offset).sum(dim=0).to(x.dtype)

    def posterior(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and elementwise variance of x_0 given x_t = x."""
        offset, variance, logits, alpha, sigma = self._components(sde, x, t)
        probability = _rows(logits.softmax(dim=0), offset)
        means = self.means.unsqueeze(1) + _rows(alpha * self.stds[:, None] ** 2 / variance, offset) * offset
        variances = _rows(self.stds[:, None] ** 2 * sigma**2 / variance, offset)
        mean = (probability * means).sum(dim=0)
        return mean.to(x.dtype), (probability * (variances + (means - mean) ** 2)).sum(dim=0).to(x.dtype)

    def denoised(self, sde: SDE, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """E[x_0 | x_t = x]; shape of `x`."""
        return self.posterior(sde, x, t)[0]

    def cdf(self, sde: SDE, x: torch.Tensor, t: torch.Tensor, coordinate: int = 0) -> torch.Tensor:
        """Distribution function of one coordinate of x_t at `x` of shape (B,)."""
        t = torch.as_tensor(t).double()
        mean = sde.alpha(t) * self.means.flatten(1)[:, coordinate, None]
        std = (sde.alpha(t) ** 2 * self.stds[:, None] ** 2 + sde.sigma(t) ** 2).sqrt()
        return (self.weights[:, None] * torch.special.ndtr((x.double() - mean) / std)).sum(dim=0)


def _rows(coefficient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """View one number per row, or one for all, so that it multiplies `x`."""
    return coefficient.reshape(*coefficient.shape, *[1] * (x.ndim - coefficient.ndim))
