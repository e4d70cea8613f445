"""The denoising bound against its closed form on Gaussian data."""

import math

import pytest
import torch

from diffusers_sde.sde.elbo import denoising_elbo, elbo_times
from tests.oracles import SDES, Gaussian, seeded

T_MIN = 1e-3
MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)


def draws(shape, seed=0):
    generator = seeded(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def estimate(sde, x_0, num_times, time_sampling="importance", scale=1.0):
    uniform = torch.rand(num_times, len(x_0), generator=seeded(1), dtype=torch.float64)
    t = elbo_times(sde, uniform, T_MIN, time_sampling)
    score = lambda x, t: scale * DATA.score(sde, x, t)  # noqa: E731
    return denoising_elbo(
        sde, score, x_0, t, draws(x_0.shape), t_min=T_MIN, num_reconstructions=8, time_sampling=time_sampling
    )


def closed_form(sde, x_0, scale=1.0):
    """Terms of the bound with k times the exact score: with r = sigma^2 / alpha^2 and q = r / (c^2 + r),

    noise + k sigma s = (1 - k q) noise - k q (x_0 - m) / sqrt(r),

    whose expected square is integrated over log_snr by Simpson's rule.
    """
    ends = sde.log_snr(torch.tensor([1.0, T_MIN], dtype=torch.float64))
    grid = torch.linspace(float(ends[0]), float(ends[1]), 4001, dtype=torch.float64)
    ratio = (-grid).exp()
    share = ratio / (STD**2 + ratio)
    offset = (x_0 - MEAN).square().flatten(1).sum(dim=1)[:, None]
    dims = x_0[0].numel()
    squares = dims * (1 - scale * share) ** 2 + (scale * share) ** 2 / ratio * offset
    weights = torch.ones_like(grid)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    diffusion = -0.5 * (squares * weights).sum(dim=1) * (grid[1] - grid[0]) / 3
    t = torch.tensor(1.0, dtype=torch.float64)
    prior = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(sde.prior_std).double())
    end = torch.distributions.Normal(sde.alpha(t) * x_0, sde.sigma(t))
    prior = -torch.distributions.kl_divergence(end, prior).flatten(1).sum(dim=1)
    reconstruction = -0.5 * (dims * (2 * math.pi * ratio[-1]).log() + squares[:, -1])
    return prior, diffusion, reconstruction


