"""Official checkpoints to pipelines of this package."""

from .convert import convert_checkpoint

__all__ = ["convert_checkpoint"]
