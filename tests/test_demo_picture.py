"""The look at the demo's picture sees what a person would: each fault is tried."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.demo_picture import fault_of_grid

SHOWN = Path(__file__).parents[1] / "docs" / "images" / "fashion-mnist.png"


def saved(pixels, path):
    Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def shown():
    with Image.open(SHOWN) as image:
        return np.asarray(image.convert("L").resize((128, 128)), float) / 255


def test_the_picture_in_the_readme_passes():
    assert fault_of_grid(SHOWN) is None


def test_one_picture_of_noise_is_found(shown, tmp_path):
    """Gaussian noise as a solver on the wrong network draws it, clipped, in one of sixteen places."""
    shown[32:64, 64:96] = 0.5 + 0.4 * np.random.default_rng(0).standard_normal((32, 32))
    assert "picture 6 is noise" in fault_of_grid(saved(shown, tmp_path / "grid.png"))


def test_black_and_white_noise_is_found(shown, tmp_path):
    shown[:32, :32] = np.random.default_rng(0).integers(0, 2, (32, 32))
    assert "picture 0 is blank or clipped" in fault_of_grid(saved(shown, tmp_path / "grid.png"))


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_a_blank_picture_is_found(shown, tmp_path, grey):
    shown[96:, 96:] = grey
    assert "picture 15 is blank" in fault_of_grid(saved(shown, tmp_path / "grid.png"))


def test_a_repeated_picture_is_found(shown, tmp_path):
    shown[:32, 32:64] = shown[:32, :32]
    assert "the same" in fault_of_grid(saved(shown, tmp_path / "grid.png"))


def test_another_size_and_a_missing_file_are_found(shown, tmp_path):
    assert "pixels" in fault_of_grid(saved(shown[:100], tmp_path / "grid.png"))
    assert "there is no" in fault_of_grid(tmp_path / "nothing.png")
