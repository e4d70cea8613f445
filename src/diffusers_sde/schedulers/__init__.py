"""Thin diffusers schedulers over the mathematics of `diffusers_sde.sde`."""

from .assignment import accept_scheduler
from .base import ScoreSdeSchedulerOutput
from .from_diffusers import from_diffusers_scheduler
from .scheduling_score_sde_sub_vp import ScoreSdeSubVpScheduler
from .scheduling_score_sde_ve import ScoreSdeVeScheduler
from .scheduling_score_sde_vp import ScoreSdeVpScheduler
from .solver_check import takes_generator
from .solvers import epsilon_of_steps

__all__ = [
    "ScoreSdeSchedulerOutput",
    "ScoreSdeSubVpScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "accept_scheduler",
    "epsilon_of_steps",
    "from_diffusers_scheduler",
    "takes_generator",
]
