"""The oracles themselves: score and posterior mean are derived independently of each other and of the density."""

import pytest
import torch

from tests.oracles import RANKS, SDES, Gaussian, GaussianMixture, seeded

TIMES = torch.tensor([0.05, 0.3, 0.9], dtype=torch.float64)


def data_of(kind, shape):
    generator = seeded(1)
    draw = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    if kind == "gaussian":
        return Gaussian(draw[0], 0.2 + draw[1].abs())
    return GaussianMixture([0.2, 0.5, 0.3], draw, [0.3, 0.8, 0.1])


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", SDES)
def test_score_is_the_gradient_of_the_log_density(name, kind, rank):
    sde, data = SDES[name], data_of(kind, RANKS[rank])
    x = torch.randn(3, *RANKS[rank], generator=seeded(2), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(data.log_prob(sde, x, TIMES).sum(), x)
    # autograd in float64 of an expression with a handful of operations
    torch.testing.assert_close(data.score(sde, x, TIMES), gradient, rtol=1e-9, atol=1e-9)
    one_time = data.score(sde, x, TIMES[1])
    torch.testing.assert_close(one_time, data.score(sde, x, TIMES[1].expand(3)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", SDES)
def test_posterior_moments_agree_with_quadrature(name, kind):
    sde, t = SDES[name], torch.tensor(0.3, dtype=torch.float64)
    data = Gaussian(0.5, 0.7) if kind == "gaussian" else GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.2, 0.3])
    x_0 = torch.linspace(-6, 6, 40001, dtype=torch.float64)[:, None]  # smooth, tiny at both ends: sums will do
    no_noise = type("Clean", (), {"alpha": torch.ones_like, "sigma": torch.zeros_like})
    prior = data.log_prob(no_noise, x_0, t)
    for x in (-0.4, 0.9):
        likelihood = -0.5 * ((x - sde.alpha(t) * x_0[:, 0]) / sde.sigma(t)) ** 2
        weight = (prior + likelihood).softmax(dim=0)
        mean = (weight * x_0[:, 0]).sum()
        variance = (weight * (x_0[:, 0] - mean) ** 2).sum()
        found = data.posterior(sde, torch.tensor([[x]], dtype=torch.float64), t)
        torch.testing.assert_close(torch.stack(found).flatten(), torch.stack([mean, variance]), rtol=1e-8, atol=1e-10)


def test_samples_have_the_moments_of_the_mixture():
    data = GaussianMixture([0.2, 0.8], [[-1.0, 2.0], [0.5, 0.0]], [0.3, 0.6])
    x = data.sample(100_000, seeded(3), torch.float64)
    mean = torch.tensor([0.2 * -1 + 0.8 * 0.5, 0.2 * 2.0], dtype=torch.float64)
    # standard error of a mean: sqrt(1.0 / 1e5) = 0.003 at most; 4 of them
    torch.testing.assert_close(x.mean(dim=0), mean, rtol=0, atol=0.013)
