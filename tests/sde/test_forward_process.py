"""alpha, sigma, f and g belong together, and sizes and types are kept."""

import math

import pytest
import torch

from diffusers_sde.sde import SDE, VESDE, VPSDE, SubVPSDE
from tests.oracles import RANKS, SDES, GaussianMixture, coefficients, ks_critical, ks_distance, seeded

TIMES = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)


class CosineSDE(SDE):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2); f = -pi/2 tan(pi t / 2), g^2 = pi tan(pi t / 2)."""

    prior_std = 1.0

    def alpha(self, t):
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t):
        return torch.sin(0.5 * math.pi * t)


class Redeclared(SDE):
    """alpha and sigma of another SDE, and nothing else of it."""

    def __init__(self, sde):
        self.alpha_of, self.sigma_of, self.prior_std = sde.alpha, sde.sigma, sde.prior_std

    def alpha(self, t):
        return self.alpha_of(t)

    def sigma(self, t):
        return self.sigma_of(t)


EVERY_SDE = SDES | {"cosine": CosineSDE()} | {f"{name}_redeclared": Redeclared(sde) for name, sde in SDES.items()}


@pytest.mark.parametrize("name", SDES)
def test_closed_forms_are_those_of_the_paper(name):
    """Catches any changed coefficient: the formulas are written a second time in tests/oracles.py."""
    sde = SDES[name]
    expected = torch.tensor([coefficients(sde, float(t)) for t in TIMES], dtype=torch.float64)
    found = torch.stack([sde.alpha(TIMES), sde.sigma(TIMES), sde.drift_coefficient(TIMES), sde.diffusion(TIMES) ** 2])
    torch.testing.assert_close(found.T, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", EVERY_SDE)
def test_drift_is_the_logarithmic_derivative_of_alpha(name):
    """f = d log alpha / dt. Central differences: error h^2 f'' / 6 + 1e-16 / h, below 1e-6 for h = 1e-5."""
    sde, h = EVERY_SDE[name], 1e-5
    slope = (sde.alpha(TIMES + h).log() - sde.alpha(TIMES - h).log()) / (2 * h)
    torch.testing.assert_close(sde.drift_coefficient(TIMES), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", EVERY_SDE)
def test_diffusion_is_the_growth_of_variance(name):
    """g^2 = d sigma^2 / dt - 2 f sigma^2, with the derivative taken numerically."""
    sde, h = EVERY_SDE[name], 1e-5
    slope = (sde.sigma(TIMES + h) ** 2 - sde.sigma(TIMES - h) ** 2) / (2 * h)
    expected = slope - 2 * sde.drift_coefficient(TIMES) * sde.sigma(TIMES) ** 2
    torch.testing.assert_close(sde.diffusion(TIMES) ** 2, expected, rtol=1e-6, atol=1e-8)


def test_a_new_sde_needs_two_methods():
    sde = CosineSDE()
    tangent = torch.tan(0.5 * math.pi * TIMES)
    torch.testing.assert_close(sde.drift_coefficient(TIMES), -0.5 * math.pi * tangent)
    torch.testing.assert_close(sde.diffusion(TIMES), (math.pi * tangent).sqrt())


@pytest.mark.parametrize("name", SDES)
def test_derived_coefficients_equal_closed_forms(name):
    """Automatic derivatives in float64 against closed forms: rounding only."""
    derived, closed = Redeclared(SDES[name]), SDES[name]
    torch.testing.assert_close(derived.drift_coefficient(TIMES), closed.drift_coefficient(TIMES), rtol=1e-10, atol=0)
    torch.testing.assert_close(derived.diffusion(TIMES), closed.diffusion(TIMES), rtol=1e-9, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_derived_coefficients_while_sampling(mode):
    """Samplers run without gradients, and so must the derivation of f and g within them."""
    with mode():
        t = torch.tensor(0.3, dtype=torch.float64)
        assert float(CosineSDE().drift_coefficient(t)) == pytest.approx(-0.5 * math.pi * math.tan(0.15 * math.pi))


@pytest.mark.parametrize("name", EVERY_SDE)
def test_log_snr_falls_and_is_inverted(name):
    sde = EVERY_SDE[name]
    value = sde.log_snr(TIMES)
    torch.testing.assert_close(value, (sde.alpha(TIMES) ** 2 / sde.sigma(TIMES) ** 2).log(), rtol=1e-10, atol=1e-12)
    assert (value.diff() < 0).all()
    # log_snr falls by 0.2 per 0.01 at least, so its rounding of some 1e-15 stays below 1e-12 in t
    torch.testing.assert_close(sde.time_of_log_snr(value), TIMES, rtol=0, atol=1e-11)
    torch.testing.assert_close(SDE.time_of_log_snr(sde, value), TIMES, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", SDES)
def test_times_beyond_the_log_snr_range_are_clamped(name):
    value = torch.tensor([1e3, -1e3], dtype=torch.float64)
    torch.testing.assert_close(SDES[name].time_of_log_snr(value), torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(SDE.time_of_log_snr(SDES[name], value), torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("name", SDES)
def test_float32_keeps_its_digits_at_small_times(name):
    """Catches 1 - exp(-y) for expm1, which is off by 1 % at t = 1e-5 in float32."""
    sde, t = SDES[name], torch.tensor([1e-5, 1e-4, 1e-3, 0.1, 1.0])
    for function in (sde.sigma, sde.diffusion):
        torch.testing.assert_close(function(t).double(), function(t.double()), rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", SDES)
def test_perturb_is_mean_and_std(name):
    sde, t = SDES[name], torch.tensor([0.2, 0.7])
    x_0, noise = torch.randn(2, 2, 5, generator=seeded(1))
    expected = [sde.alpha(t)[i] * x_0[i] + sde.sigma(t)[i] * noise[i] for i in range(2)]
    torch.testing.assert_close(sde.perturb(x_0, noise, t), torch.stack(expected))


@pytest.mark.parametrize("name", SDES)
def test_drifts_of_reverse_sde_and_probability_flow(name):
    """Eq. 6: f x - g^2 score, Eq. 13: f x - g^2 score / 2."""
    sde, t = SDES[name], torch.tensor([0.2, 0.7], dtype=torch.float64)
    x, score = torch.randn(2, 2, 5, generator=seeded(1), dtype=torch.float64)
    for i in range(2):
        _, _, f, g_squared = coefficients(sde, float(t[i]))
        torch.testing.assert_close(sde.reverse_drift(x, t, score)[i], f * x[i] - g_squared * score[i])
        torch.testing.assert_close(sde.probability_flow_drift(x, t, score)[i], f * x[i] - 0.5 * g_squared * score[i])


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", EVERY_SDE)
def test_every_rank_and_one_time_or_one_per_row(name, rank):
    sde, shape = EVERY_SDE[name], (3, *RANKS[rank])
    x, y = torch.randn(2, *shape, generator=seeded(rank))
    t = torch.tensor([0.1, 0.5, 0.9])
    for function in (lambda x, y, t: sde.drift(x, t), sde.perturb, lambda x, y, t: sde.reverse_drift(x, t, y)):
        together = function(x, y, t)
        assert together.shape == shape
        one_by_one = torch.cat([function(x[i : i + 1], y[i : i + 1], t[i]) for i in range(3)])
        torch.testing.assert_close(together, one_by_one, rtol=1e-6, atol=1e-6)
    for function in (sde.alpha, sde.sigma, sde.drift_coefficient, sde.diffusion, sde.log_snr):
        assert function(t).shape == (3,) and function(t[0]).shape == ()


@pytest.mark.parametrize("t", [torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64)])
@pytest.mark.parametrize("name", SDES)
def test_a_float64_time_leaves_a_float32_state(name, t):
    x = torch.ones(2, 5)
    assert SDES[name].drift(x, t).dtype == SDES[name].perturb(x, x, t).dtype == torch.float32


@pytest.mark.parametrize("shape, t_shape", [((3,), (3,)), ((3, 4), (4,)), ((3, 4), (3, 1))])
def test_times_that_do_not_fit_the_state_are_refused(shape, t_shape):
    """Catches trailing broadcasting, by which (4,) fits the columns of (3, 4)."""
    with pytest.raises(ValueError, match="does not fit a state of shape"):
        SDES["vp"].drift(torch.ones(shape), torch.full(t_shape, 0.5))


@pytest.mark.parametrize("name", EVERY_SDE)
def test_prior(name):
    sde = EVERY_SDE[name]
    z = sde.prior_sample((4000, 2, 5), seeded(5), dtype=torch.float64)
    normal = torch.distributions.Normal(*torch.tensor([0.0, sde.prior_std], dtype=torch.float64))
    # KS over 40000 independent numbers
    assert ks_distance(z.flatten(), normal.cdf) < ks_critical(z.numel())
    torch.testing.assert_close(sde.prior_log_prob(z), normal.log_prob(z).sum(dim=(1, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(z, sde.prior_sample((4000, 2, 5), seeded(5), dtype=torch.float64), rtol=0, atol=0)


@pytest.mark.parametrize("name", SDES)
def test_prior_std_is_sigma_at_one(name):
    """Up to the rest of the data: alpha(1) = 0.0066 for VP and sub-VP, whose sigma(1) is 1 within alpha^2."""
    assert SDES[name].prior_std == pytest.approx(float(SDES[name].sigma(torch.tensor(1.0))), rel=1e-4)


@pytest.mark.parametrize("name", SDES)
def test_simulated_forward_process_has_the_marginals(name):
    """Euler-Maruyama from data to t = 0.4 and t = 1: alpha by regression on x_0, sigma, and the whole law by KS.

    1000 steps: the scheme's own error is 0.5 % of the variance (half a step of beta or of log sigma^2), 0.1 of the KS
    bound. Catches drift and diffusion that do not belong to alpha and sigma.
    """
    sde, n, steps = SDES[name], 20_000, 1000
    data = GaussianMixture([0.4, 0.6], [[-1.5], [1.0]], [0.2, 0.4])
    generator = seeded(7)
    x = x_0 = data.sample(n, generator, torch.float32)
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    drift, diffusion = sde.drift_coefficient(times).tolist(), (sde.diffusion(times) / steps**0.5).tolist()
    for i in range(steps):
        x = x + drift[i] / steps * x + diffusion[i] * torch.randn(x.shape, generator=generator)
        if i + 1 in (400, 1000):
            check_marginal(sde, data, x_0[:, 0].double(), x[:, 0].double(), times[i + 1])


def check_marginal(sde, data, x_0, x, t):
    assert ks_distance(x, lambda x: data.cdf(sde, x, t)) < ks_critical(len(x))
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    centered = x_0 - x_0.mean()
    slope = float((centered * x).mean() / centered.square().mean())
    standard_error = sigma / float(centered.std()) / len(x) ** 0.5
    assert slope == pytest.approx(alpha, abs=4 * standard_error + 0.003)
    residual = float((x - alpha * x_0).std())
    assert residual == pytest.approx(sigma, rel=4 / (2 * len(x)) ** 0.5 + 0.005)


@pytest.mark.parametrize("arguments", [(0, 1), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (0.1, math.inf), (0.1, math.nan)])
def test_sigmas_out_of_order_are_refused(arguments):
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        VESDE(*arguments)


@pytest.mark.parametrize("cls", [VPSDE, SubVPSDE])
@pytest.mark.parametrize("arguments", [(-0.1, 20.0), (20.0, 0.1), (0.0, 0.0), (0.1, math.inf), (0.1, math.nan)])
def test_betas_out_of_order_are_refused(cls, arguments):
    with pytest.raises(ValueError, match="0 <= beta_min <= beta_max"):
        cls(*arguments)
