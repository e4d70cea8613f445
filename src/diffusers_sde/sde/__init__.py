"""The mathematics: forward processes, predictors, correctors, conversions. Torch only, states of any rank >= 2."""

from .base import SDE
from .conversions import (
    denoised_to_epsilon,
    denoised_to_score,
    epsilon_to_denoised,
    epsilon_to_score,
    score_to_denoised,
    score_to_epsilon,
)
from .correctors import Corrector, corrector_names, make_corrector, register_corrector
from .predictors import Predictor, make_predictor, predictor_names, register_predictor
from .ve import VESDE
from .vp import VPSDE, SubVPSDE

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "Corrector",
    "Predictor",
    "SubVPSDE",
    "corrector_names",
    "denoised_to_epsilon",
    "denoised_to_score",
    "epsilon_to_denoised",
    "epsilon_to_score",
    "make_corrector",
    "make_predictor",
    "predictor_names",
    "register_corrector",
    "register_predictor",
    "score_to_denoised",
    "score_to_epsilon",
]
