"""What a user calls: one task per file, over a network and a scheduler."""

from .output import ScoreSdePipelineOutput
from .pipeline_score_sde import ScoreSdePipeline

__all__ = ["ScoreSdePipeline", "ScoreSdePipelineOutput"]
