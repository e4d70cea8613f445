"""The two ODE solvers against closed-form paths, and what they promise about rows, times and tolerances."""

import math
from itertools import pairwise

import pytest
import torch

from diffusers_sde.sde import SDE, multistep, probability_flow
from diffusers_sde.sde.ode import dormand_prince
from tests.oracles import SDES, Gaussian, GaussianMixture, seeded

DATA = Gaussian(mean=0.4, std=0.3)
T_MIN = 1e-3


def exact_path(sde, x, t_from, t_to):
    """For Gaussian data the flow scales distances from the mean by the ratio of standard deviations."""
    mean_from, variance_from = DATA.moments(sde, x, torch.tensor(t_from))
    mean_to, variance_to = DATA.moments(sde, x, torch.tensor(t_to))
    return mean_to + (x.double() - mean_from) * (variance_to / variance_from).sqrt()


def counted(data, sde):
    """The exact score, the times at which it was asked for, and the sizes of the batches."""
    times, sizes = [], []

    def score_fn(x, t):
        times.append((float(t.min()), float(t.max())))
        sizes.append(len(x))
        return data.score(sde, x, t)

    return score_fn, times, sizes


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize(("solver", "tolerance", "bound"), [("dopri5", 1e-7, 1e-5), ("adams", 1e-6, 1e-4)])
def test_gaussian_paths(name, forward, solver, tolerance, bound):
    # Bounds on the error relative to the spread of the end; the solvers control local errors (dopri5) or an estimate.
    sde = SDES[name]
    ends = (T_MIN, 1.0) if forward else (1.0, T_MIN)
    mean, variance = DATA.moments(sde, torch.zeros(1), torch.tensor(ends[0]))
    x = mean + variance.sqrt() * torch.randn(5, 3, 2, generator=seeded(), dtype=torch.float64)
    score_fn, times, _ = counted(DATA, sde)
    result = probability_flow(sde, score_fn, x, *ends, solver=solver, rtol=tolerance, atol=tolerance)
    expected = exact_path(sde, x, *ends)
    spread = DATA.moments(sde, x, torch.tensor(ends[1]))[1].sqrt()
    assert result.success.all()
    assert ((result.x - expected).abs() / spread).max() < bound
    # Time never leaves the interval (t is handed over in float64 here).
    assert min(low for low, _ in times) >= T_MIN - 1e-12
    assert max(high for _, high in times) <= 1 + 1e-12


@pytest.mark.parametrize("solver", ["dopri5", "adams"])
def test_rows_do_not_depend_on_each_other(solver):
    sde = SDES["vp"]
    mixture = GaussianMixture([0.3, 0.7], torch.rand(2, 6, generator=seeded()), [0.1, 0.2])
    x = 3 * torch.randn(6, 6, generator=seeded(1), dtype=torch.float64)
    x[0] *= 0.1

    def run(x):
        return probability_flow(sde, lambda x, t: mixture.score(sde, x, t), x, 1.0, T_MIN, solver=solver)

    together = run(x)
    assert len(set(together.nfe.tolist())) > 1 or solver == "adams"
    for row in range(len(x)):
        alone = run(x[row : row + 1])
        assert torch.allclose(alone.x[0], together.x[row], rtol=0, atol=1e-12)  # summation order at most
        assert alone.nfe[0] == together.nfe[row]


def test_finished_rows_leave_the_batch():
    sde = SDES["ve"]
    mixture = GaussianMixture([0.5, 0.5], torch.tensor([[0.0, 0.0], [1.0, 1.0]]), [0.02, 0.3])
    score_fn, _, sizes = counted(mixture, sde)
    x = 50 * torch.randn(8, 2, generator=seeded(), dtype=torch.float64)
    result = probability_flow(sde, score_fn, x, 1.0, 1e-5)
    assert sum(sizes) == result.nfe.sum()  # each evaluation of a row is counted, and none is made for nothing
    assert sizes[0] == 8
    assert sizes[-1] < 8


def test_dormand_prince_is_of_order_five():
    # Fixed steps by loose tolerances: one step of size h from 0 on y' = y leaves an error of order h^6.
    from diffusers_sde.sde.ode import _stages

    def error(h):
        y = torch.ones(1, 1, dtype=torch.float64)
        t = torch.zeros(1, dtype=torch.float64)
        new, _, _ = _stages(lambda y, t, rows: y, y, t, y, torch.tensor([h], dtype=torch.float64), None)
        return abs(float(new) - math.exp(h))

    slope = math.log(error(0.2) / error(0.1)) / math.log(2)
    assert 5.8 < slope < 6.2


