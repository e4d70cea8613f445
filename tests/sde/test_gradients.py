"""Gradients through both solvers and the bound: right ones, or none at all."""

import pytest
import torch

from diffusers_sde.sde import log_likelihood, probability_flow, score_and_divergence
from diffusers_sde.sde.elbo import denoising_elbo, elbo_times
from tests.oracles import SDES, Gaussian, GaussianMixture, seeded

T_MIN = 1e-3
MIXTURE = GaussianMixture([0.3, 0.7], torch.rand(2, 4, generator=seeded()), [0.2, 0.3])
SOLVERS = [("dopri5", 1e-5), ("adams", 1e-4)]


class Score(torch.nn.Module):
    """A smooth score that is not the gradient of any density, with parameters."""

    def __init__(self, sde):
        super().__init__()
        self.sde = sde
        draws = [torch.randn(4, 4, generator=seeded(i), dtype=torch.float64) for i in range(2)]
        self.first, self.second = (torch.nn.Parameter(0.5 * draw) for draw in draws)

    def forward(self, x, t):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        variance = alpha**2 + sigma**2
        return (alpha * torch.tanh(x / variance.sqrt() @ self.first) @ self.second - x) / variance


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


def difference_quotient(function, x, direction, h=1e-4):
    return (function(x + h * direction) - function(x - h * direction)) / (2 * h)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(("solver", "tolerance"), SOLVERS)
def test_the_gradient_of_the_log_density_is_the_score(name, solver, tolerance):
    """A solver whose evaluations are detached gives the gradient of the prior alone: 0.066 for -6.164."""
    sde = SDES[name]
    x_0 = MIXTURE.sample(3, seeded(1), dtype=torch.float64).requires_grad_()
    options = {"exact_trace": True, "solver": solver, "rtol": tolerance, "atol": tolerance}
    result = log_likelihood(sde, lambda x, t: MIXTURE.score(sde, x, t), x_0, t_start=T_MIN, **options)
    end = torch.tensor(1.0, dtype=torch.float64)  # p_1 is not quite the prior
    value = result.log_likelihood - sde.prior_log_prob(result.latents) + MIXTURE.log_prob(sde, result.latents, end)
    (gradient,) = torch.autograd.grad(value.sum(), x_0)
    assert relative_error(gradient, MIXTURE.score(sde, x_0.detach(), torch.tensor(T_MIN))) < 1e-3


@pytest.mark.parametrize("solver", ["dopri5", "adams"])
def test_default_tolerances_give_a_useful_gradient(solver):
    sde, data = SDES["vp"], Gaussian(0.2, 0.5)
    x_0 = data.sample((4, 6), seeded(1), dtype=torch.float64).requires_grad_()
    score_fn = lambda x, t: data.score(sde, x, t)  # noqa: E731
    result = log_likelihood(sde, score_fn, x_0, t_start=T_MIN, exact_trace=True, solver=solver)
    (gradient,) = torch.autograd.grad(result.log_likelihood.sum(), x_0)
    assert relative_error(gradient, data.score(sde, x_0.detach(), torch.tensor(T_MIN))) < 5e-3


@pytest.mark.parametrize(("name", "check"), [("ve", False), ("vp", True), ("subvp", False)])
@pytest.mark.parametrize(("solver", "tolerance"), SOLVERS)
def test_gradients_with_probes_are_difference_quotients(name, check, solver, tolerance):
    """With respect to the data and to parameters, of the same random numbers, with and without a second solution."""
    sde = SDES[name]
    score = Score(sde)
    x_0 = torch.randn(2, 4, generator=seeded(2), dtype=torch.float64)
    probes = torch.randn(2, 2, 4, generator=seeded(3), dtype=torch.float64)
    options = {"solver": solver, "rtol": tolerance, "atol": tolerance, "probes": probes, "t_start": 0.1}

    def value(x):
        return log_likelihood(sde, score, x, check=check, **options).log_likelihood.sum()

    x = x_0.clone().requires_grad_()
    to_x, to_parameter = torch.autograd.grad(value(x), (x, score.first))
    direction = torch.randn(2, 4, generator=seeded(4), dtype=torch.float64)
    expected = difference_quotient(value, x_0, direction)
    assert float((to_x * direction).sum()) == pytest.approx(float(expected), rel=1e-3)

    direction = torch.randn(4, 4, generator=seeded(5), dtype=torch.float64)
    start = score.first.detach().clone()

    def of_parameter(parameter):
        score.first.data.copy_(parameter)
        return value(x_0)

    expected = difference_quotient(of_parameter, start, direction)
    assert float((to_parameter * direction).sum()) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("solver", ["dopri5", "adams"])
@pytest.mark.parametrize("ends", [(1.0, T_MIN), (T_MIN, 1.0)])
def test_the_flow_of_gaussian_data_scales_gradients(name, solver, ends):
    sde, data = SDES[name], Gaussian(0.4, 0.3)
    variances = [data.moments(sde, torch.zeros(1), torch.tensor(t))[1] for t in ends]
    x = torch.randn(3, 2, 2, generator=seeded(), dtype=torch.float64).requires_grad_()
    end = probability_flow(sde, lambda x, t: data.score(sde, x, t), x, *ends, solver=solver, rtol=1e-6, atol=1e-6).x
    (gradient,) = torch.autograd.grad(end.sum(), x)
    assert relative_error(gradient, (variances[1] / variances[0]).sqrt().expand(x.shape)) < 1e-3


def test_the_bound_has_the_gradient_of_its_draws():
    sde = SDES["vp"]
    score = Score(sde)
    x_0 = torch.randn(2, 4, generator=seeded(2), dtype=torch.float64)
    t = elbo_times(sde, torch.rand(8, 2, generator=seeded(3)), T_MIN)

    def value(x):
        generator = seeded(4)
        noise = lambda: torch.randn(2, 4, generator=generator, dtype=torch.float64)  # noqa: E731
        return denoising_elbo(sde, score, x, t, noise, t_min=T_MIN).log_likelihood_bound.sum()

    x = x_0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    direction = torch.randn(2, 4, generator=seeded(5), dtype=torch.float64)
    expected = difference_quotient(value, x_0, direction)
    assert float((gradient * direction).sum()) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("solver", ["dopri5", "adams"])
def test_nothing_has_a_graph_that_nobody_asked_for(solver):
    """Parameters require gradients by default: a graph over all evaluations would be kept for nothing."""
    score, x = Score(SDES["vp"]), torch.randn(2, 4, generator=seeded(), dtype=torch.float64)
    result = log_likelihood(SDES["vp"], score, x, solver=solver, t_start=0.1, generator=seeded(1))
    flow = probability_flow(SDES["vp"], score, x, 1.0, 0.1, solver=solver)
    with torch.no_grad():
        silent = log_likelihood(SDES["vp"], score, x.requires_grad_(), solver=solver, t_start=0.1, num_probes=2)
    tensors = [*vars(result).values(), *vars(flow).values(), *vars(silent).values()]
    assert not any(value.requires_grad for value in tensors)


@pytest.mark.parametrize("exact", [True, False])
def test_the_divergence_has_a_gradient(exact):
    x = torch.randn(3, 2, 2, generator=seeded(), dtype=torch.float64).requires_grad_()
    probes = None if exact else torch.ones(1, 3, 2, 2, dtype=torch.float64)
    _, divergence = score_and_divergence(lambda x, t: -(x**3), x, torch.ones(3), probes)
    (gradient,) = torch.autograd.grad(divergence.sum(), x)
    assert torch.allclose(gradient, -6 * x)
