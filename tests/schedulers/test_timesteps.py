"""The sampling grid: from 1 to sampling_eps, laid anew by every set_timesteps."""

import pytest
import torch

from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler

CLASSES = [ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler]
every_scheduler = pytest.mark.parametrize("cls", CLASSES)


def run(scheduler, x=None):
    x = torch.ones(1, 2) if x is None else x
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), t, x, torch.Generator().manual_seed(0)).prev_sample
    return x


@every_scheduler
@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
def test_timesteps_run_evenly_from_one_to_sampling_eps(cls, num_steps):
    """Catches a grid that is kept from before, and one that ends at 0 or at 1/N."""
    scheduler = cls(sampling_eps=0.01)
    for n in (7, num_steps):
        scheduler.set_timesteps(n)
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == num_steps
    assert scheduler.timesteps.dtype == torch.float32
    step = 0.99 / (num_steps - 1) if num_steps > 1 else 0
    expected = torch.tensor([1.0 - i * step for i in range(num_steps)])
    torch.testing.assert_close(scheduler.timesteps, expected, rtol=0, atol=1e-6)  # a few roundings of numbers up to 1
    assert float(scheduler.timesteps[0]) == 1.0


@every_scheduler
def test_a_new_scheduler_has_the_grid_of_its_training(cls):
    scheduler = cls(num_train_timesteps=100)
    assert len(scheduler) == len(scheduler.timesteps) == 100
    scheduler.set_timesteps(5)
    assert len(scheduler) == 100  # as diffusers' own: the length of the training


@every_scheduler
def test_timesteps_live_where_they_shall(cls):
    scheduler = cls()
    scheduler.set_timesteps(5, device="meta")
    assert scheduler.timesteps.device.type == "meta"


@every_scheduler
def test_step_index_counts_and_set_timesteps_resets(cls):
    scheduler = cls(predictor="euler_maruyama")
    scheduler.set_timesteps(3)
    assert scheduler.step_index is None
    first = run(scheduler)
    assert scheduler.step_index == 3
    scheduler.set_timesteps(3)
    assert scheduler.step_index is None
    torch.testing.assert_close(run(scheduler), first, rtol=0, atol=0)


@every_scheduler
def test_a_step_beyond_the_grid_is_refused(cls):
    scheduler = cls(predictor="euler_maruyama")
    scheduler.set_timesteps(3)
    run(scheduler)
    with pytest.raises(ValueError, match=r"all 3 steps .*set_timesteps"):
        scheduler.step(torch.zeros(1, 2), scheduler.timesteps[0], torch.ones(1, 2))


@every_scheduler
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_first_time_places_the_loop(cls, as_tensor):
    """A loop from the middle of the grid makes the steps that a whole loop makes there."""
    scheduler = cls(predictor="euler_maruyama", probability_flow=True)
    scheduler.set_timesteps(30)
    x, y = torch.ones(1, 2), torch.ones(1, 2)
    scheduler.set_begin_index(20)
    for t in scheduler.timesteps[20:]:
        x = scheduler.step(x, t, x).prev_sample
    scheduler.set_timesteps(30)
    for t in scheduler.timesteps[20:] if as_tensor else scheduler.timesteps[20:].tolist():
        y = scheduler.step(y, t, y).prev_sample
    assert scheduler.step_index == 30
    torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("timestep", [0, 0.1, 1.0, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)])
@every_scheduler
def test_a_step_takes_any_number_for_a_time(cls, timestep):
    scheduler = cls()
    scheduler.set_timesteps(50)
    x = torch.ones(2, 3)
    output = scheduler.step(x, timestep, x, torch.Generator().manual_seed(0))
    assert output.prev_sample.shape == (2, 3) and output.prev_sample.isfinite().all()
    assert scheduler.step_index == round(49 * (1 - float(timestep))) + 1


@every_scheduler
@pytest.mark.parametrize("num_steps", [0, -1, 2.0, 1.5, True, "10", None])
def test_a_number_of_steps_that_is_none_is_refused(cls, num_steps):
    with pytest.raises(ValueError, match=r"`num_inference_steps` is .* integer of at least 1"):
        cls().set_timesteps(num_steps)


@every_scheduler
def test_a_negative_begin_index_is_refused(cls):
    """It would silently be a place counted from the end."""
    with pytest.raises(ValueError, match="begin_index"):
        cls().set_begin_index(-1)


@pytest.mark.parametrize(
    "predictor, corrector",
    [
        ("reverse_diffusion", "none"),
        ("ancestral_sampling", "none"),
        ("euler_maruyama", "langevin"),
        ("euler_maruyama", "ald"),
    ],
)
def test_vp_refuses_a_grid_too_coarse_for_its_chain(predictor, corrector):
    """beta(1) / N = 1 at N = 20: NaN in the official code. 21 steps are the fewest."""
    scheduler = ScoreSdeVpScheduler(beta_max=20.0, predictor=predictor, corrector=corrector)
    for num_steps in (1, 2, 20):
        with pytest.raises(ValueError, match="more than 20 steps, or the `euler_maruyama` predictor"):
            scheduler.set_timesteps(num_steps)
    scheduler.set_timesteps(21)
    assert run(scheduler).isfinite().all()


@pytest.mark.parametrize("num_steps", [1, 2, 20])
@pytest.mark.parametrize("flow", [False, True])
def test_vp_by_euler_maruyama_takes_any_grid(num_steps, flow):
    scheduler = ScoreSdeVpScheduler(beta_max=20.0, predictor="euler_maruyama", probability_flow=flow)
    scheduler.set_timesteps(num_steps)
    assert run(scheduler).isfinite().all()


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral_sampling"])
def test_one_step_of_ve_is_the_tweedie_mean(predictor):
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0, predictor=predictor)
    scheduler.set_timesteps(1)
    x, score = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    output = scheduler.step(score, scheduler.timesteps[0], x)
    torch.testing.assert_close(output.prev_sample, x + 2500 * score, rtol=1e-5, atol=0)
