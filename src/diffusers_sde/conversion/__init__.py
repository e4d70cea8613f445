"""Official checkpoints to pipelines of this package."""

from .classifier import convert_classifier
from .convert import Conversion, convert, convert_checkpoint
from .native import native_network, native_pipeline
from .repository import make_repository, push_to_hub, write_classifier

__all__ = [
    "Conversion",
    "convert",
    "convert_checkpoint",
    "convert_classifier",
    "make_repository",
    "native_network",
    "native_pipeline",
    "push_to_hub",
    "write_classifier",
]