def test_dormand_prince_agrees_with_scipy():
    from scipy.integrate import solve_ivp

    def rhs(t, y):
        return [y[1], -math.sin(y[0]) - 0.1 * t * y[1]]

    reference = solve_ivp(rhs, (0, 5), [1.0, 0.3], rtol=1e-10, atol=1e-10).y[:, -1]

    def batched(y, t, rows):
        return torch.stack([y[:, 1], -y[:, 0].sin() - 0.1 * t * y[:, 1]], dim=1)

    y = torch.tensor([[1.0, 0.3]], dtype=torch.float64)
    ours = dormand_prince(batched, y, 0.0, 5.0, rtol=1e-8, atol=1e-8, max_nfe=10_000)
    theirs = solve_ivp(rhs, (0, 5), [1.0, 0.3], rtol=1e-8, atol=1e-8)
    assert abs(ours.y[0] - torch.from_numpy(reference)).max() < 1e-6
    assert abs(int(ours.nfe) - theirs.nfev) <= 0.1 * theirs.nfev  # the same controller


@pytest.mark.parametrize("solver", ["dopri5", "adams"])
def test_a_row_that_runs_out_of_evaluations_says_so(solver):
    sde = SDES["ve"]
    mixture = GaussianMixture([0.5, 0.5], torch.tensor([[0.0, 0.0], [1.0, 1.0]]), [0.02, 0.3])
    x = 50 * torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    result = probability_flow(
        sde, lambda x, t: mixture.score(sde, x, t), x, 1.0, 1e-5, solver=solver, rtol=1e-9, atol=1e-9, max_nfe=40
    )
    assert not result.success.any()
    assert (result.nfe <= 40).all()
    assert result.x.isfinite().all()


@pytest.mark.parametrize("std", [0.1, 0.01])
@pytest.mark.parametrize("name", SDES)
def test_adams_error_estimate_covers_the_error_of_latents(name, std):
    # Against dopri5 at a tight tolerance. Towards the latents no path splits, so all rows are covered. Thin data are
    # left across them, where distances grow most.
    sde = SDES[name]
    mixture = GaussianMixture(torch.ones(16) / 16, torch.rand(16, 192, generator=seeded()), torch.full((16,), std))
    x = mixture.sample(12, seeded(2), dtype=torch.float64)

    def run(**kwargs):
        return probability_flow(sde, lambda x, t: mixture.score(sde, x, t), x, T_MIN, 1.0, **kwargs)

    reference = run(rtol=1e-9, atol=1e-9)
    few, more = run(solver="adams", rtol=1e-3), run(solver="adams", rtol=1e-5)
    errors = [(result.x - reference.x).square().mean(dim=1).sqrt() for result in (few, more)]
    assert few.success.all() and more.success.all()
    assert few.nfe.double().mean() <= 42
    assert (2 * few.error >= errors[0]).all()
    assert (2 * more.error >= errors[1]).all()
    assert errors[1].max() < 0.05 * errors[0].max()


