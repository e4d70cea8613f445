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
from .divergence import draw_probes, score_and_divergence
from .likelihood import LikelihoodResult, log_likelihood
from .predictors import Predictor, make_predictor, predictor_names, register_predictor
from .probability_flow import FlowResult, probability_flow
from .targets import Gaussian, GaussianMixture
from .ve import VESDE
from .vp import VPSDE, SubVPSDE

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "Corrector",
    "FlowResult",
    "Gaussian",
    "GaussianMixture",
    "LikelihoodResult",
    "Predictor",
    "SubVPSDE",
    "corrector_names",
    "denoised_to_epsilon",
    "denoised_to_score",
    "draw_probes",
    "epsilon_to_denoised",
    "epsilon_to_score",
    "log_likelihood",
    "make_corrector",
    "make_predictor",
    "predictor_names",
    "probability_flow",
    "register_corrector",
    "register_predictor",
    "score_and_divergence",
    "score_to_denoised",
    "score_to_epsilon",
]
