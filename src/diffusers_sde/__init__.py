"""Score-based generative modelling through stochastic differential equations, for diffusers.

import diffusers_sde
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(diffusers_sde.embedded_model_path())
pipe(batch_size=4, num_inference_steps=200).images[0].save("image.png")
"""

__version__ = "0.1.0.dev0"

# diffusers finds out by these names, at the top of the package, how its components are loaded.
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .assets import embedded_classifier_path, embedded_colour_model_path, embedded_model_path
from .models import DDPMModel, NCSNModel, NCSNppModel, NCSNv2Model, NoiseConditionalClassifier
from .pipelines import (
    ScoreSdeClassConditionalPipeline,
    ScoreSdeColorizationPipeline,
    ScoreSdeEditPipeline,
    ScoreSdeInpaintPipeline,
    ScoreSdeInverseProblemPipeline,
    ScoreSdeLikelihoodPipeline,
    ScoreSdeLikelihoodPipelineOutput,
    ScoreSdeOdePipeline,
    ScoreSdeOdePipelineOutput,
    ScoreSdePipeline,
    ScoreSdePipelineOutput,
)
from .registration import register
from .schedulers import (
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    from_diffusers_scheduler,
)

register(
    __name__,
    pipelines=(
        ScoreSdeClassConditionalPipeline,
        ScoreSdeColorizationPipeline,
        ScoreSdeEditPipeline,
        ScoreSdeInpaintPipeline,
        ScoreSdeInverseProblemPipeline,
        ScoreSdeLikelihoodPipeline,
        ScoreSdeOdePipeline,
        ScoreSdePipeline,
    ),
    components=(
        DDPMModel,
        NCSNModel,
        NCSNppModel,
        NCSNv2Model,
        NoiseConditionalClassifier,
        ScoreSdeSubVpScheduler,
        ScoreSdeVeScheduler,
        ScoreSdeVpScheduler,
    ),
)
del register

__all__ = [
    "DDPMModel",
    "ModelMixin",
    "NCSNModel",
    "NCSNppModel",
    "NCSNv2Model",
    "NoiseConditionalClassifier",
    "SchedulerMixin",
    "ScoreSdeClassConditionalPipeline",
    "ScoreSdeColorizationPipeline",
    "ScoreSdeEditPipeline",
    "ScoreSdeInpaintPipeline",
    "ScoreSdeInverseProblemPipeline",
    "ScoreSdeLikelihoodPipeline",
    "ScoreSdeLikelihoodPipelineOutput",
    "ScoreSdeOdePipeline",
    "ScoreSdeOdePipelineOutput",
    "ScoreSdePipeline",
    "ScoreSdePipelineOutput",
    "ScoreSdeSubVpScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "embedded_classifier_path",
    "embedded_colour_model_path",
    "embedded_model_path",
    "from_diffusers_scheduler",
]
