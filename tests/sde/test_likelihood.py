"""Log-density by the probability flow against the closed form of Gaussian and mixture data."""

import math

import pytest
import torch

from diffusers_sde.sde import draw_probes, log_likelihood, score_and_divergence
from tests.oracles import SDES, Gaussian, GaussianMixture, seeded

T_MIN = 1e-3
MIXTURE = GaussianMixture([0.3, 0.7], torch.rand(2, 6, generator=seeded()), [0.2, 0.3])


def exact(data, sde, x_0, latents):
    """log p_{t_min}(x_0), corrected for the prior, which is p_1 only approximately."""
    density = data.log_prob(sde, x_0.double(), torch.tensor(T_MIN))
    return density + sde.prior_log_prob(latents.double()) - data.log_prob(sde, latents.double(), torch.tensor(1.0))


def score_of(data, sde):
    return lambda x, t: data.score(sde, x, t)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(("solver", "tolerance", "bound"), [("dopri5", 1e-6, 1e-5), ("adams", 1e-7, 1e-4)])
def test_exact_trace(name, solver, tolerance, bound):
    # Bound in bits per dimension; the tolerance is per dimension in nats.
    sde = SDES[name]
    x_0 = MIXTURE.sample(6, seeded(1), dtype=torch.float64)
    result = log_likelihood(
        sde,
        score_of(MIXTURE, sde),
        x_0,
        t_start=T_MIN,
        exact_trace=True,
        solver=solver,
        rtol=tolerance,
        atol=tolerance,
    )
    error = (result.log_likelihood - exact(MIXTURE, sde, x_0, result.latents)) / x_0.shape[1] / math.log(2)
    assert result.success.all()
    assert error.abs().max() < bound
    assert (result.standard_error == 0).all()
    assert (result.error / x_0.shape[1] <= 200 * tolerance).all()


def test_the_tolerance_in_nats_alone_decides():
    sde = SDES["vp"]
    x_0 = MIXTURE.sample(6, seeded(1), dtype=torch.float64)

    def error(atol):
        options = {"exact_trace": True, "solver": "adams", "rtol": 1e3, "atol": atol}
        result = log_likelihood(sde, score_of(MIXTURE, sde), x_0, t_start=T_MIN, **options)
        return float((result.log_likelihood - exact(MIXTURE, sde, x_0, result.latents)).abs().max()) / x_0.shape[1]

    assert error(1e-3) < 1e-2
    assert error(1e-6) < 2e-5


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_unbiased(kind):
    # z-test over 400 probes on one point: 5 standard errors; and the standard error is that of the probes.
    sde = SDES["vp"]
    x_0 = MIXTURE.sample(1, seeded(2), dtype=torch.float64)
    probes = draw_probes(kind, (400, *x_0.shape), seeded(3), x_0.device, x_0.dtype)
    result = log_likelihood(sde, score_of(MIXTURE, sde), x_0, t_start=T_MIN, probes=probes)
    difference = result.log_likelihood - exact(MIXTURE, sde, x_0, result.latents)
    assert result.standard_error > 1e-3
    assert difference.abs() < 5 * result.standard_error


def test_a_single_probe_has_no_standard_error():
    sde = SDES["ve"]
    x_0 = MIXTURE.sample(2, seeded(2), dtype=torch.float64)
    result = log_likelihood(sde, score_of(MIXTURE, sde), x_0, t_start=T_MIN, generator=seeded(1))
    assert result.standard_error.isnan().all()


@pytest.mark.parametrize("solver", ["dopri5", "adams"])
def test_rows_do_not_depend_on_each_other(solver):
    sde = SDES["subvp"]
    x_0 = MIXTURE.sample(4, seeded(4), dtype=torch.float64)
    probes = draw_probes("rademacher", (2, *x_0.shape), seeded(5), x_0.device, x_0.dtype)

    def run(rows):
        score_fn = score_of(MIXTURE, sde)
        return log_likelihood(sde, score_fn, x_0[rows], t_start=T_MIN, probes=probes[:, rows], solver=solver)

    together = run(slice(None))
    for row in range(4):
        alone = run(slice(row, row + 1))
        assert torch.allclose(alone.log_likelihood, together.log_likelihood[row], rtol=0, atol=1e-9)
        assert alone.nfe == together.nfe[row]


