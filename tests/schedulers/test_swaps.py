"""Schedulers changed the way of diffusers' documentation: assigned, there and back, wherever a pipeline takes them."""

import logging

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

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
    embedded_model_path,
)
from tests.tiny import ChainNetwork, GaussianNetwork

TASKS = [
    ScoreSdeOdePipeline,
    ScoreSdeLikelihoodPipeline,
    ScoreSdeEditPipeline,
    ScoreSdeInpaintPipeline,
    ScoreSdeColorizationPipeline,
    ScoreSdeInverseProblemPipeline,
]
OWN = {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.1, "sampling_eps": 0.02, "correct_steps": 3}


def settings(scheduler) -> dict:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize(
    "ours",
    [
        ScoreSdeVeScheduler(sigma_max=30.0, sigma_min=0.02, **OWN),
        ScoreSdeVpScheduler(beta_max=10.0, **OWN),
        ScoreSdeVpScheduler(beta_max=10.0, continuous=False, num_train_timesteps=300, **OWN),
        ScoreSdeSubVpScheduler(beta_max=10.0, num_train_timesteps=300, **OWN),
    ],
    ids=["ve", "vp", "discrete vp", "sub_vp"],
)
def test_every_setting_comes_back(ours, tmp_path):
    """F2: beta_max, continuous, predictor, corrector, snr and sampling_eps were replaced by defaults."""
    theirs = DPMSolverMultistepScheduler.from_config(DDIMScheduler.from_config(ours.config).config)
    theirs.save_pretrained(tmp_path)
    for way in (type(ours).from_config(theirs.config), type(ours).from_pretrained(tmp_path)):
        assert settings(way) == settings(ours)
    changed = type(ours).from_config(theirs.config, snr=0.3)
    assert changed.config.snr == 0.3
    assert type(ours).from_config(DDIMScheduler.from_config(changed.config).config).config.snr == 0.3


@pytest.mark.parametrize("cls", [DPMSolverMultistepScheduler, DDIMScheduler, diffusers.HeunDiscreteScheduler])
def test_the_embedded_ve_model_under_solvers_of_diffusers(cls):
    """F3: clipped noise, mean 0.49 and std 0.50, or NaN. Pictures of clothes are mostly black."""
    pipe = ScoreSdePipeline.from_pretrained(embedded_model_path())
    pipe.scheduler = cls.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(4, 10, torch.Generator().manual_seed(0), output_type="pt").images
    assert images.std() < 0.42
    assert ((images > 0.02) & (images < 0.98)).float().mean() > 0.2  # clipped noise has two values
    assert type(ScoreSdeLikelihoodPipeline.from_pipe(pipe).scheduler) is ScoreSdeVeScheduler


def test_a_bare_solver_takes_the_process_of_the_repository(tmp_path):
    """F3: `from_pretrained(repository, scheduler=DDIMScheduler())` ran a VE network as a DDPM chain."""
    for cls in (diffusers.DiffusionPipeline, ScoreSdePipeline):
        pipe = cls.from_pretrained(embedded_model_path(), scheduler=DDIMScheduler())
        assert ScoreSdeOdePipeline.from_pipe(pipe).scheduler.config.sigma_max > 1
    with pytest.raises(ValueError, match="Take ScoreSdeVeScheduler"):
        ScoreSdeVpScheduler.from_pretrained(embedded_model_path(), subfolder="scheduler")


