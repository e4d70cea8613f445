import numpy as np
import pytest
from PIL import Image

from diffusers_sde.training import ImageFormat

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8)


def decode(image, **options):
    image_format = ImageFormat(**{"size": (8, 8), "channels": 1} | options)
    return image_format.crop(image_format.prepare(image))


def test_an_image_of_the_right_size_is_left_as_it_is():
    np.testing.assert_array_equal(decode(Image.fromarray(GRADIENT)), GRADIENT[None])


def test_padding_keeps_the_pixels_and_adds_a_black_border():
    image = Image.fromarray(GRADIENT + 1)
    padded = decode(image, size=(12, 14), pad=True)
    assert padded.shape == (1, 12, 14)
    np.testing.assert_array_equal(padded[0, 2:10, 3:11], GRADIENT + 1)
    assert padded.sum() == (GRADIENT + 1).sum()


def test_images_larger_than_the_size_are_resized_also_with_padding():
    image = Image.new("L", (40, 40), 7)
    np.testing.assert_array_equal(decode(image, pad=True), np.full((1, 8, 8), 7))


def test_without_padding_small_images_are_enlarged():
    np.testing.assert_array_equal(decode(Image.new("L", (4, 4), 7)), np.full((1, 8, 8), 7))


def test_crop_of_an_image_that_is_not_square():
    wide = Image.fromarray(np.hstack([GRADIENT, GRADIENT + 100]))
    image_format = ImageFormat(size=(8, 8), channels=1)
    prepared = image_format.prepare(wide)
    assert image_format.needs_random_crop(prepared)
    assert not ImageFormat(size=(8, 8), channels=1, center_crop=True).needs_random_crop(prepared)
    np.testing.assert_array_equal(image_format.crop(prepared, (0.0, 0.0))[0], GRADIENT)
    np.testing.assert_array_equal(image_format.crop(prepared, (0.0, 0.999))[0], GRADIENT + 100)
    np.testing.assert_array_equal(image_format.crop(prepared)[0], np.asarray(wide)[:, 4:12])


def test_size_that_is_not_square():
    assert decode(Image.new("L", (30, 20)), size=(8, 12)).shape == (1, 8, 12)


@pytest.mark.parametrize(
    ("mode", "color", "channels", "values"),
    [
        ("L", 9, 3, [9, 9, 9]),
        ("RGB", (1, 2, 3), 3, [1, 2, 3]),
        ("RGB", (1, 2, 3), 4, [1, 2, 3, 255]),
        ("RGBA", (1, 2, 3, 4), 4, [1, 2, 3, 4]),
        ("LA", (1, 2), 2, [1, 2]),
    ],
)
def test_conversions_that_lose_nothing(mode, color, channels, values):
    assert decode(Image.new(mode, (8, 8), color), channels=channels)[:, 0, 0].tolist() == values


def test_an_alpha_channel_that_is_dropped_lets_black_through():
    """Before, the colours that were hidden appeared."""
    assert decode(Image.new("RGBA", (8, 8), (200, 30, 60, 0)), channels=3, convert=True)[:, 0, 0].tolist() == [0, 0, 0]
    assert decode(Image.new("LA", (8, 8), (200, 51)), channels=1, convert=True)[0, 0, 0] == 40
    assert decode(Image.new("RGBA", (8, 8), (200, 30, 60, 9)), channels=4)[:, 0, 0].tolist() == [200, 30, 60, 9]


def test_conversions_that_lose_something_must_be_asked_for():
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    with pytest.raises(ValueError, match=r"3 channels \(mode 'RGB'\), the network takes 1. Pass --channels 1"):
        decode(image, channels=1)
    assert decode(image, channels=1, convert=True)[0, 0, 0] == 100


@pytest.mark.parametrize("mode", ["I;16", "P", "CMYK", "F"])
def test_modes_that_the_reader_of_pictures_never_returns_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode '{mode}'; allowed are L, LA, RGB, RGBA"):
        decode(Image.new(mode, (8, 8)), convert=True)


def test_impossible_channels_are_refused():
    with pytest.raises(ValueError, match=r"images of 5 channels .* pictures have 1 \(grey\).* from an npz file"):
        ImageFormat(size=(8, 8), channels=5).prepare(Image.new("L", (8, 8)))
