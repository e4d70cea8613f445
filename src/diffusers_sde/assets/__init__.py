"""The model that comes with the package."""

from pathlib import Path


def embedded_model_path() -> Path:
    """Folder of the embedded model, in the layout of `save_pretrained`; its README.md is the model card."""
    return Path(__file__).parent / "ncsnpp-ve-fashion-mnist"