def test_adams_is_of_its_order(monkeypatch):
    # Steps of equal length, all accepted: halving them divides the error by 2^(ORDER + 1), but for the start.
    sde = SDES["ve"]
    mixture = GaussianMixture([0.3, 0.7], torch.tensor([[0.0, 0.2], [1.0, 0.5]]), [0.2, 0.3])
    x = mixture.sample(8, seeded(3), dtype=torch.float64)

    def run(**kwargs):
        return probability_flow(sde, lambda x, t: mixture.score(sde, x, t), x, T_MIN, 0.9, **kwargs).x

    reference = run(rtol=1e-11, atol=1e-11)
    errors = []
    for step in (0.1, 0.05, 0.025):
        monkeypatch.setattr(multistep, "_FIRST_STEP", step)
        monkeypatch.setattr(multistep, "_LARGEST_STEP", step)
        errors.append(float((run(solver="adams", rtol=1e9) - reference).abs().max()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(slopes) > 3.0, (errors, slopes)


def test_adams_weights_are_exact_for_their_polynomials():
    # Integrals over phi of 1, w and w^2 on three of four points, by a fine trapezoidal rule.
    support = torch.tensor([[1.0, 1.4, 1.7, 9.0]], dtype=torch.float64)
    used = torch.tensor([[True, True, True, False]])
    start, end = (torch.tensor([w], dtype=torch.float64) for w in (1.7, 2.2))
    weights = multistep.adams_weights(support, used, start, end, multistep.quadrature_rule(support.device))[0]
    w = torch.linspace(1.7, 2.2, 20001, dtype=torch.float64)
    phi = (multistep.KAPPA * w.sinh()).atan()
    assert weights[3] == 0
    for power in range(3):
        expected = torch.trapezoid(w**power, phi)
        assert float((weights[:3] * support[0, :3] ** power).sum()) == pytest.approx(float(expected), rel=1e-8)


def test_adams_gives_up_on_nan_and_says_so():
    x = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)

    def score_fn(x, t):
        return torch.where((x == x[:1]).all(dim=1, keepdim=True), -x, torch.nan)  # NaN for all rows but the first

    result = probability_flow(SDES["vp"], score_fn, x, 1.0, T_MIN, solver="adams")
    assert result.success.tolist() == [True, False, False]
    assert result.nfe[1] < 50


@pytest.mark.parametrize("name", SDES)
def test_dormand_prince_error_covers_the_latents_of_thin_data(name):
    """Distances across thin data grow like sigma, and steps over many times the first one have no honest estimate."""
    sde = SDES[name]
    means = torch.rand(8, 24, generator=seeded(1), dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(8) / 8, means, torch.full((8,), 0.01))
    x = mixture.sample(4, seeded(2), dtype=torch.float64)

    def run(**options):
        return probability_flow(sde, lambda x, t: mixture.score(sde, x, t), x, T_MIN, 1.0, **options)

    found, reference = run(), run(rtol=1e-9, atol=1e-9)
    error = (found.x - reference.x).square().mean(dim=1).sqrt()
    assert found.success.all()
    assert (2 * found.error >= error).all()


@pytest.mark.parametrize("solver", ["dopri5", "adams"])
def test_a_check_returns_the_finer_solution_and_the_difference(solver):
    sde = SDES["vp"]
    mixture = GaussianMixture([0.5, 0.5], torch.tensor([[0.0, 0.0], [1.0, 1.0]]), [0.05, 0.3])
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)

    def run(**options):
        return probability_flow(sde, lambda x, t: mixture.score(sde, x, t), x, 1.0, T_MIN, solver=solver, **options)

    tolerance = 1e-3
    once = run(rtol=tolerance, atol=tolerance, check=False)
    finer = run(rtol=tolerance / 8, atol=tolerance / 8, check=False)
    checked = run(rtol=tolerance, atol=tolerance, check=True)
    difference = (once.x - finer.x).square().mean(dim=1).sqrt()
    assert torch.equal(checked.x, finer.x)
    assert torch.equal(checked.nfe, once.nfe + finer.nfe)
    assert torch.allclose(checked.error, torch.maximum(difference, finer.error))


def test_adams_sees_that_no_time_has_the_noise_of_its_nodes():
    """alpha(1) = 0: log SNR runs to minus infinity within a rounding error of t = 1, where 13 nats were lost."""

    class Cosine(SDE):
        prior_std = 1.0

        def alpha(self, t):
            return torch.cos(math.pi / 2 * t)

        def sigma(self, t):
            return torch.sin(math.pi / 2 * t)

    sde = Cosine()
    with pytest.raises(ValueError, match="keep alpha above"):
        probability_flow(sde, lambda x, t: DATA.score(sde, x, t), torch.zeros(3, 4), T_MIN, 1.0)
    sde._checked = True  # the solver's own word, were the SDE let through
    x = DATA.sample((3, 4), seeded(), dtype=torch.float64)
    result = probability_flow(sde, lambda x, t: DATA.score(sde, x, t), x, T_MIN, 1.0, solver="adams")
    assert not result.success.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"solver": "euler"}, ("dopri5", "adams")),
        ({"rtol": -1.0}, ("rtol",)),
        ({"rtol": 0.0, "atol": 0.0}, ("not both 0",)),
        ({"max_nfe": 3}, ("max_nfe",)),
        ({"solver": "adams", "max_nfe": 1}, ("at least 2",)),
        ({"t_end": 1.5}, ("[0, 1]",)),
        ({"t_end": 1.0}, ("different",)),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError) as error:
        probability_flow(SDES["vp"], lambda x, t: -x, torch.zeros(1, 2), **arguments)
    assert all(word in str(error.value) for word in words)
