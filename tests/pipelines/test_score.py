"""The public score of a pipeline: right values, gradients, and words for what it cannot take."""

import pytest
import torch

from diffusers_sde import (
    ScoreSdeLikelihoodPipeline,
    ScoreSdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from tests.oracles import Gaussian, seeded
from tests.tiny import GaussianNetwork, tiny_network

SCHEDULERS = {"ve": ScoreSdeVeScheduler, "vp": ScoreSdeVpScheduler, "sub_vp": ScoreSdeSubVpScheduler}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("pipeline", [ScoreSdePipeline, ScoreSdeLikelihoodPipeline])
def test_the_score_of_an_exact_network(name, pipeline):
    scheduler = SCHEDULERS[name]()
    pipe = pipeline(GaussianNetwork(name), scheduler)
    x = torch.randn(3, 1, 8, 8, generator=seeded())
    for t in (0.4, torch.tensor(0.4), torch.tensor([0.01, 0.4, 1.0])):
        expected = Gaussian(0.5, 0.3).score(scheduler.sde, x, torch.as_tensor(t))
        assert torch.allclose(pipe.score(x, t), expected, rtol=1e-4, atol=1e-5)


def test_the_score_is_differentiable():
    pipe = ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler())
    x = torch.randn(2, 3, 8, 8, generator=seeded()).requires_grad_()
    gradient, of_network = torch.autograd.grad(
        pipe.score(x, 0.5).square().sum(), (x, pipe.unet.conv_in.weight), allow_unused=False
    )
    assert gradient.abs().sum() > 0
    assert of_network.abs().sum() > 0


@pytest.mark.parametrize(
    ("x", "t", "words"),
    [
        (torch.zeros(2, 3, 8), 0.5, "shape .2, 3, 8."),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.5, "uint8"),
        (torch.zeros(2, 3, 8, 8), torch.ones(3), r"`t` has shape \(3,\); \(\) or \(2,\)"),
        (torch.zeros(2, 3, 8, 8), 999.0, "above 0 and at most 1"),
        (torch.zeros(2, 3, 8, 8), float("nan"), "above 0 and at most 1"),
        (torch.zeros(2, 3, 7, 8), 0.5, "multiples"),
    ],
)
def test_what_is_no_state_or_time_is_refused(x, t, words):
    with pytest.raises(ValueError, match=words):
        ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler()).score(x, t)
