"""diffusers' schedulers as ours: the forward process that a network was trained for, read off another's config."""

import diffusers

from .base import ScoreSdeSchedulerBase
from .scheduling_score_sde_ve import ScoreSdeVeScheduler
from .scheduling_score_sde_vp import ScoreSdeVpScheduler


def from_diffusers_scheduler(scheduler) -> ScoreSdeSchedulerBase:
    """The scheduler of this package with the same forward process.

    Args:
        scheduler: one of this package's, which is returned as it is; diffusers' `ScoreSdeVeScheduler`; or a
            `DDPMScheduler` or another with its config (DDIM, PNDM, DPM-Solver, ...) for a network that predicts
            epsilon under linear betas.

    Returns:
        `ScoreSdeVpScheduler(continuous=False)` with `beta_min = beta_start * N`, `beta_max = beta_end * N` for the
        latter: the SDE of which the DDPM chain of N steps is the discretisation.

    Raises:
        ValueError: for another prediction, another schedule of betas, or a scheduler of another kind.

    Reference: Song et al. 2021, arXiv:2011.13456, App. B.
    """
    if isinstance(scheduler, ScoreSdeSchedulerBase):
        return scheduler
    config, name = scheduler.config, type(scheduler).__name__
    if isinstance(scheduler, diffusers.ScoreSdeVeScheduler):
        return ScoreSdeVeScheduler.from_config({k: v for k, v in config.items() if k != "tensor_format"})
    if "beta_start" not in config or "beta_schedule" not in config:
        raise ValueError(
            f"{name} has no betas from which a forward process could be read; take a DDPMScheduler with the betas of "
            "the training, or a score-SDE scheduler of this package."
        )
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"{name} has prediction_type = {config.prediction_type!r}; only networks that predict 'epsilon' are "
            "supported."
        )
    given = config.get("trained_betas") is not None
    if config.beta_schedule != "linear" or given or config.get("rescale_betas_zero_snr", False):
        seen = "trained_betas" if given else f"beta_schedule = {config.beta_schedule!r}"
        if config.get("rescale_betas_zero_snr", False):
            seen += " and rescale_betas_zero_snr = True"
        raise ValueError(
            f"{name} has {seen}; the VP SDE has linear betas, so only beta_schedule = 'linear' without rescaling is "
            "supported."
        )
    steps = config.num_train_timesteps
    return ScoreSdeVpScheduler(
        num_train_timesteps=steps,
        beta_min=config.beta_start * steps,
        beta_max=config.beta_end * steps,
        continuous=False,
    )
