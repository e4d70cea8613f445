"""Correctors: step sizes of the paper, and stationary laws known in closed form."""

import pytest
import torch

from diffusers_sde.sde import make_corrector
from tests.oracles import RANKS, SDES, Gaussian, GaussianMixture, forward_step, ks_critical, ks_distance, seeded

T = torch.tensor(0.3, dtype=torch.float64)
S = T - 1e-3
R = 0.3  # large, so that the bias of the step shows


def expected_step(name, step_size, x, score, noise):
    """x + a^2 e score + sqrt(2 a^2 e) noise, with a of the forward step from S to T."""
    epsilon = forward_step(SDES[name], float(T), float(S))[0] ** 2 * step_size
    x_mean = x + epsilon * score
    return x_mean + (2 * epsilon) ** 0.5 * noise, x_mean


def lengths(x):
    return torch.stack([row.square().sum().sqrt() for row in x])


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("name", SDES)
def test_langevin_step(name, norm, rank):
    """e = 2 (r |z| / |score|)^2, of each row or of the means over the batch (official code).

    Catches the norm of the whole tensor, means of squares for squares of means, a missing a^2, sqrt(e) for sqrt(2 e).
    """
    x, score, noise = torch.randn(3, 4, *RANKS[rank], generator=seeded(1), dtype=torch.float64)
    score = score * torch.tensor([1.0, 2.0, 5.0, 0.1]).reshape(-1, *[1] * (rank - 1))
    corrector = make_corrector("langevin", SDES[name], R, norm)
    size = 2 * (R * lengths(noise) / lengths(score)) ** 2
    if norm == "batch":
        size = (2 * (R * lengths(noise).mean() / lengths(score).mean()) ** 2).expand(4)
    expected = expected_step(name, size.reshape(-1, *[1] * (rank - 1)), x, score, noise)
    for ours, theirs in zip(corrector.update(x, T, S, score, noise), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("name", SDES)
def test_ald_step(name, norm):
    """e = 2 (r sigma(t))^2, of the time itself, not of s."""
    x, score, noise = torch.randn(3, 4, 6, generator=seeded(1), dtype=torch.float64)
    corrector = make_corrector("ald", SDES[name], R, norm)
    expected = expected_step(name, float(2 * (R * SDES[name].sigma(T)) ** 2), x, score, noise)
    for ours, theirs in zip(corrector.update(x, T, S, score, noise), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("corrector", ["langevin", "ald", "none"])
@pytest.mark.parametrize("name", SDES)
def test_rows_do_not_depend_on_their_batch(name, corrector):
    """With norm "sample" a row alone is the row in company, to the bit up to the order of a sum."""
    part = make_corrector(corrector, SDES[name], R, "sample")
    x, score, noise = torch.randn(3, 4, 3, 4, 5, generator=seeded(1))
    t = torch.tensor([0.2, 0.4, 0.6, 0.8])
    together = part.update(x, t, t - 0.01, score, noise)[0]
    for i in range(4):
        row = slice(i, i + 1)
        alone = part.update(x[row], t[row], t[row] - 0.01, score[row], noise[row])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-6, atol=1e-6)


def test_batch_norm_makes_rows_depend_on_their_batch():
    """What `corrector_norm="batch"` is for, and what the test above would miss if norms were not taken at all."""
    part = make_corrector("langevin", SDES["ve"], R, "batch")
    x, score, noise = torch.randn(3, 4, 5, generator=seeded(1))
    together = part.update(x, T, S, score, noise)[0]
    assert (together[:1] - part.update(x[:1], T, S, score[:1], noise[:1])[0]).abs().max() > 1e-3


def run(name, data, corrector, snr, norm, x, num_steps):
    """Corrector steps at fixed time with the exact score."""
    part, generator = make_corrector(corrector, SDES[name], snr, norm), seeded(5)
    for _ in range(num_steps):
        noise = torch.randn(x.shape, generator=generator)
        x, _ = part.update(x, T, S, data.score(SDES[name], x, T), noise)
    return x.double()


@pytest.mark.parametrize("corrector, norm", [("ald", "sample"), ("langevin", "sample"), ("langevin", "batch")])
@pytest.mark.parametrize("name", SDES)
def test_stationary_variance_on_gaussian_data(name, corrector, norm):
    """From another law to the stationary one, whose bias is known.

    A step x_next = (1 - e/V) x + sqrt(2 e) z has the stationary variance V / (1 - e / (2 V)). For ald e is given. For
    langevin in many dimensions |z|^2 / |score|^2 = V^2 / Q, with Q the variance itself; then Q = V (1 + (a r)^2), up
    to 1/d. A step takes 2 e / V off the deviation, 0.18 or more: 60 steps leave e-11 of it.
    """
    sde, data, dims, batch = SDES[name], Gaussian(0.5, 0.2), 512, 200
    mean, v = (float(moment) for moment in data.moments(sde, torch.ones(1), T))
    a_squared = forward_step(sde, float(T), float(S))[0] ** 2
    if corrector == "ald":
        expected = v / (1 - a_squared * (R * float(sde.sigma(T))) ** 2 / v)
    else:
        expected = v * (1 + a_squared * R**2)
    start = mean + 1.5 * v**0.5 * torch.randn(batch, dims, generator=seeded(4))
    x = run(name, data, corrector, R, norm, start, 60)
    error = (2 / x.numel()) ** 0.5  # relative standard error of a variance, 0.44 %
    assert float(x.mean()) == pytest.approx(mean, abs=4 * (expected / x.numel()) ** 0.5)
    assert float((x - mean).square().mean()) == pytest.approx(expected, rel=4 * error + 4 / dims)


@pytest.mark.parametrize("corrector, norm", [("ald", "sample"), ("langevin", "batch")])
@pytest.mark.parametrize("name", SDES)
def test_the_marginal_of_a_mixture_is_left_invariant(name, corrector, norm):
    """50 small steps from p_t itself; the bias, of the order of r^2 = 1 % of the variance, is a fifth of the KS bound.

    Catches noise of sqrt(e) for sqrt(2 e), which would halve the variance within these steps.
    (One step size for all rows: with few dimensions a row's own |z| / |score| is no step size to speak of.)
    """
    sde, n = SDES[name], 10_000
    data = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5])
    x_0 = data.sample(n, seeded(1))
    x = sde.perturb(x_0, torch.randn(x_0.shape, generator=seeded(2)), T.float())
    x = run(name, data, corrector, 0.1, norm, x, 50)
    for coordinate in range(2):
        distance = ks_distance(x[:, coordinate], lambda y, c=coordinate: data.cdf(sde, y, T, c))
        assert distance < ks_critical(n)


@pytest.mark.parametrize("name", SDES)
def test_none_leaves_the_state(name):
    part = make_corrector("none", SDES[name], R)
    x = torch.randn(2, 3, generator=seeded())
    assert not part.needs_score
    assert all(torch.equal(y, x) for y in part.update(x, T, S, None, None))


@pytest.mark.parametrize("snr", [0, 0.0, -0.1, float("nan")])
def test_snr_must_be_positive(snr):
    with pytest.raises(ValueError, match=r"`snr` is .*positive"):
        make_corrector("langevin", SDES["ve"], snr)


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"'mean'.*'sample', 'batch'"):
        make_corrector("langevin", SDES["ve"], 0.1, "mean")
