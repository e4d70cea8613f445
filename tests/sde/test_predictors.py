"""Predictors against the paper's schemes, written anew in tests/oracles.py, and their order of convergence."""

import math
from itertools import pairwise

import pytest
import torch

from diffusers_sde.sde import VESDE, make_predictor
from tests.oracles import RANKS, SDES, Gaussian, coefficients, predictor_step, seeded

DATA = Gaussian(0.5, 0.7)
ALLOWED = [
    (name, predictor, flow)
    for name in SDES
    for predictor in ("euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none")
    for flow in (False, True)
    if predictor != "ancestral_sampling" or (name != "subvp" and not flow)
]
MOVING = [case for case in ALLOWED if case[1] != "none"]


@pytest.mark.parametrize("name, predictor, flow", ALLOWED)
def test_a_step_is_that_of_the_paper(name, predictor, flow):
    """x_next = p x + q score + r z, x_next_mean without r z. Float64: rounding only.

    Catches a factor 2 in the probability flow, noise in it, g for g^2, beta(s) for beta(t), the order of t and s.
    """
    sde = SDES[name]
    x, score, noise = torch.randn(3, 4, 6, generator=seeded(1), dtype=torch.float64)
    t = torch.tensor([1.0, 0.6, 0.2, 0.013], dtype=torch.float64)
    s = t - 0.01
    x_next, x_mean = make_predictor(predictor, sde, flow).update(x, t, s, score, noise)
    for i in range(4):
        p, q, r = predictor_step(sde, predictor, flow, float(t[i]), float(s[i]))
        expected = p * x[i] + q * score[i]
        torch.testing.assert_close(x_mean[i], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(x_next[i], expected + r * noise[i], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name, predictor, flow", ALLOWED)
def test_every_rank_and_one_time_or_one_per_row(name, predictor, flow, rank):
    """A row depends on nothing but itself, and the noise is the one given."""
    part = make_predictor(predictor, SDES[name], flow)
    x, score, noise = torch.randn(3, 2, *RANKS[rank], generator=seeded(1))
    t = torch.tensor([0.9, 0.3])
    together = part.update(x, t, t - 0.01, score, noise)
    for i in range(2):
        alone = part.update(x[i : i + 1], t[i], t[i] - 0.01, score[i : i + 1], noise[i : i + 1])
        for ours, expected in zip(together, alone):
            assert ours.shape == x.shape
            torch.testing.assert_close(ours[i], expected[0], rtol=1e-5, atol=1e-5)


def recursion(part, sde, t_end, num_steps):
    """Mean and variance at t_end of Gaussian data in N equal steps from the exact law at t = 1.

    On Gaussian data a step is x_next = A x + C + B z; x = 0 and 1, with and without z, tell A, B and C of all steps.
    """
    times = torch.linspace(1.0, t_end, num_steps + 1, dtype=torch.float64)
    t, s = times[:-1], times[1:]

    def step(x, z):
        x = torch.full((num_steps, 1), x, dtype=torch.float64)
        return part.update(x, t, s, DATA.score(sde, x, t), torch.full_like(x, z))[0][:, 0]

    c, a, b = step(0.0, 0.0), step(1.0, 0.0) - step(0.0, 0.0), step(0.0, 1.0) - step(0.0, 0.0)
    mean, variance = exact_moments(sde, 1.0)
    for a_i, b_i, c_i in zip(a.tolist(), b.tolist(), c.tolist()):
        mean, variance = a_i * mean + c_i, a_i**2 * variance + b_i**2
    return mean, variance


def exact_moments(sde, t):
    alpha, sigma, _, _ = coefficients(sde, t)
    return alpha * float(DATA.mean), alpha**2 * float(DATA.std) ** 2 + sigma**2


@pytest.mark.parametrize("name, predictor, flow", MOVING)
def test_order_of_convergence_is_one(name, predictor, flow):
    """Weak error of the variance at t = 0.1 against the number of steps, as the slope between 1000 and 4000.

    The next order adds some percent to the slope at these steps; the largest error, of VP's probability flow by
    reverse diffusion, is 0.8 % at 4000 (the term beta^2 / (8 N^2) of 2 - sqrt(1 - beta / N), summed).
    Catches any wrong coefficient: the error then stops falling and the slope is 0.
    """
    sde = VESDE(0.1, 10.0) if name == "ve" else SDES[name]
    part = make_predictor(predictor, sde, flow)
    mean, variance = exact_moments(sde, 0.1)
    errors = []
    for num_steps in (1000, 4000):
        found_mean, found_variance = recursion(part, sde, 0.1, num_steps)
        assert found_mean == pytest.approx(mean, abs=20 / num_steps)
        errors.append(abs(found_variance / variance - 1))
    assert errors[1] < 0.01
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("predictor", ["euler_maruyama", "reverse_diffusion"])
def test_probability_flow_follows_the_exact_map(name, predictor):
    """Single states, not moments: each lands on its image under the closed-form map. Order 1 again, at coarser
    steps, so with more of the next order in the slope."""
    sde = VESDE(0.1, 10.0) if name == "ve" else SDES[name]
    part = make_predictor(predictor, sde, probability_flow=True)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * sde.prior_std
    (m_t, v_t), (m_s, v_s) = exact_moments(sde, 1.0), exact_moments(sde, 0.1)
    expected = m_s + math.sqrt(v_s / v_t) * (x - m_t)
    errors = []
    for num_steps in (100, 200):
        y = x
        times = torch.linspace(1.0, 0.1, num_steps + 1, dtype=torch.float64)
        for t, s in pairwise(times):
            y, _ = part.update(y, t, s, DATA.score(sde, y, t), torch.zeros_like(y))
        errors.append(float((y - expected).abs().max()))
    assert errors[1] < 0.2
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("name, predictor, flow", ALLOWED)
def test_what_a_predictor_says_of_itself(name, predictor, flow):
    part = make_predictor(predictor, SDES[name], flow)
    assert part.needs_score == (predictor != "none")
    assert part.draws_noise == (predictor != "none" and not flow)


def test_ve_reverse_diffusion_ends_without_noise_level():
    """Below the last time of the grid there is no noise: the step is the Tweedie mean x + sigma^2 score."""
    sde = SDES["ve"]
    t, s = sde.discretization_times(torch.tensor(0.0, dtype=torch.float64), 100)
    x, score = torch.randn(2, 2, 3, generator=seeded(), dtype=torch.float64)
    _, x_mean = make_predictor("reverse_diffusion", sde).update(x, t, s, score, torch.zeros_like(x))
    torch.testing.assert_close(x_mean, x + 0.01**2 * score, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name, flow", [("subvp", False), ("subvp", True), ("vp", True), ("ve", True)])
def test_ancestral_sampling_without_meaning_is_refused(name, flow):
    with pytest.raises(ValueError, match=r"'ancestral_sampling' .*'reverse_diffusion' or 'euler_maruyama'"):
        make_predictor("ancestral_sampling", SDES[name], flow)


def test_a_vp_step_of_variance_above_one_is_refused():
    """beta(1) / 10 = 2: the chain has no such step, and its square root would be NaN."""
    t, x = torch.tensor(1.0), torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"variance 2 >= 1.*more than 20 steps.*euler_maruyama"):
        make_predictor("reverse_diffusion", SDES["vp"]).update(x, t, t - 0.1, x, x)
