"""Defects of diffusers' own ScoreSdeVeScheduler (0.42.1) that ours must not have, with the numbers measured there."""

import pytest
import torch

from diffusers_sde import ScoreSdeVeScheduler
from tests.oracles import seeded


def point_mass_run(scheduler):
    """Sample from a data set of one point, 0, with the exact score -x / sigma^2."""
    x = scheduler.sde.prior_sample((64, 16), seeded())
    for t in scheduler.timesteps:
        sigma = scheduler.sde.sigma(t)
        x = scheduler.step_correct(-x / sigma**2, x, seeded(1)).prev_sample
        x = scheduler.step_pred(-x / sigma**2, t, x, seeded(2)).prev_sample
    return x


def test_set_timesteps_also_sets_the_noise_levels():
    """There the steps keep the noise of the training grid, and the run ends at 0.07 instead of 1e-5 or so."""
    scheduler = ScoreSdeVeScheduler(sigma_max=348.0)
    scheduler.set_timesteps(10)
    assert float(point_mass_run(scheduler).std()) < 1e-4


def test_noise_levels_follow_the_last_set_timesteps_in_any_order():
    """There, levels set before the timesteps are read at stale times: 1340 where the last one is 0.01."""
    scheduler = ScoreSdeVeScheduler()
    scheduler.set_timesteps(1000)
    scheduler.set_timesteps(3)
    conditioning = scheduler.model_timestep(scheduler.timesteps)
    expected = torch.tensor([1348.0, (1348.0 * 0.01) ** 0.5, 0.01])
    torch.testing.assert_close(conditioning, expected, rtol=2e-4, atol=0)  # sampling_eps is 1e-5, not 0


def test_the_initial_noise_is_that_of_sigma_max():
    """There it stays at 1348 when the levels are set for another sigma_max."""
    assert ScoreSdeVeScheduler(sigma_max=50.0).init_noise_sigma == 50.0
    assert ScoreSdeVeScheduler.from_config(ScoreSdeVeScheduler().config, sigma_max=50.0).init_noise_sigma == 50.0


def test_sampling_eps_holds_whenever_timesteps_are_set():
    scheduler = ScoreSdeVeScheduler(sampling_eps=0.1)
    for num_steps in (20, 5):
        scheduler.set_timesteps(num_steps)
        assert float(scheduler.timesteps[-1]) == pytest.approx(0.1)


def test_noise_is_added_after_inference():
    """There: IndexError, index 999 of the 5 levels of the inference."""
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0)
    scheduler.set_timesteps(5)
    point_mass_run(scheduler)
    x = scheduler.add_noise(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(x[:, 0], torch.tensor([50.0, 0.5**0.5]))


def test_noise_is_added_at_the_schedulers_own_times():
    """There: IndexError, tensors used as indices must be long."""
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0)
    scheduler.set_timesteps(4)
    x = scheduler.add_noise(torch.zeros(4, 3), torch.ones(4, 3), scheduler.timesteps)
    torch.testing.assert_close(x[:, 0], scheduler.model_timestep(scheduler.timesteps))


def test_noise_is_added_to_states_of_two_dimensions():
    """There: a state of (2, 16) silently becomes (2, 1, 2, 16)."""
    assert ScoreSdeVeScheduler().add_noise(torch.zeros(2, 16), torch.ones(2, 16), torch.rand(2)).shape == (2, 16)


def test_there_is_a_plain_step():
    scheduler = ScoreSdeVeScheduler()
    scheduler.set_timesteps(4)
    x = torch.ones(2, 3)
    step = scheduler.step(x, scheduler.timesteps[0], x, generator=seeded()).prev_sample
    scheduler.set_timesteps(4)
    assert torch.equal(step, scheduler.step_pred(x, scheduler.timesteps[0], x, generator=seeded()).prev_sample)


def test_one_step_starts_from_the_highest_noise():
    """There its level is sigma_min: noise of 0.0098 for a prior of 1348."""
    scheduler = ScoreSdeVeScheduler(denoise_final=False)
    scheduler.set_timesteps(1)
    step = scheduler.step(torch.zeros(1, 10_000), 1.0, torch.zeros(1, 10_000), seeded())
    assert float(step.prev_sample.std()) == pytest.approx(1348.0, rel=0.03)  # 4 standard errors of 0.7 %


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_stay_so(dtype):
    """There both steps return float32."""
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0)
    scheduler.set_timesteps(4)
    x = torch.ones(2, 3, dtype=dtype)
    assert scheduler.step_correct(x, x, seeded()).prev_sample.dtype == dtype
    assert scheduler.step_pred(x, 1.0, x, seeded()).prev_sample_mean.dtype == dtype