def model_log_prob(sde, x_0, scale):
    """Log-density of what the bound is about: the prior, the reverse-time SDE to t_min, the Gaussian at the end.

    With a linear score all of it is Gaussian; mean and variance follow two ODEs, integrated here by Heun's method.
    """
    ends = [float(v) for v in sde.log_snr(torch.tensor([1.0, T_MIN], dtype=torch.float64))]
    t = sde.time_of_log_snr(torch.linspace(*ends, 20_001, dtype=torch.float64))
    t[0], t[-1] = 1.0, T_MIN
    alpha, variance = sde.alpha(t), sde.alpha(t) ** 2 * STD**2 + sde.sigma(t) ** 2
    pull, square = scale * sde.diffusion(t) ** 2 / variance, sde.diffusion(t) ** 2
    rate, center = (sde.drift_coefficient(t) + pull).tolist(), (pull * alpha * MEAN).tolist()
    square, t = square.tolist(), t.tolist()
    mean, var = 0.0, sde.prior_std**2
    for i in range(len(t) - 1):
        dt = t[i + 1] - t[i]
        slopes = rate[i] * mean - center[i], 2 * rate[i] * var - square[i]
        guess = mean + dt * slopes[0], var + dt * slopes[1]
        mean += dt / 2 * (slopes[0] + rate[i + 1] * guess[0] - center[i + 1])
        var += dt / 2 * (slopes[1] + 2 * rate[i + 1] * guess[1] - square[i + 1])
    a, v = float(alpha[-1]), float(variance[-1])
    noise = v - a**2 * STD**2
    gain = 1 - scale * noise / v
    mean, var = (gain * mean + (1 - gain) * a * MEAN) / a, (gain**2 * var + noise) / a**2
    return torch.distributions.Normal(mean, var**0.5).log_prob(x_0).flatten(1).sum(dim=1)


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("name", SDES)
def test_terms_and_gap(name, scale):
    sde, x_0 = SDES[name], DATA.sample((64, 3, 4, 4), seeded(2), dtype=torch.float64)
    result, terms = estimate(sde, x_0, 64, scale=scale), closed_form(sde, x_0, scale)
    torch.testing.assert_close(result.prior, terms[0], rtol=1e-6, atol=1e-9)
    z = (result.log_likelihood_bound - sum(terms)) / result.standard_error
    # The estimate of the standard error has its own noise, and is cautious for times in strata.
    assert abs(float(z.mean())) < 5 / 64**0.5
    assert 0.5 < float(z.square().mean()) < 1.5
    # Without the control variate the draws of the noise would leave sqrt(48 / 2 / 8) = 1.7 nats.
    assert float((result.reconstruction - terms[2]).abs().mean()) < 0.3
    gap = model_log_prob(sde, x_0, scale) - sum(terms)
    if scale == 1.0:  # the reverse-time SDE is the process itself: nothing is lost but at the two ends
        assert float(gap.abs().max()) < 0.05
    else:
        assert bool((gap > 1).all())
        measured = model_log_prob(sde, x_0, scale) - result.log_likelihood_bound
        assert float((measured - gap).mean().abs()) < 5 * float(result.standard_error.mean()) / 64**0.5


@pytest.mark.parametrize("name", SDES)
def test_more_times_cost_less_error(name):
    sde, x_0 = SDES[name], DATA.sample((16, 48), seeded(2), dtype=torch.float64)
    errors = [estimate(sde, x_0, n) for n in (16, 256)]
    assert float(errors[1].diffusion.sub(closed_form(sde, x_0)[1]).abs().mean()) < 0.5 * float(
        errors[0].diffusion.sub(closed_form(sde, x_0)[1]).abs().mean()
    )


def test_a_worse_score_has_a_lower_bound():
    sde, x_0 = SDES["vp"], DATA.sample((64, 48), seeded(2), dtype=torch.float64)
    exact, worse = (estimate(sde, x_0, 32, scale=scale).log_likelihood_bound.mean() for scale in (1.0, 0.8))
    assert worse < exact - 1


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_uniform_times_estimate_the_same(name):
    sde, x_0 = SDES[name], DATA.sample((256, 12), seeded(2), dtype=torch.float64)
    uniform, importance = (estimate(sde, x_0, 256, s).diffusion.mean() for s in ("uniform", "importance"))
    # Rare large terms: within 15 %, where a missing weight would be a factor.
    assert float(uniform) == pytest.approx(float(importance), rel=0.15)


def test_importance_sampling_is_uniform_in_log_snr():
    sde = SDES["subvp"]
    t = elbo_times(sde, torch.full((9, 1), 0.5), T_MIN)
    steps = sde.log_snr(t).diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=0)
    assert float(t.min()) > T_MIN and float(t.max()) < 1


def test_bad_arguments():
    x_0 = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="time_sampling is 'log'; allowed are 'importance', 'uniform'"):
        elbo_times(SDES["vp"], torch.rand(2, 2, generator=seeded()), T_MIN, "log")
    with pytest.raises(ValueError, match=r"t_min is 0\.0; it must lie between 0 and 1"):
        elbo_times(SDES["vp"], torch.rand(2, 2, generator=seeded()), 0.0)
    with pytest.raises(ValueError, match="1 times and 4 reconstructions; at least 2"):
        denoising_elbo(SDES["vp"], None, x_0, torch.ones(1, 2), draws(x_0.shape), t_min=T_MIN)
