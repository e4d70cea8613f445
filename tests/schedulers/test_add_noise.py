"""add_noise: x_t = alpha x_0 + sigma noise at continuous times, for any shape."""

import pytest
import torch

from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from tests.oracles import RANKS, coefficients, seeded

CLASSES = [ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler]
every_scheduler = pytest.mark.parametrize("cls", CLASSES)


def drawn(shape):
    return torch.randn(2, *shape, generator=seeded(1))


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([0.3, 0.01, 1.0])])
@pytest.mark.parametrize("rank", RANKS)
@every_scheduler
def test_every_shape_of_state_and_time(cls, rank, t):
    """Catches noise levels laid along the wrong axis, and states that grow dimensions."""
    scheduler, (x_0, noise) = cls(), drawn((3, *RANKS[rank]))
    x = scheduler.add_noise(x_0, noise, t)
    assert x.shape == x_0.shape
    for i, time in enumerate(torch.as_tensor(t).expand(3).tolist()):
        alpha, sigma, _, _ = coefficients(scheduler.sde, time)
        torch.testing.assert_close(x[i], alpha * x_0[i] + sigma * noise[i], rtol=1e-4, atol=1e-5)


@every_scheduler
def test_the_grid_of_inference_does_not_matter(cls):
    scheduler, (x_0, noise) = cls(predictor="euler_maruyama"), drawn((3, 4))
    t = torch.tensor([0.9, 0.5, 0.001])
    before = scheduler.add_noise(x_0, noise, t)
    scheduler.set_timesteps(50)
    for time in scheduler.timesteps:
        scheduler.step(x_0, time, x_0, seeded())
    assert torch.equal(scheduler.add_noise(x_0, noise, t), before)


@every_scheduler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_that_of_the_samples(cls, dtype):
    """For half precision: the float32 result, rounded once. VE's noise of 200 swamps bf16 digits of x_0 otherwise."""
    scheduler, (x_0, noise) = cls(), drawn((3, 4)).to(dtype)
    x = scheduler.add_noise(x_0, noise, torch.tensor([0.3, 0.5, 0.8]))
    assert x.dtype == dtype
    exact = scheduler.add_noise(x_0.double(), noise.double(), torch.tensor([0.3, 0.5, 0.8]))
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(x.double(), exact.double(), rtol=tolerance, atol=1e-6)


@every_scheduler
@pytest.mark.parametrize("t", [torch.rand(2, generator=seeded()), torch.rand(3, 1, generator=seeded())])
def test_times_that_do_not_fit_are_refused(cls, t):
    x_0, noise = drawn((3, 2))
    with pytest.raises(ValueError, match="does not fit a state of shape"):
        cls().add_noise(x_0, noise, t)
