"""Score networks: one architecture per file."""

from .classifier import NoiseConditionalClassifier, NoiseConditionalClassifierOutput
from .ddpm import DDPMModel
from .inputs import ScoreNetworkOutput
from .ncsn import NCSNModel
from .ncsnpp import NCSNppModel
from .ncsnv2 import NCSNv2Model

__all__ = [
    "DDPMModel",
    "NCSNModel",
    "NCSNppModel",
    "NCSNv2Model",
    "NoiseConditionalClassifier",
    "NoiseConditionalClassifierOutput",
    "ScoreNetworkOutput",
]
