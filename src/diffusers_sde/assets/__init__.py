"""The models that come with the package; the README.md of each folder is its model card."""

from pathlib import Path


def embedded_model_path() -> str:
    """Folder of the embedded model, a pipeline in the layout of `save_pretrained`."""
    return str(Path(__file__).parent / "ncsnpp-ve-fashion-mnist")


def embedded_classifier_path() -> str:
    """Folder of the noise-conditional classifier of the embedded model's images."""
    return str(Path(__file__).parent / "classifier-fashion-mnist")


def embedded_colour_model_path() -> str:
    """Folder of a small model of colour images, for colorization above all; a pipeline likewise."""
    return str(Path(__file__).parent / "ddpmpp-vp-cifar10")
