"""Every pipeline on a device without float64, with the numbers of the CPU."""

import pytest
import torch

from diffusers_sde import (
    ScoreSdeColorizationPipeline,
    ScoreSdeEditPipeline,
    ScoreSdeInpaintPipeline,
    ScoreSdeInverseProblemPipeline,
    ScoreSdeLikelihoodPipeline,
    ScoreSdeOdePipeline,
    ScoreSdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from diffusers_sde.sde import precision
from diffusers_sde.sde.operators import BlockAverage
from diffusers_sde.training import TrainingTimes
from tests.fake_device import FakeDevice, move, to_device
from tests.oracles import seeded
from tests.tiny import tiny_network

IMAGE = torch.rand(1, 3, 8, 8, generator=seeded(3))
MASK = (torch.rand(1, 1, 8, 8, generator=seeded(4)) > 0.5).float()
FEW = {"num_inference_steps": 2, "output_type": "pt"}
LOOSE = {"rtol": 0.1, "max_nfe": 12}

CALLS = {
    "sampling": (ScoreSdePipeline, lambda p, g: p(generator=g, **FEW).images),
    "ode": (ScoreSdeOdePipeline, lambda p, g: p(generator=g, output_type="pt", **LOOSE).images),
    "encode": (ScoreSdeOdePipeline, lambda p, g: p.encode(IMAGE, **LOOSE).latents),
    "interpolate": (
        ScoreSdeOdePipeline,
        lambda p, g: p.interpolate(IMAGE, 1 - IMAGE, n=2, output_type="pt", **LOOSE).images,
    ),
    "likelihood": (
        ScoreSdeLikelihoodPipeline,
        lambda p, g: p(IMAGE.round(), bin_width=1 / 2, generator=g, max_nfe=8).log_likelihood,
    ),
    "elbo": (ScoreSdeLikelihoodPipeline, lambda p, g: p.elbo(IMAGE, 3, "uniform", "none", generator=g).diffusion),
    "inpaint": (ScoreSdeInpaintPipeline, lambda p, g: p(IMAGE, MASK, generator=g, **FEW).images),
    "colorize": (ScoreSdeColorizationPipeline, lambda p, g: p(IMAGE.mean(1, keepdim=True), generator=g, **FEW).images),
    "edit": (ScoreSdeEditPipeline, lambda p, g: p(IMAGE, strength=0.5, generator=g, **FEW).images),
}

CALLS["inverse"] = (
    ScoreSdeInverseProblemPipeline,
    lambda p, g: p(IMAGE[:, :, ::2, ::2], BlockAverage(2), generator=g, **FEW).images,
)


@pytest.fixture(autouse=True)
def device():
    precision.has_float64.cache_clear()
    with FakeDevice():
        yield
    precision.has_float64.cache_clear()


@pytest.mark.parametrize("task", CALLS)
@pytest.mark.parametrize("scheduler", [ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler])
def test_a_pipeline_needs_no_float64(task, scheduler):
    """float64 of a batch on the device is an error on MPS; here it is one on any machine."""
    kind, call = CALLS[task]
    results = []
    for place in (lambda network: network, move):
        pipe = kind(place(tiny_network()), scheduler())
        pipe.set_progress_bar_config(disable=True)
        results.append(call(pipe, seeded()).detach().cpu())
    expected, found = results
    assert float((found - expected).norm() / expected.norm()) < 1e-2  # of other kernels, under a rough network


@pytest.mark.parametrize("scheduler", [ScoreSdeVeScheduler, ScoreSdeVpScheduler])
def test_networks_on_a_grid_of_labels_need_no_float64(scheduler):
    network = tiny_network(time_embedding_type="positional", conditional=True)
    pipe = ScoreSdePipeline(move(network), scheduler(continuous=False, num_train_timesteps=10))
    score = pipe.score(to_device(IMAGE), to_device(torch.tensor(0.5)))
    assert score.shape == IMAGE.shape
    assert score.cpu().isfinite().all()


@pytest.mark.parametrize("scheduler", [ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler])
@pytest.mark.parametrize("time_sampling", ["uniform", "importance"])
def test_training_times_need_no_float64(scheduler, time_sampling):
    times = TrainingTimes(scheduler(), time_sampling=time_sampling, weighting="likelihood")
    uniform = torch.rand(5, generator=seeded())
    found, expected = times(to_device(uniform)), times(uniform)
    assert torch.equal(found.t.cpu(), expected.t)
    assert torch.allclose(found.weight.cpu(), expected.weight)
