"""Training: losses, data, checkpoints and the loop of `training/train_sde.py`, each usable by itself."""

from .checkpoints import CheckpointError, find_checkpoint, list_checkpoints
from .classifier import ClassifierTrainer, train_classifier
from .classifier_options import parse_classifier_args
from .components import build_network, build_scheduler
from .data import load_images
from .images import ImageFormat
from .loop import Trainer, train
from .losses import denoising_score_matching_loss, sliced_score_matching_loss
from .options import build_parser, parse_args
from .presets import preset_defaults, read_preset
from .randomness import PositionNoise, Purpose, ShuffledOrder, derive_seed
from .script import run_script
from .sources import ImagesInMemory, ImagesOnTheFly, ImagesStreamed, iterate_batches, open_source, to_data_range
from .times import NoiseLevels, TrainingTimes

__all__ = [
    "CheckpointError",
    "ClassifierTrainer",
    "ImageFormat",
    "ImagesInMemory",
    "ImagesOnTheFly",
    "ImagesStreamed",
    "NoiseLevels",
    "PositionNoise",
    "Purpose",
    "ShuffledOrder",
    "Trainer",
    "TrainingTimes",
    "build_network",
    "build_parser",
    "build_scheduler",
    "denoising_score_matching_loss",
    "derive_seed",
    "find_checkpoint",
    "iterate_batches",
    "list_checkpoints",
    "load_images",
    "open_source",
    "parse_args",
    "parse_classifier_args",
    "preset_defaults",
    "read_preset",
    "run_script",
    "sliced_score_matching_loss",
    "to_data_range",
    "train",
    "train_classifier",
]