class ExactScore(torch.autograd.Function):
    """The exact score of a mixture, whose product with any vector is the divergence, shared out by its length."""

    @staticmethod
    def forward(ctx, x, t, data, sde):
        offset, variance, logits, _, _ = data._components(sde, x, t)
        u = -offset / variance[..., None]
        p = logits.softmax(dim=0)
        score = (p[..., None] * u).sum(dim=0)
        divergence = (p * (u.square().sum(-1) - x.shape[1] / variance)).sum(dim=0) - score.square().sum(-1)
        ctx.save_for_backward(divergence)
        return score

    @staticmethod
    def backward(ctx, vector):
        (divergence,) = ctx.saved_tensors
        return divergence[:, None] / vector.shape[1] * vector, None, None, None


def image_sized_mixture(num_modes):
    """64 smooth images or 128 rough ones, of 3 x 32 x 32 numbers in [0, 1]."""
    if num_modes == 1:
        return GaussianMixture([1.0], torch.full((1, 3072), 0.5), [0.25])
    if num_modes == 64:
        modes = torch.rand(64, 3, 4, 4, generator=seeded(6), dtype=torch.float64)
        modes = torch.nn.functional.interpolate(modes, size=32, mode="bicubic").clamp(0, 1).flatten(1)
        return GaussianMixture(torch.ones(64) / 64, modes, torch.full((64,), 0.1))
    modes = torch.rand(128, 3072, generator=seeded(6), dtype=torch.float64)
    return GaussianMixture(torch.ones(128) / 128, modes, torch.full((128,), 0.05))


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("num_modes", [1, 64, 128])
def test_few_evaluations_on_image_sized_data(name, num_modes):
    # The promise of solver "adams": 25 evaluations for 1e-3 bits per dimension, and an honest estimate. A row whose
    # path passes between two modes may be worse, and then says so.
    data, sde = image_sized_mixture(num_modes), SDES[name]
    x_0 = data.sample(6, seeded(7), dtype=torch.float64)
    dims, t_start = x_0.shape[1], 1e-5 if name == "ve" else 1e-3
    probes = torch.ones(1, *x_0.shape, dtype=torch.float64)  # |v|^2 = D: the product gives the exact divergence
    result = log_likelihood(
        sde,
        lambda x, t: ExactScore.apply(x, t, data, sde),
        x_0,
        t_start=t_start,
        probes=probes,
        solver="adams",
        atol=1.5e-3,
    )
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (t_start, 1.0))
    density = data.log_prob(sde, x_0, start)
    density = density + sde.prior_log_prob(result.latents) - data.log_prob(sde, result.latents, end)
    error = (result.log_likelihood - density).abs() / dims / math.log(2)
    assert result.success.all()
    assert (result.nfe <= 25).all()
    assert error.median() < 1e-3
    assert error.max() < 3e-3
    assert (2 * result.error / dims / math.log(2) >= error).all()


def test_divergence_takes_one_forward_pass():
    calls = []

    def score_fn(x, t):
        calls.append(1)
        return -(x**3)

    x = torch.randn(4, 2, 3, generator=seeded(), dtype=torch.float64)
    expected = -(3 * x**2).flatten(1).sum(dim=1)
    t = torch.ones(4)
    probes = draw_probes("rademacher", (3, *x.shape), seeded(1), x.device, x.dtype)
    score, divergence = score_and_divergence(score_fn, x, t, probes)
    assert len(calls) == 1
    assert torch.allclose(score, -(x**3))
    assert torch.allclose(divergence, expected.expand(3, 4))  # signs square to one on a diagonal Jacobian
    assert torch.allclose(score_and_divergence(score_fn, x, t, None)[1], expected[None])
    assert not score.requires_grad


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_probes": 0}, ("num_probes", "at least 1")),
        ({"probes": torch.ones(1, 3, 2)}, ("(2, 2)",)),
        ({"exact_trace": True, "probes": torch.ones(1, 2, 2)}, ("one or the other",)),
        ({"solver": "magic"}, ("dopri5", "adams")),
        ({"t_start": 1.0}, ("different",)),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError) as error:
        log_likelihood(SDES["vp"], lambda x, t: -x, torch.zeros(2, 2), **arguments)
    assert all(word in str(error.value) for word in words)


def test_gaussian_data_in_closed_form():
    # p(x_0) itself, without the correction for the prior: VP forgets the data to 1e-4.
    sde, data = SDES["vp"], Gaussian(0.0, 0.7)
    x_0 = data.sample((5, 4), seeded(8), dtype=torch.float64)
    result = log_likelihood(sde, score_of(data, sde), x_0, t_start=1e-5, exact_trace=True, rtol=1e-7, atol=1e-7)
    log_prob = torch.distributions.Normal(0.0, 0.7).log_prob(x_0).sum(dim=1)
    assert (result.log_likelihood - log_prob).abs().max() < 1e-3
