"""Every scheduler class of diffusers over the networks of every SDE of ours: right moments, or a refusal in words.

`pytest -m slow -s -k table` on this file prints the table of docs/samplers.md.
"""

import re
from pathlib import Path

import diffusers.schedulers
import pytest
import torch

from diffusers_sde import (
    ScoreSdeOdePipeline,
    ScoreSdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from diffusers_sde.sde import VESDE
from tests.tiny import GaussianNetwork

MEAN, STD, STEPS = 0.3, 0.25, 100
NAMES = sorted(name for name in dir(diffusers.schedulers) if name.endswith("Scheduler"))
NEEDED = {  # arguments without a default
    "AmusedScheduler": (5,),
    "RFD4ProteinaScheduler": ("log", "1/t", 1.0, 1.0),
    "VQDiffusionScheduler": (5,),
}
PROCESSES = {
    "ve 50": ScoreSdeVeScheduler(sigma_max=50.0),
    "ve 1348": ScoreSdeVeScheduler(num_train_timesteps=500, sigma_min=1e-4),
    "vp 20": ScoreSdeVpScheduler(),
    "vp 10": ScoreSdeVpScheduler(beta_max=10.0, num_train_timesteps=100),
    "vp 5": ScoreSdeVpScheduler(beta_max=5.0),
    "sub-vp 20": ScoreSdeSubVpScheduler(),
    "sub-vp 8": ScoreSdeSubVpScheduler(beta_max=8.0, num_train_timesteps=250),
}
FAST = ("ve 1348", "vp 10", "sub-vp 8")
RUNS = {  # the others are refused; of all a new release brings, this list has to know
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}


def network_of(process) -> GaussianNetwork:
    if isinstance(process.sde, VESDE):
        return GaussianNetwork("ve", MEAN, STD, sample_size=64)
    kind = "sub_vp" if isinstance(process, ScoreSdeSubVpScheduler) else "vp"
    return GaussianNetwork(kind, MEAN, STD, sample_size=64, beta_max=process.config.beta_max)


def settings(scheduler) -> dict:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def build(name):
    """A scheduler of that class; skips those whose libraries are not installed."""
    cls = getattr(diffusers.schedulers, name)
    try:
        return cls(*NEEDED.get(name, ()))
    except ImportError as error:
        pytest.skip(str(error).strip())


def right_moments(sde) -> tuple[float, float]:
    """Of the flow from the prior at t = 1 with the exact score, which is linear."""
    alpha, sigma = (float(c(torch.ones((), dtype=torch.float64))) for c in (sde.alpha, sde.sigma))
    # diffusers' prior is that of x / sqrt(alpha^2 + sigma^2).
    stretch = STD / (alpha**2 * STD**2 + sigma**2) ** 0.5
    return MEAN - stretch * alpha * MEAN, stretch * (alpha**2 + sigma**2) ** 0.5


def draw(pipe) -> tuple[float, float]:
    pipe.set_progress_bar_config(disable=True)
    x = pipe(1, STEPS, torch.Generator().manual_seed(3), output_type="latent").images
    return float(x.mean()), float(x.std())


def check_moments(pipe, sde):
    """Between the data, where stochastic solvers end, and the flow, within 12 %: F1's errors are over 30 %."""
    (mean, std), (flow_mean, flow_std) = draw(pipe), right_moments(sde)
    low, high = sorted((MEAN, flow_mean))
    assert low - 0.03 < mean < high + 0.03
    low, high = sorted((STD, flow_std))
    assert 0.88 * low < std < 1.12 * high


def ways(name, process, network):
    """Constructor of a bare class after the network's own scheduler, assignment, and assignment of the usual kind."""
    own = ScoreSdePipeline(network, process)
    own.scheduler = build(name)
    yield own
    other = ScoreSdePipeline(network, process)
    cls = getattr(diffusers.schedulers, name)
    other.scheduler = cls.from_config(process.config)
    yield other
    yield ScoreSdePipeline(network, cls.from_config(process.config))


def pairs(names):
    return [
        pytest.param(
            name, process, marks=() if process in FAST and not name.startswith(("KDPM2", "LMS")) else pytest.mark.slow
        )
        for name in names
        for process in PROCESSES
    ]


@pytest.mark.parametrize(("name", "process"), pairs(sorted(RUNS)))
def test_a_solver_draws_the_data_of_every_process(name, process, tmp_path):
    """Betas, conditioning or scale of the state of another process are off by over 30 % in one moment."""
    process = PROCESSES[process]
    network = network_of(process)
    for pipe in ways(name, process, network):
        assert type(pipe.scheduler).__name__ == name
    check_moments(pipe, process.sde)
    again = ScoreSdePipeline.from_pipe(pipe, unet=network)
    again.scheduler.save_pretrained(tmp_path / "scheduler")
    loaded = ScoreSdePipeline(network, type(pipe.scheduler).from_pretrained(tmp_path / "scheduler"))
    assert draw(again) == draw(loaded) == draw(pipe)
    back = ScoreSdeOdePipeline.from_pipe(loaded, unet=network).scheduler
    assert type(back) is type(process)
    assert settings(back) == settings(process)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RUNS])
