"""Official checkpoints to pipelines of this package."""

from .classifier import convert_classifier
from .convert import Conversion, convert, convert_checkpoint

__all__ = ["Conversion", "convert", "convert_checkpoint", "convert_classifier"]
