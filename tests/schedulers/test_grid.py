"""Every SDE x predictor x corrector x probability flow through its scheduler, with the exact score of known data."""

import pytest
import torch

from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from tests.oracles import RANKS, Gaussian, GaussianMixture, ks_critical, ks_distance, sampler_moments, seeded

SCHEDULERS = {
    "ve": (ScoreSdeVeScheduler, dict(sigma_min=0.01, sigma_max=50.0)),
    "vp": (ScoreSdeVpScheduler, {}),
    "subvp": (ScoreSdeSubVpScheduler, {}),
}
PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none")
CORRECTORS = ("langevin", "ald", "none")


def has_meaning(name, predictor, corrector, flow):
    return predictor != "ancestral_sampling" or (name != "subvp" and not flow)


COMBINATIONS = [
    (name, predictor, corrector, flow)
    for name in SCHEDULERS
    for predictor in PREDICTORS
    for corrector in CORRECTORS
    for flow in (False, True)
]
ALLOWED = [combination for combination in COMBINATIONS if has_meaning(*combination)]
REFUSED = [combination for combination in COMBINATIONS if not has_meaning(*combination)]
SAMPLING = [c for c in ALLOWED if c[1:3] != ("none", "none")]


def make_scheduler(name, predictor, corrector, flow=False, **config):
    cls, defaults = SCHEDULERS[name]
    return cls(predictor=predictor, corrector=corrector, probability_flow=flow, **defaults | config)


def sample(scheduler, data, shape, num_steps, seed=0, generator=None):
    """The loop of the pipeline, with the exact score for a network."""
    sde, generator = scheduler.sde, generator or seeded(seed)
    scheduler.set_timesteps(num_steps)
    x = sde.prior_sample(shape, generator)

    def output(x, t):
        score = data.score(sde, x, t)
        return score if isinstance(scheduler, ScoreSdeVeScheduler) else -score * sde.sigma(t)

    for t in scheduler.timesteps:
        for _ in range(scheduler.num_correct_steps):
            x = scheduler.step_correct(output(x, t), x, generator).prev_sample
        x = scheduler.step_pred(output(x, t), t, x, generator).prev_sample
    return x


@pytest.mark.parametrize("name, predictor, corrector, flow", ALLOWED)
def test_every_allowed_combination_on_every_rank(name, predictor, corrector, flow):
    """Finite states of the right shape, and the same numbers whatever the shape they are laid out in.

    Catches broadcasting along the wrong axis and norms over some of the axes. Only the order of sums may differ.
    """
    scheduler = make_scheduler(name, predictor, corrector, flow)
    flat = sample(scheduler, Gaussian(0.3, 0.7), (3, 60), 22)
    assert flat.isfinite().all() and flat.shape == (3, 60)
    for event in list(RANKS.values())[1:]:
        x = sample(scheduler, Gaussian(0.3, 0.7), (3, *event), 22)
        assert x.shape == (3, *event)
        torch.testing.assert_close(x.flatten(1), flat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, predictor, corrector, flow", SAMPLING)
def test_gaussian_data_comes_out_with_its_moments(name, predictor, corrector, flow):
    """Against the exact recursion of the scheme, within standard errors, and that against the data.

    The first is sharp: any wrong coefficient, grid place or noise of any step shows in the final variance. Its
    tolerance is 4.5 standard errors, and 2/d for the norms of "langevin" in d dimensions. The second is the bias of a
    scheme of 150 steps: 15 % of the standard deviation, 40 % for correctors alone, which freeze as their steps vanish
    with sigma ("ald"). Alone under VE they need 600 steps to keep up with the fall of the noise.
    """
    data, shape = Gaussian(0.5, 0.7), (16, 3, 16, 16)
    num_steps = 600 if (name, predictor) == ("ve", "none") else 150
    scheduler = make_scheduler(name, predictor, corrector, flow, snr=0.25)
    mean, variance = sampler_moments(scheduler.sde, data, scheduler, num_steps)
    x = sample(scheduler, data, shape, num_steps).double()
    n, dims = x.numel(), x[0].numel()
    assert float(x.mean()) == pytest.approx(mean, abs=4.5 * (variance / n) ** 0.5)
    assert float(x.var()) == pytest.approx(variance, rel=4.5 * (2 / n) ** 0.5 + 2 / dims)
    assert mean == pytest.approx(0.5, abs=0.2 if predictor == "none" else 0.05)
    assert variance**0.5 == pytest.approx(0.7, rel=0.4 if predictor == "none" else 0.15)


@pytest.mark.parametrize("name, predictor, corrector, flow", [c for c in ALLOWED if c[1] != "none" and c[2] == "none"])
def test_many_predictor_steps_give_the_data(name, predictor, corrector, flow):
    """Against the data itself, with no recursion between: what a mistake in the oracle could hide.

    4.5 standard errors, the bias of a first-order scheme at 1000 steps (1.5 % at most in the variance; 3 % for
    VP's probability flow by reverse diffusion), and in the mean what VE's prior forgets of it, 0.5 * 0.7 / 50.
    """
    x = sample(make_scheduler(name, predictor, corrector, flow), Gaussian(0.5, 0.7), (16, 1000), 1000).double()
    assert float(x.mean()) == pytest.approx(0.5, abs=4.5 * 0.7 / x.numel() ** 0.5 + 0.007)
    tolerance = 0.03 if (name, predictor, flow) == ("vp", "reverse_diffusion", True) else 0.015
    assert float(x.var()) == pytest.approx(0.49, rel=4.5 * (2 / x.numel()) ** 0.5 + tolerance)


@pytest.mark.parametrize("corrector, norm", [("ald", "sample"), ("langevin", "batch")])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_mixture_data_comes_out_with_its_law(name, corrector, norm):
    """KS over both coordinates of 4000 states after Predictor-Corrector sampling of two unequal, skewed clusters.

    The schemes' bias at 250 steps, 2 % of the variance, moves the distribution function by 0.003, 0.1 of the KS bound.
    """
    data = GaussianMixture([0.25, 0.75], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])
    scheduler = make_scheduler(name, "reverse_diffusion", corrector, snr=0.1, corrector_norm=norm)
    x = sample(scheduler, data, (4000, 2), 250)
    clean = type("Clean", (), {"alpha": torch.ones_like, "sigma": torch.zeros_like})
    for coordinate in range(2):
        distance = ks_distance(x[:, coordinate], lambda y, c=coordinate: data.cdf(clean, y, torch.zeros(()), c))
        assert distance < ks_critical(len(x))


@pytest.mark.parametrize("name, predictor, corrector, flow", REFUSED)
def test_every_meaningless_combination_is_refused_with_what_works(name, predictor, corrector, flow):
    with pytest.raises(ValueError, match="'ancestral_sampling'") as error:
        make_scheduler(name, predictor, corrector, flow)
    assert "'reverse_diffusion'" in str(error.value) and "'euler_maruyama'" in str(error.value)
    make_scheduler(name, "reverse_diffusion", corrector, flow)
    make_scheduler(name, "euler_maruyama", corrector, flow)


def test_all_but_ancestral_sampling_goes_with_everything():
    """72 combinations; sub-VP x ancestral x 3 correctors x 2 and {VE, VP} x ancestral x 3 x flow are refused."""
    assert (len(ALLOWED), len(REFUSED)) == (60, 12)
