"""Exponential multistep steps: closed forms, measured orders, moments, and diffusers' own solvers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffusers_sde.sde.exponential import MAX_ORDER, PREDICTIONS, step_coefficients
from tests.oracles import SDES, Gaussian, seeded

# Three spreads: the error of one crosses zero at some number of steps, that of all does not.
DATA = Gaussian(torch.tensor([0.4, -0.2, 0.1]), torch.tensor([0.1, 0.3, 1.0]))
FIRST, LAST = 0.8, 0.05  # times between which the paths are followed


def level(sde, t):
    t = torch.tensor(t, dtype=torch.float64)
    return float(sde.alpha(t)), float(sde.sigma(t))


def times_of_uniform_steps(sde, steps):
    ends = [float(sde.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (FIRST, LAST)]
    return sde.time_of_log_snr(torch.linspace(*ends, steps + 1, dtype=torch.float64)).tolist()


def predicted(sde, x, t, prediction):
    t = torch.tensor(t, dtype=torch.float64)
    if prediction == "epsilon":
        return -sde.sigma(t) * DATA.score(sde, x, t)
    return DATA.denoised(sde, x, t)


def run(sde, x, steps, order, prediction, eta=0.0, generator=None, past=()):
    """The state at LAST, from x at FIRST, in equal steps of log SNR; the first ones have the order that they can."""
    times, past = times_of_uniform_steps(sde, steps), list(past)
    for t, s in pairwise(times):
        past = [(level(sde, t), predicted(sde, x, t, prediction)), *past][:order]
        step = step_coefficients([place for place, _ in past], level(sde, s), prediction, eta)
        x = step.carry * x + sum(w * value for w, (_, value) in zip(step.weights, past, strict=True))
        if step.noise_std:
            x = x + step.noise_std * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def exact_flow(sde, x, t):
    """The flow from FIRST to t: that of Gaussian data keeps (x - alpha m) / sqrt(V)."""
    (m0, v0), (m1, v1) = (DATA.moments(sde, x, torch.tensor(t, dtype=torch.float64)) for t in (FIRST, t))
    return m1 + (x - m0) * (v1 / v0).sqrt()


def exact_past(sde, x, steps, prediction):
    """Values before FIRST on the exact path, at the same steps of log SNR, newest first: a start of full order."""
    ends = [sde.log_snr(torch.tensor(t, dtype=torch.float64)) for t in (FIRST, LAST)]
    h = (ends[1] - ends[0]) / steps
    times = [float(sde.time_of_log_snr(ends[0] - k * h)) for k in range(1, MAX_ORDER)]
    return [(level(sde, t), predicted(sde, exact_flow(sde, x, t), t, prediction)) for t in times]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("order", range(1, MAX_ORDER + 1))
@pytest.mark.parametrize("name", SDES)
def test_the_error_falls_with_the_order(name, order, prediction):
    """Slope of the error over the number of steps."""
    sde = SDES[name]
    x = DATA.sample((200, 3), seeded(), torch.float64) * sde.alpha(torch.tensor(FIRST)).double()
    x = x + sde.sigma(torch.tensor(FIRST)).double() * torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    errors = []
    for n in (192, 384):
        found = run(sde, x, n, order, prediction, past=exact_past(sde, x, n, prediction))
        errors.append(float((found - exact_flow(sde, x, LAST)).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.35, errors


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.5, 1.0, 1.4])
@pytest.mark.parametrize("name", SDES)
def test_one_step_with_the_values_held_is_the_exact_solution_of_the_linear_sde(name, eta, prediction):
    """Mean and variance of dw from the module's equations, integrated numerically in 20,000 small steps."""
    sde, t, s, value = SDES[name], 0.6, 0.4, 0.7
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(sde, t), level(sde, s)
    step = step_coefficients([(alpha_t, sigma_t)], (alpha_s, sigma_s), prediction, eta)
    start, end = math.log(alpha_t / sigma_t), math.log(alpha_s / sigma_s)
    mean, variance, n = 1.3 / sigma_t, 0.0, 20_000
    h = (end - start) / n
    for lam in start + h * (np.arange(n) + 0.5):
        rate = 1.0 if prediction == "epsilon" else -(eta**2)
        force = -(1 + eta**2) * value * (1.0 if prediction == "epsilon" else -math.exp(lam))
        mean = mean * (1 + rate * h + (rate * h) ** 2 / 2) + force * h * (1 + rate * h / 2)
        variance = variance * math.exp(2 * rate * h) + 2 * eta**2 * h
    assert step.carry * 1.3 + step.weights[0] * value == pytest.approx(sigma_s * mean, rel=2e-5)
    assert step.noise_std == pytest.approx(sigma_s * math.sqrt(variance), rel=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", SDES)
def test_samples_have_the_moments_of_the_marginal(name, order, eta, prediction):
    """All eta share the marginals p_t; an error in the noise or its compensation changes the spread."""
    sde = SDES[name]
    mean, variance = DATA.moments(sde, torch.zeros(1, 3), torch.tensor(FIRST, dtype=torch.float64))
    x = mean + variance.sqrt() * torch.randn(40_000, 3, generator=seeded(), dtype=torch.float64)
    x = run(sde, x, 100, order, prediction, eta, seeded(1))
    mean, variance = DATA.moments(sde, x, torch.tensor(LAST, dtype=torch.float64))
    # 5 standard errors of 40,000 draws, and the first order's own error.
    room = 0.06 if order == 1 else 0.0
    assert ((x.mean(dim=0) - mean) / variance.sqrt()).abs().max() < 5 / 200 + room
    assert (x.std(dim=0) / variance.sqrt() - 1).abs().max() < 5 / (200 * math.sqrt(2)) + room


def levels_of(scheduler):
    """alpha and sigma of diffusers' sigmas."""
    return [(1 / math.sqrt(1 + s**2), s / math.sqrt(1 + s**2)) for s in scheduler.sigmas.double().tolist()]


def network(x, alpha, sigma):
    """A smooth epsilon that no solver is exact for."""
    return sigma * (x + 0.1 * torch.sin(3 * x))


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"])
def test_equals_the_multistep_solver_of_diffusers(algorithm, order):
    """At its nodes: `heun` is its name for the exact integral of the linear polynomial. Its third order is another."""
    scheduler = DPMSolverMultistepScheduler(
        solver_order=order,
        algorithm_type=algorithm,
        solver_type="heun",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(12)
    levels, eta = levels_of(scheduler), float(algorithm.startswith("sde"))
    prediction = "denoised" if algorithm.endswith("++") else "epsilon"
    theirs = ours = torch.randn(2, 3, generator=seeded()).double()
    past = []
    for i, timestep in enumerate(scheduler.timesteps):
        (alpha, sigma), noise = levels[i], torch.randn(2, 3, generator=seeded(i)).double()
        theirs = scheduler.step(network(theirs, alpha, sigma), timestep, theirs, variance_noise=noise).prev_sample
        epsilon = network(ours, alpha, sigma)
        value = epsilon if prediction == "epsilon" else (ours - sigma * epsilon) / alpha
        past = [(levels[i], value), *past][:order]
        step = step_coefficients([place for place, _ in past], levels[i + 1], prediction, eta)
        ours = step.carry * ours + sum(w * v for w, (_, v) in zip(step.weights, past)) + step.noise_std * noise
        assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max(), i  # its coefficients are float32


def test_the_first_order_on_epsilon_is_ddim():
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    x = torch.randn(2, 3, generator=seeded()).double()
    alphas = scheduler.alphas_cumprod.double().sqrt()
    for t, s in zip(scheduler.timesteps, scheduler.timesteps[1:]):
        places = [(float(alphas[i]), math.sqrt(1 - float(alphas[i]) ** 2)) for i in (t, s)]
        epsilon = network(x, *places[0])
        step = step_coefficients(places[:1], places[1])
        expected = scheduler.step(epsilon, t, x).prev_sample
        x = step.carry * x + step.weights[0] * epsilon
        assert torch.allclose(x, expected.double(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(1, 1.0)], (1, 0.5), "score"), "`prediction` is 'score'; allowed are 'epsilon', 'denoised'"),
        (([], (1, 0.5)), "`past` has 0 evaluations; a step takes 1 to 4"),
        (([(1, 2.0**i) for i in range(5)], (1, 0.5)), "`past` has 5"),
        (([(1, 1.0)], (1, 0.5), "epsilon", -0.1), "`eta` is -0.1"),
        (([(1, 1.0)], (1, 1.0)), "has to fall"),
        (([(1, 1.0), (1, 0.7)], (1, 0.5)), "it is 0.7, 1, 0.5"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        step_coefficients(*arguments)
