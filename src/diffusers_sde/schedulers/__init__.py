"""Thin diffusers schedulers over the mathematics of `diffusers_sde.sde`."""

from .base import ScoreSdeSchedulerOutput
from .from_diffusers import from_diffusers_scheduler
from .scheduling_score_sde_sub_vp import ScoreSdeSubVpScheduler
from .scheduling_score_sde_ve import ScoreSdeVeScheduler
from .scheduling_score_sde_vp import ScoreSdeVpScheduler
from .scores import first_time, label_times, network_score, score_from_output

__all__ = [
    "ScoreSdeSchedulerOutput",
    "ScoreSdeSubVpScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "first_time",
    "from_diffusers_scheduler",
    "label_times",
    "network_score",
    "score_from_output",
]
