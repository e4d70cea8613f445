"""Training: losses, data, checkpoints and the loop of `training/train_sde.py`, each usable by itself."""

from ..schedulers import network_score
from .checkpoints import find_checkpoint, list_checkpoints
from .classifier import ClassifierTrainer, train_classifier
from .classifier_options import parse_classifier_args
from .components import build_network, build_scheduler
from .data import ImagesInMemory, ImagesOnTheFly, iterate_batches, load_images, open_source, to_data_range
from .images import ImageFormat
from .loop import Trainer, train
from .losses import denoising_score_matching_loss
from .options import build_parser, parse_args
from .randomness import ShuffledOrder, StepNoise, derive_seed

__all__ = [
    "ClassifierTrainer",
    "ImageFormat",
    "ImagesInMemory",
    "ImagesOnTheFly",
    "ShuffledOrder",
    "StepNoise",
    "Trainer",
    "build_network",
    "build_parser",
    "build_scheduler",
    "denoising_score_matching_loss",
    "derive_seed",
    "find_checkpoint",
    "iterate_batches",
    "list_checkpoints",
    "load_images",
    "network_score",
    "open_source",
    "parse_args",
    "parse_classifier_args",
    "to_data_range",
    "train",
    "train_classifier",
]
