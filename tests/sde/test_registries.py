"""Names of predictors and correctors: unknown ones list what exists, new ones work everywhere."""

import pytest
import torch

from diffusers_sde import ScoreSdeVeScheduler
from diffusers_sde import sde as S
from diffusers_sde.sde import correctors, predictors


def test_names():
    assert {"euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none"} <= set(S.predictor_names())
    assert {"langevin", "ald", "none"} <= set(S.corrector_names())


def test_unknown_predictor_lists_what_exists():
    with pytest.raises(ValueError) as error:
        S.make_predictor("heun", S.VESDE())
    assert "unknown predictor 'heun'" in str(error.value)
    assert all(repr(name) in str(error.value) for name in S.predictor_names())


def test_unknown_corrector_lists_what_exists():
    with pytest.raises(ValueError) as error:
        S.make_corrector("mala", S.VESDE(), 0.1)
    assert "unknown corrector 'mala'" in str(error.value)
    assert all(repr(name) in str(error.value) for name in S.corrector_names())


@pytest.mark.parametrize("register, name", [(S.register_predictor, "none"), (S.register_corrector, "ald")])
def test_a_taken_name_is_refused(register, name):
    with pytest.raises(ValueError, match=f"{name!r} is already registered as"):
        register(name)(type("Another", (), {}))
    assert S.predictor_names().count("none") == 1


@pytest.fixture
def registered():
    """Names registered in a test, taken out again after it."""
    before = [(module._REGISTRY._classes, dict(module._REGISTRY._classes)) for module in (predictors, correctors)]
    yield
    for classes, content in before:
        classes.clear()
        classes.update(content)


def test_ones_own_predictor_and_corrector_work_from_the_scheduler(registered):
    @S.register_predictor("halve")
    class Halve(S.Predictor):
        def update(self, x, t, s, score, noise):
            return x / 2 + noise, x / 2

    @S.register_corrector("negate")
    class Negate(S.Corrector):
        def step_size(self, t, score, noise):
            return torch.zeros_like(t)

        def update(self, x, t, s, score, noise):
            return -x, -x

    scheduler = ScoreSdeVeScheduler(predictor="halve", corrector="negate")
    scheduler.set_timesteps(3)
    x = torch.full((2, 3), 8.0)
    x = scheduler.step_correct(x, x).prev_sample
    assert torch.equal(x, torch.full((2, 3), -8.0))
    assert torch.equal(scheduler.step(x, scheduler.timesteps[0], x).prev_sample_mean, torch.full((2, 3), -4.0))
    assert "halve" in S.predictor_names() and "negate" in S.corrector_names()


def test_registration_was_cleaned_up():
    assert "halve" not in S.predictor_names() and "negate" not in S.corrector_names()
