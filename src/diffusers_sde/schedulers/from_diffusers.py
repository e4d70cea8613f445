"""diffusers' schedulers as ours: the forward process that a network was trained for, read off another's config."""

from collections.abc import Mapping
from typing import Any

from .base import ScoreSdeSchedulerBase
from .config import process_scheduler
from .scheduling_score_sde_vp import ScoreSdeVpScheduler


def from_diffusers_scheduler(scheduler) -> ScoreSdeSchedulerBase:
    """The scheduler of this package with the same forward process.

    Args:
        scheduler: one of this package's, which is returned as it is; one of diffusers' that was made from one of ours,
            which is restored with all its settings; diffusers' `ScoreSdeVeScheduler` or `ScoreSdeVpScheduler`; or a
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
    return scheduler_of_config(scheduler.config, type(scheduler).__name__)


def scheduler_of_config(config: Mapping[str, Any], name: str | None = None) -> ScoreSdeSchedulerBase:
    """The same from the config of a class of that name, by default the one that the config has."""
    process = process_scheduler(config, name)
    if process is not None:
        return process
    name = name or config.get("_class_name", "the scheduler")
    return ScoreSdeVpScheduler(**ScoreSdeVpScheduler._settings_of_chain(config, name))