@pytest.mark.parametrize("task", TASKS)
def test_task_pipelines_convert_at_assignment_as_in_the_constructor(task):
    """F4: AttributeError, no attribute 'sde'."""
    pipe = task(ChainNetwork(), DDPMScheduler())
    pipe.scheduler = DPMSolverMultistepScheduler()
    assert type(pipe.scheduler) is ScoreSdeVpScheduler
    assert (pipe.scheduler.config.beta_max, pipe.scheduler.config.continuous) == (20.0, False)
    assert pipe.config["scheduler"] == ("diffusers_sde", "ScoreSdeVpScheduler")
    ve = task(GaussianNetwork("ve"), ScoreSdeVeScheduler(sigma_max=50.0, snr=0.3))
    ve.scheduler = DDIMScheduler()  # the process is the network's, not that of default betas
    assert settings(ve.scheduler) == settings(ScoreSdeVeScheduler(sigma_max=50.0, snr=0.3))
    for wrong in (FlowMatchEulerDiscreteScheduler(), None, 3, DDIMScheduler, DDIMScheduler(prediction_type="sample")):
        with pytest.raises(ValueError):
            ve.scheduler = wrong
    assert settings(ve.scheduler)["sigma_max"] == 50.0


def test_another_sampler_than_the_one_asked_for_is_told(caplog):
    """F4: 20 steps of DPM-Solver became 20 Euler-Maruyama steps without a word."""
    diffusers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            ScoreSdeInpaintPipeline(ChainNetwork(), DPMSolverMultistepScheduler())
    finally:
        diffusers.utils.logging.disable_propagation()
    assert "DPMSolverMultistepScheduler does not run in this pipeline" in caplog.text
    assert "euler_maruyama" in caplog.text


@pytest.mark.parametrize(
    ("network", "own", "other"),
    [
        ("ve", ScoreSdeVeScheduler(sigma_max=50.0), ScoreSdeVeScheduler(sigma_max=80.0)),
        ("ve", ScoreSdeVeScheduler(sigma_max=50.0), ScoreSdeVpScheduler()),
        ("vp", ScoreSdeVpScheduler(), ScoreSdeVpScheduler(beta_max=10.0)),
        ("vp", ScoreSdeVpScheduler(), ScoreSdeVpScheduler(continuous=False)),
        ("vp", ScoreSdeVpScheduler(), ScoreSdeSubVpScheduler()),
        ("sub_vp", ScoreSdeSubVpScheduler(), ScoreSdeVpScheduler()),
        ("vp", DDPMScheduler(), ScoreSdeVeScheduler()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_scheduler_of_another_process_is_refused(network, own, other):
    """Both as it is, and as a scheduler of diffusers' made from it."""
    pipe = ScoreSdePipeline(GaussianNetwork(network), own)
    before = pipe.scheduler
    for wrong in (other, DDIMScheduler.from_config(other.config)):
        with pytest.raises(ValueError, match="is for networks of another process") as error:
            pipe.scheduler = wrong
        assert type(wrong).__name__ in str(error.value)
    assert pipe.scheduler is before
    pipe.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(ValueError, match="another process"):  # the network's is remembered after a swap, too
        pipe.register_modules(scheduler=other)


def test_a_given_solver_is_not_changed_and_may_serve_two_networks():
    """Betas are those of each pipeline's own network, in a copy."""
    solver = DPMSolverMultistepScheduler()
    before = dict(solver.config)
    for beta_max in (20.0, 10.0):
        pipe = ScoreSdePipeline(GaussianNetwork("vp", beta_max=beta_max), ScoreSdeVpScheduler(beta_max=beta_max))
        pipe.scheduler = solver
        assert pipe.scheduler.config.beta_end == pytest.approx(beta_max / 1000)
    assert dict(solver.config) == before


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "scaled_linear"])
def test_other_chains_of_diffusers_run_over_the_network_they_came_with(schedule):
    """A solver assigned later takes their betas instead of its defaults; our flows refuse them with the reason."""
    pipe = ScoreSdePipeline(ChainNetwork(), DDPMScheduler(beta_schedule=schedule))
    pipe.scheduler = DDIMScheduler()
    assert pipe.scheduler.config.beta_schedule == schedule
    assert pipe(1, 5, output_type="latent").images.isfinite().all()
    with pytest.raises(ValueError, match=schedule):
        ScoreSdeOdePipeline(ChainNetwork(), DDPMScheduler(beta_schedule=schedule))
