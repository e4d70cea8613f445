"""Times and weights of the losses, against integrals and against the formulas of the discrete chains."""

import math

import pytest
import torch

from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde.training import TrainingTimes, denoising_score_matching_loss

SCHEDULERS = {
    "ve": lambda: ScoreSdeVeScheduler(sigma_max=50.0),
    "vp": ScoreSdeVpScheduler,
    "subvp": ScoreSdeSubVpScheduler,
}
MEAN, STD, T_MIN = 0.3, 0.7, 1e-3


@pytest.fixture(params=SCHEDULERS)
def scheduler(request):
    return SCHEDULERS[request.param]()


def evenly(count):
    """Midpoints of equal parts of [0, 1)."""
    return (torch.arange(count) + 0.5) / count


def imperfect_score(sde):
    """The score of N(MEAN, STD^2), too small by a tenth: its denoising loss varies with t in a known way."""

    def score_fn(x, t):
        alpha, sigma = (value.unsqueeze(1) for value in (sde.alpha(t), sde.sigma(t)))
        return -0.9 * (x - alpha * MEAN) / (alpha.square() * STD**2 + sigma.square())

    return score_fn


def likelihood_integral(sde):
    """int g^2 / sigma^2 (1 - 0.99 sigma^2 / v) dt / (1 - t_min) on a fine grid in log t, in float64."""
    log_t = torch.linspace(math.log(T_MIN), 0, 200_001, dtype=torch.float64)
    t = log_t.exp()
    sigma = sde.sigma(t)
    loss = 1 - 0.99 * sigma.square() / (sde.alpha(t).square() * STD**2 + sigma.square())
    return float(torch.trapezoid(sde.diffusion(t).square() / sigma.square() * loss * t, log_t)) / (1 - T_MIN)


def losses_at(scheduler, time_sampling, count, seed=0):
    times = TrainingTimes(scheduler, t_min=T_MIN, weighting="likelihood", time_sampling=time_sampling)
    generator = torch.Generator().manual_seed(seed)
    levels = times(torch.rand(count, generator=generator))
    x_0 = MEAN + STD * torch.randn(count, 8, generator=generator)
    noise = torch.randn(count, 8, generator=generator)
    sde = scheduler.sde
    return denoising_score_matching_loss(sde, imperfect_score(sde), x_0, levels.t, noise, weight=levels.weight)


@pytest.mark.parametrize("time_sampling", ["uniform", "importance"])
def test_the_likelihood_weighted_loss_is_its_integral(scheduler, time_sampling):
    losses = losses_at(scheduler, time_sampling, 200_000)
    error = losses.std().item() / len(losses) ** 0.5
    assert losses.mean().item() == pytest.approx(likelihood_integral(scheduler.sde), abs=5 * error)
    assert error < 0.05 * losses.mean().item()


def test_importance_sampling_lowers_the_variance(scheduler):
    """Not for VE, whose g^2 / sigma^2 is constant."""
    uniform, importance = (losses_at(scheduler, name, 50_000).var().item() for name in ("uniform", "importance"))
    if isinstance(scheduler, ScoreSdeVeScheduler):
        assert importance == pytest.approx(uniform, rel=0.05)
    else:
        assert importance < uniform / 10


def test_importance_times_are_uniform_in_log_snr(scheduler):
    times = TrainingTimes(scheduler, t_min=T_MIN, weighting="likelihood", time_sampling="importance")
    levels = times(evenly(1000))
    log_snr = scheduler.sde.log_snr(levels.t.double())
    steps = log_snr.diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0.01, atol=0)
    assert levels.t.min() >= T_MIN and levels.t.max() <= 1
    ends = scheduler.sde.log_snr(torch.tensor([T_MIN, 1.0], dtype=torch.float64))
    assert levels.weight.unique().item() == pytest.approx(float(ends[0] - ends[1]) / (1 - T_MIN), rel=1e-6)


def test_uniform_times(scheduler):
    levels = TrainingTimes(scheduler, t_min=0.2)(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    torch.testing.assert_close(levels.t, torch.tensor([0.2, 0.6, 1.0]))
    assert levels.weight is None
    torch.testing.assert_close(levels.timestep, scheduler.model_timestep(levels.t))


def test_labels_of_smld():
    """Song & Ermon: sigma of label i is geometric from sigma_max down to sigma_min."""
    times = TrainingTimes(ScoreSdeVeScheduler(num_train_timesteps=10, sigma_max=50.0, continuous=False))
    levels = times(evenly(10))
    assert levels.timestep.tolist() == list(range(10))
    assert levels.timestep.dtype == torch.int64
    expected = torch.tensor([50 * (0.01 / 50) ** (i / 9) for i in range(10)])
    torch.testing.assert_close(times.scheduler.sde.sigma(levels.t), expected, rtol=1e-5, atol=0)


def test_labels_of_ddpm():
    """Ho et al.: alpha_bar of label i is the product of 1 - beta_j up to it."""
    times = TrainingTimes(ScoreSdeVpScheduler(num_train_timesteps=100, continuous=False))
    levels = times(evenly(100))
    assert levels.timestep.tolist() == list(range(100))
    alpha_bar, expected = 1.0, []
    for i in range(100):
        alpha_bar *= 1 - (0.1 + i / 99 * 19.9) / 100
        expected.append(alpha_bar)
    torch.testing.assert_close(times.scheduler.sde.alpha(levels.t) ** 2, torch.tensor(expected), rtol=2e-5, atol=1e-7)


def test_combinations_without_a_meaning_are_refused():
    vp = ScoreSdeVpScheduler()
    with pytest.raises(ValueError, match="'importance' is made for weighting 'likelihood'; weighting is 'score'"):
        TrainingTimes(vp, time_sampling="importance")
    with pytest.raises(ValueError, match="weighting is 'g2'; allowed are 'score', 'likelihood'"):
        TrainingTimes(vp, weighting="g2")
    with pytest.raises(ValueError, match="networks on a grid of labels are trained with 'score'"):
        TrainingTimes(ScoreSdeVpScheduler(continuous=False), weighting="likelihood")
    with pytest.raises(ValueError, match="ScoreSdeSubVpScheduler has no chain of noise levels"):
        TrainingTimes(ScoreSdeSubVpScheduler(continuous=False))
