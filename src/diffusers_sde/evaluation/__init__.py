"""Measuring models on data sets."""

from .likelihood import LikelihoodEvaluation
from .splits import SplitImages

__all__ = ["LikelihoodEvaluation", "SplitImages"]
