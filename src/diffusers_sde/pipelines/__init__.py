"""What a user calls: one task per file, over a network and a scheduler."""

from .output import ScoreSdePipelineOutput
from .pipeline_score_sde import ScoreSdePipeline
from .pipeline_score_sde_class_conditional import ScoreSdeClassConditionalPipeline
from .pipeline_score_sde_colorization import ScoreSdeColorizationPipeline
from .pipeline_score_sde_edit import ScoreSdeCodeOutput, ScoreSdeEditPipeline
from .pipeline_score_sde_inpaint import ScoreSdeInpaintPipeline
from .pipeline_score_sde_inverse_problem import ScoreSdeInverseProblemPipeline
from .pipeline_score_sde_likelihood import (
    ScoreSdeElboOutput,
    ScoreSdeLikelihoodPipeline,
    ScoreSdeLikelihoodPipelineOutput,
)
from .pipeline_score_sde_ode import ScoreSdeEncodeOutput, ScoreSdeOdePipeline, ScoreSdeOdePipelineOutput

__all__ = [
    "ScoreSdeClassConditionalPipeline",
    "ScoreSdeCodeOutput",
    "ScoreSdeColorizationPipeline",
    "ScoreSdeEditPipeline",
    "ScoreSdeElboOutput",
    "ScoreSdeEncodeOutput",
    "ScoreSdeInpaintPipeline",
    "ScoreSdeInverseProblemPipeline",
    "ScoreSdeLikelihoodPipeline",
    "ScoreSdeLikelihoodPipelineOutput",
    "ScoreSdeOdePipeline",
    "ScoreSdeOdePipelineOutput",
    "ScoreSdePipeline",
    "ScoreSdePipelineOutput",
]
