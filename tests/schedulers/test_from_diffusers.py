"""diffusers' schedulers as ours, by `from_config`, `from_pretrained` and `from_diffusers_scheduler`."""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler

from diffusers_sde import ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde.schedulers import from_diffusers_scheduler


def settings(scheduler):
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def test_ve_from_config():
    theirs = diffusers.ScoreSdeVeScheduler(num_train_timesteps=7, snr=0.2, sigma_min=0.1, sigma_max=3.0)
    ours = ScoreSdeVeScheduler.from_config(theirs.config)
    assert settings(theirs).items() <= settings(ours).items()
    assert settings(from_diffusers_scheduler(theirs)) == settings(ours)
    assert len(ours) == 7 and ours.init_noise_sigma == 3.0


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_vp_from_config(cls):
    """The noise levels of the chain are those of the discretely trained network."""
    theirs = cls(num_train_timesteps=500, beta_start=2e-4, beta_end=0.03)
    ours = ScoreSdeVpScheduler.from_config(theirs.config)
    assert ours.config.beta_min == pytest.approx(0.1) and ours.config.beta_max == pytest.approx(15.0)
    assert (ours.config.num_train_timesteps, ours.config.continuous) == (500, False)
    times = (torch.arange(500, dtype=torch.float64) + 0.25) / 499  # labels are cut off
    sigmas = (1 - theirs.alphas_cumprod.double()).sqrt()  # of float32 products
    torch.testing.assert_close(ours.output_sigma(times), sigmas, rtol=2e-4, atol=0)
    assert settings(from_diffusers_scheduler(theirs)) == settings(ours)


def test_settings_of_the_call_come_on_top():
    config = DDPMScheduler().config
    ours, unused = ScoreSdeVpScheduler.from_config(config, return_unused_kwargs=True, predictor="none", other=3)
    assert ours.config.predictor == "none" and ours.config.beta_max == pytest.approx(20.0)
    assert unused == {"other": 3}


def test_saved_configs(tmp_path):
    """A folder that diffusers wrote loads as ours, and ours again."""
    DDPMScheduler(beta_end=0.015).save_pretrained(tmp_path / "theirs")
    ours = ScoreSdeVpScheduler.from_pretrained(tmp_path / "theirs")
    assert ours.config.beta_max == pytest.approx(15.0)
    ours.save_pretrained(tmp_path / "ours")
    again = ScoreSdeVpScheduler.from_pretrained(tmp_path / "ours")
    assert settings(again) == settings(ours)
    changed = ScoreSdeVpScheduler.from_config(ours.config, continuous=True)
    assert changed.config.continuous and changed.config.beta_max == ours.config.beta_max


@pytest.mark.parametrize(
    "scheduler, reason",
    [
        (DDPMScheduler(beta_schedule="squaredcos_cap_v2"), "beta_schedule = 'squaredcos_cap_v2'"),
        (DDPMScheduler(beta_schedule="scaled_linear"), "beta_schedule = 'scaled_linear'"),
        (DDPMScheduler(trained_betas=[0.1, 0.2]), "trained_betas"),
        (DDPMScheduler(prediction_type="v_prediction"), "prediction_type = 'v_prediction'"),
        (DDPMScheduler(prediction_type="sample"), "prediction_type = 'sample'"),
        (DDIMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr = True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_chains_are_refused(scheduler, reason):
    for build in (from_diffusers_scheduler, lambda s: ScoreSdeVpScheduler.from_config(s.config)):
        with pytest.raises(ValueError, match=reason):
            build(scheduler)


def test_a_scheduler_without_betas():
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no betas"):
        from_diffusers_scheduler(diffusers.FlowMatchEulerDiscreteScheduler())
