"""What users send: read as it is meant, or refused with a reason."""

# ruff: noqa: E402  (what needs gradio is imported after the check that it is there)

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")

from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData, ImageData
from score_space.models import CIFAR, FASHION, MODELS
from score_space.uploads import MaskedPicture, Picture, choice, fit, fit_grey, fit_mask, read_picture, real, whole


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def huge_png(path, width, height):
    """A valid header with next to nothing behind it, as an attacker sends it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_usual_images_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.fromarray(noise(6, 5)).convert(mode).save(path)
    image = Picture().preprocess(ImageData(path=str(path)))
    assert (image.mode, image.size) == ("RGB", (5, 6))


def test_transparency_is_black(tmp_path):
    Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(tmp_path / "image.png")
    assert np.asarray(read_picture(tmp_path / "image.png")).max() == 0


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.new("RGB", (8, 4)).save(tmp_path / "image.jpg", exif=exif)
    assert read_picture(tmp_path / "image.jpg").size == (4, 8)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("no image at all")
    (tmp_path / "image.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name, message in (
        ("notes.png", "The image is not a picture that can be read here; give one of PNG, JPEG"),
        ("image.svg", "The image is not a picture that can be read here; give one of PNG, JPEG"),
        ("cut.png", "The image is a damaged picture: "),
        ("absent.png", "The image is not there any more"),
    ):
        with pytest.raises(gr.Error, match=message) as caught:
            read_picture(str(tmp_path / name))
        assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("size", [(5000, 4000), (60_000, 60_000)])
def test_large_images_are_refused_before_they_are_decoded(tmp_path, size):
    path = huge_png(tmp_path / "huge.png", *size)
    for read in (lambda: read_picture(path), lambda: Picture().preprocess(ImageData(path=str(path)))):
        with pytest.raises(gr.Error) as caught:
            read()
        assert "at most 16.8 million" in caught.value.message
    with pytest.raises(gr.Error, match="at most"):
        MaskedPicture(type="pil").preprocess(EditorData(background=FileData(path=str(path)), layers=[]))


def test_sixteen_bits_are_scaled_and_floating_point_values_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 12345, np.uint16)).save(tmp_path / "image.png")
    assert read_picture(str(tmp_path / "image.png")).getpixel((0, 0)) == (48, 48, 48)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "image.tiff")
    with pytest.raises(gr.Error, match="Save it with 8 or 16 bits"):
        read_picture(str(tmp_path / "image.tiff"))


def test_an_editor_opens_no_other_format_in_any_of_its_parts(tmp_path):
    """Gradio's own reader opens whatever PIL can: PostScript goes to Ghostscript."""
    Image.fromarray(noise(8, 8)).save(tmp_path / "good.png")
    Image.fromarray(noise(8, 8)).save(tmp_path / "evil.eps")
    good, evil = (FileData(path=str(tmp_path / name)) for name in ("good.png", "evil.eps"))
    for parts in ({"background": evil, "layers": []}, {"background": good, "layers": [evil]}):
        with pytest.raises(gr.Error, match="not a picture that can be read"):
            MaskedPicture(type="pil").preprocess(EditorData(**parts))
    found, _ = MaskedPicture(type="pil").preprocess(EditorData(background=good, layers=[], composite=evil))
    assert found.size == (8, 8)
    with pytest.raises(gr.Error, match="more than 16 layers"):
        MaskedPicture(type="pil").preprocess(EditorData(background=good, layers=[good] * 1000))


def test_an_enlarged_image_comes_back_to_the_bit():
    small = Image.fromarray(noise(32, 32))
    assert np.array_equal(fit(small.resize((320, 320), Image.Resampling.NEAREST), MODELS.get(CIFAR))[0], small)
    assert np.array_equal(fit(small, MODELS.get(CIFAR))[0], small)


def test_the_longer_side_is_cropped_in_the_middle():
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = noise(32, 32)
    assert np.array_equal(fit(Image.fromarray(wide), MODELS.get(CIFAR))[0], wide[:, 32:64])
    assert fit(Image.fromarray(wide), MODELS.get(FASHION)).shape == (1, 32, 32, 1)


def test_grey_is_the_mean_of_the_channels():
    array = noise(32, 32)
    assert np.array_equal(fit_grey(Image.fromarray(array), MODELS.get(CIFAR))[0], array.mean(axis=-1).round())


def test_a_missing_image_is_said():
    with pytest.raises(ValueError, match="missing: upload one"):
        fit(None, MODELS.get(FASHION))


def test_a_mask_is_white_where_most_of_a_pixel_is_painted():
    mask = np.zeros((320, 320), np.uint8)
    mask[:106] = 255  # ten rows of pixels and most of another one
    mask[300:304] = 255  # less than half
    found = np.asarray(fit_mask(Image.fromarray(mask), MODELS.get(FASHION)))
    assert np.array_equal(found, np.repeat(np.where(np.arange(32) <= 10, 255, 0)[:, None], 32, axis=1))


def test_an_editor_gives_image_and_mask(tmp_path):
    image = Image.fromarray(noise(40, 40))
    layers = []
    for i, box in enumerate([(0, 0, 10, 10), (20, 20, 30, 30)]):
        layer = Image.new("RGBA", (40, 40))
        layer.paste((255, 122, 69, 255), box)
        layer.save(tmp_path / f"{i}.png")
        layers.append(FileData(path=str(tmp_path / f"{i}.png")))
    image.save(tmp_path / "image.png")
    field = MaskedPicture(type="pil")
    found, mask = field.preprocess(EditorData(background=FileData(path=str(tmp_path / "image.png")), layers=layers))
    assert np.array_equal(found, image)
    assert (np.asarray(mask) == 255).sum() == 200
    assert np.asarray(mask)[:10, :10].min() == 255
    assert field.preprocess(None) is None
    assert field.preprocess(EditorData(layers=[])) is None


@pytest.mark.parametrize("value", [None, True, "7", float("nan"), float("inf"), 0, 11, 10**400])
def test_numbers_are_checked(value):
    with pytest.raises(ValueError, match="give a number from 1 to 10"):
        whole("it", value, 1, 10)


def test_numbers_in_range_are_taken():
    assert whole("it", 3.0, 1, 10) == 3
    assert real("it", 2.5, 1, 10) == 2.5
    with pytest.raises(ValueError, match="give a whole number"):
        whole("it", 2.5, 1, 10)


def test_choices_are_checked():
    assert choice("it", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="it is 'c'; allowed are a, b"):
        choice("it", "c", ("a", "b"))
    with pytest.raises(ValueError, match="allowed"):
        choice("it", ["a"], ("a", "b"))
