"""Measuring models on data sets."""

from .distances import frechet_distance, inception_score, kernel_distance, precision_recall
from .extractors import FeatureExtractor, Features, load_extractor
from .likelihood import LikelihoodEvaluation
from .sample_shards import OdeSampler, PredictorCorrectorSampler, SampleShards
from .score_loss import ScoreLossEvaluation
from .splits import SplitImages
from .statistics import FeatureStatistics, compute_statistics

__all__ = [
    "FeatureExtractor",
    "FeatureStatistics",
    "Features",
    "LikelihoodEvaluation",
    "OdeSampler",
    "PredictorCorrectorSampler",
    "SampleShards",
    "ScoreLossEvaluation",
    "SplitImages",
    "compute_statistics",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_extractor",
    "precision_recall",
]
