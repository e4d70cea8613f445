"""score, epsilon and denoised are one prediction, and VP is VE on another scale."""

import pytest
import torch

from diffusers_sde import sde as S
from tests.oracles import RANKS, SDES, GaussianMixture, seeded

# times where alpha and sigma are well apart from 0, so that no conversion loses digits
TIMES = torch.tensor([0.05, 0.4, 0.8], dtype=torch.float64)


def mixture(shape):
    return GaussianMixture([0.3, 0.7], torch.randn(2, *shape, generator=seeded(1), dtype=torch.float64), [0.2, 0.5])


def state(sde, data):
    x_0 = data.sample(3, seeded(2), torch.float64)
    return sde.perturb(x_0, torch.randn(x_0.shape, generator=seeded(3), dtype=torch.float64), TIMES)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", SDES)
def test_tweedie_on_a_mixture(name, rank):
    """The score gives the mean of x_0 given x_t. Catches sigma for sigma^2, and a missing division by alpha."""
    sde, data = SDES[name], mixture(RANKS[rank])
    x = state(sde, data)
    score, denoised = data.score(sde, x, TIMES), data.denoised(sde, x, TIMES)
    epsilon = torch.stack([(x[i] - sde.alpha(TIMES[i]) * denoised[i]) / sde.sigma(TIMES[i]) for i in range(3)])
    close = dict(rtol=1e-9, atol=1e-9)  # float64, magnitudes of 1e-3 to 1e3
    torch.testing.assert_close(S.score_to_denoised(sde, score, x, TIMES), denoised, **close)
    torch.testing.assert_close(S.denoised_to_score(sde, denoised, x, TIMES), score, **close)
    torch.testing.assert_close(S.score_to_epsilon(sde, score, TIMES), epsilon, **close)
    torch.testing.assert_close(S.epsilon_to_score(sde, epsilon, TIMES), score, **close)
    torch.testing.assert_close(S.epsilon_to_denoised(sde, epsilon, x, TIMES), denoised, **close)
    torch.testing.assert_close(S.denoised_to_epsilon(sde, denoised, x, TIMES), epsilon, **close)


@pytest.mark.parametrize("t", [TIMES, TIMES[1]])
@pytest.mark.parametrize("name", SDES)
def test_round_trips(name, t):
    sde = SDES[name]
    x, score = torch.randn(2, 3, 4, generator=seeded(4), dtype=torch.float64)
    denoised = S.score_to_denoised(sde, score, x, t)
    epsilon = S.score_to_epsilon(sde, score, t)
    close = dict(rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(S.denoised_to_score(sde, denoised, x, t), score, **close)
    torch.testing.assert_close(S.epsilon_to_score(sde, epsilon, t), score, **close)
    again = S.epsilon_to_denoised(sde, epsilon, x, t)
    torch.testing.assert_close(S.denoised_to_epsilon(sde, again, x, t), epsilon, **close)


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_rescaled_states_have_the_same_denoised_mean(name):
    """y = x_t / alpha is a VE state of noise sigma / alpha: equal signal-to-noise ratio, equal denoised mean."""
    sde, ve = SDES[name], S.VESDE(1e-4, 1e3)
    data = mixture((5,))
    x = state(sde, data)
    y = x / sde.alpha(TIMES)[:, None]
    ve_times = ve.time_of_log_snr(sde.log_snr(TIMES))
    torch.testing.assert_close(ve.sigma(ve_times), sde.sigma(TIMES) / sde.alpha(TIMES), rtol=1e-9, atol=0)
    here = S.score_to_denoised(sde, data.score(sde, x, TIMES), x, TIMES)
    there = S.score_to_denoised(ve, data.score(ve, y, ve_times), y, ve_times)
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
