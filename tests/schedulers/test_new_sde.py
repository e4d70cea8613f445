"""CONTRIBUTING's steps for a new SDE, followed to the letter in a module that is not the package's."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffusers_sde import ScoreSdeLikelihoodPipeline, ScoreSdeOdePipeline, ScoreSdePipeline
from diffusers_sde.schedulers import ScoreSdeSchedulerBase
from diffusers_sde.sde import SDE

MEAN, STD = 0.3, 0.25


class CosineSDE(SDE):
    """alpha = cos(pi t last / 2), sigma = sin(pi t last / 2)."""

    prior_std = 1.0

    def __init__(self, last: float):
        self.last = last

    def alpha(self, t):
        return (0.5 * math.pi * self.last * t).cos()

    def sigma(self, t):
        return (0.5 * math.pi * self.last * t).sin()


class CosineScheduler(ScoreSdeSchedulerBase, SchedulerMixin, ConfigMixin):
    @register_to_config
    def __init__(
        self,
        last: float = 0.995,
        num_train_timesteps: int = 1000,
        snr: float = 0.16,
        sampling_eps: float = 1e-3,
        correct_steps: int = 1,
        predictor: str = "euler_maruyama",
        corrector: str = "none",
        probability_flow: bool = False,
        continuous: bool = True,
        denoise_final: bool = True,
        corrector_norm: str = "sample",
    ):
        self._setup(CosineSDE(last))


class CosineNetwork(ModelMixin, ConfigMixin):
    """Exact epsilon of N(0.3, 0.25^2), conditioned on 999 t."""

    @register_to_config
    def __init__(self, sample_size=16, in_channels=1, out_channels=1, block_out_channels=(4,)):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep):
        angle = (timestep / 999 * 0.5 * math.pi * 0.995).reshape(-1, 1, 1, 1)
        alpha, sigma = angle.cos(), angle.sin()
        return UNet2DOutput(sample=sigma * (sample - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2))


def draw(scheduler, steps=200):
    pipe = ScoreSdePipeline(CosineNetwork(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe(16, steps, torch.Generator().manual_seed(0), output_type="latent").images


@pytest.mark.parametrize("corrector", ["none", "langevin", "ald"])
@pytest.mark.parametrize("predictor", ["euler_maruyama", "reverse_diffusion"])
def test_every_sampler_draws_the_data(predictor, corrector):
    x = draw(CosineScheduler(predictor=predictor, corrector=corrector))
    assert abs(x.mean() - MEAN) < 0.02
    assert abs(x.std() / STD - 1) < 0.05


def test_flow_and_likelihood_agree_with_the_closed_form():
    network, scheduler = CosineNetwork(), CosineScheduler()
    x = ScoreSdeOdePipeline(network, scheduler)(16, torch.Generator().manual_seed(0), output_type="latent").images
    assert abs(x.mean() - MEAN) < 0.02
    assert abs(x.std() / STD - 1) < 0.05
    images = (torch.linspace(0, 1, 256).reshape(1, 1, 16, 16) * 0.2 + 0.55).double()
    result = ScoreSdeLikelihoodPipeline(network, scheduler)(
        images, dequantization="none", generator=torch.Generator().manual_seed(0)
    )
    z = (2 * images - 1 - MEAN) / STD
    nats = float(-0.5 * (z**2).sum()) - 256 * math.log(STD * math.sqrt(2 * math.pi))
    assert float(result.log_likelihood) == pytest.approx(nats, abs=0.05 * 256**0.5)


def test_it_is_saved_loaded_and_runs_solvers_of_diffusers(tmp_path):
    pipe = ScoreSdePipeline(CosineNetwork(), CosineScheduler(snr=0.3))
    pipe.save_pretrained(tmp_path)
    loaded = ScoreSdePipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is CosineScheduler
    assert loaded.scheduler.config.snr == 0.3
    theirs = DDIMScheduler.from_config(loaded.scheduler.config)
    assert CosineScheduler.from_config(theirs.config).config.snr == 0.3
    loaded.scheduler = theirs
    loaded.set_progress_bar_config(disable=True)
    x = loaded(16, 100, torch.Generator().manual_seed(0), output_type="latent").images
    assert abs(x.mean() - MEAN) < 0.02
    assert abs(x.std() / STD - 1) < 0.06


def test_what_it_lacks_is_said_in_its_own_name():
    with pytest.raises(ValueError, match="keep alpha above"):
        CosineScheduler(last=1.0)
    with pytest.raises(ValueError, match="CosineScheduler has no chain of noise levels"):
        CosineScheduler(continuous=False).label_times()
    with pytest.raises(ValueError, match="'ancestral_sampling' is not defined for CosineSDE"):
        CosineScheduler(predictor="ancestral_sampling")
