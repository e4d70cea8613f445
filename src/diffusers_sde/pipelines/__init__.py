"""What a user calls: one task per file, over a network and a scheduler."""

from .output import ScoreSdePipelineOutput
from .pipeline_score_sde import ScoreSdePipeline
from .pipeline_score_sde_likelihood import (
    ScoreSdeElboOutput,
    ScoreSdeLikelihoodPipeline,
    ScoreSdeLikelihoodPipelineOutput,
)
from .pipeline_score_sde_ode import ScoreSdeEncodeOutput, ScoreSdeOdePipeline, ScoreSdeOdePipelineOutput

__all__ = [
    "ScoreSdeElboOutput",
    "ScoreSdeEncodeOutput",
    "ScoreSdeLikelihoodPipeline",
    "ScoreSdeLikelihoodPipelineOutput",
    "ScoreSdeOdePipeline",
    "ScoreSdeOdePipelineOutput",
    "ScoreSdePipeline",
    "ScoreSdePipelineOutput",
]
