"""Thin diffusers schedulers over the mathematics of `diffusers_sde.sde`."""

from .base import ScoreSdeSchedulerOutput
from .from_diffusers import from_diffusers_scheduler
from .scheduling_score_sde_sub_vp import ScoreSdeSubVpScheduler
from .scheduling_score_sde_ve import ScoreSdeVeScheduler
from .scheduling_score_sde_vp import ScoreSdeVpScheduler

__all__ = [
    "ScoreSdeSchedulerOutput",
    "ScoreSdeSubVpScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "from_diffusers_scheduler",
]