def test_every_other_class_is_refused_by_name(name):
    """Nothing between right moments and a refusal: another prediction, no chain of betas, or wrong results."""
    scheduler = build(name)
    for title in ("ve 50", "vp 20", "sub-vp 20"):
        process = PROCESSES[title]
        pipe = ScoreSdePipeline(network_of(process), process)
        if name in ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler") and title in ("ve 50", "vp 20"):
            cls = type(scheduler)
            if name[8:10].lower() == title[:2]:
                pipe.scheduler = cls.from_config(process.config)
                assert type(pipe.scheduler) is type(process)  # diffusers' own becomes ours
                assert settings(pipe.scheduler) == settings(process)
                continue
        with pytest.raises(ValueError, match=name):
            pipe.scheduler = scheduler
        assert pipe.scheduler is process


@pytest.mark.parametrize(("name", "process"), pairs(["DDIMScheduler"]))
def test_outside_a_pipeline_a_config_is_right_or_refuses_to_step(name, process):
    """`X.from_config(ours.config)` in one's own loop: right betas and no clipping, or an error; never defaults."""
    process = PROCESSES[process]
    theirs = getattr(diffusers.schedulers, name).from_config(process.config)
    theirs.set_timesteps(20)
    x = torch.randn(1, 1, 4, 4)
    if type(process) is ScoreSdeVpScheduler and process.config.num_train_timesteps == 1000:
        assert theirs.config.clip_sample is False
        t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        torch.testing.assert_close(theirs.alphas_cumprod.double().sqrt(), process.sde.alpha(t), rtol=0.04, atol=1e-3)
    else:
        with pytest.raises(ValueError, match="for pipelines of diffusers_sde"):
            theirs.step(x, theirs.timesteps[0], x)


@pytest.mark.slow
def test_the_table_of_the_documentation():
    """Prints the table (`-s`), and finds its figures in docs/samplers.md, up to what processors round."""
    titles = [title for title in PROCESSES if title != "vp 10"]
    lines = ["| scheduler | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    rows = {"right": [right_moments(PROCESSES[title].sde) for title in titles]}
    for name in sorted(RUNS):
        pipes = [ScoreSdePipeline(network_of(PROCESSES[title]), PROCESSES[title]) for title in titles]
        for pipe in pipes:
            pipe.scheduler = getattr(diffusers.schedulers, name)()
        rows[f"`{name}`"] = [draw(pipe) for pipe in pipes]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join("{:.3f} / {:.3f}".format(*moments) for moments in row) + " |")
    print("\n" + "\n".join(lines))
    text = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text(encoding="utf-8")
    for line in lines[2:]:
        (printed,) = [other for other in text.splitlines() if other.startswith(line[: line.index("|", 1)])]
        seen, told = ([float(number) for number in re.findall(r"\d\.\d+", text)] for text in (line, printed))
        assert seen == pytest.approx(told, abs=0.01)
