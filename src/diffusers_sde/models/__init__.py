"""Score networks: one architecture per file."""

from .ncsnpp import NCSNppModel, NCSNppOutput

__all__ = ["NCSNppModel", "NCSNppOutput"]
