"""diffusers' schedulers as ours: the forward process that a network was trained for, read off another's config."""

import diffusers

from .base import ScoreSdeSchedulerBase
from .linear_betas import vp_settings
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
    return ScoreSdeVpScheduler(**vp_settings(config, name))
