"""One reader for all: what a picture's pixels are, and what is no picture."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusers_sde.data import PictureHeader, flatten, picture_files, read_header, read_picture

NOISE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def png_header(path, width, height, depth=8, colour=2):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
    return path


def saved(folder, image, suffix=".png", **options):
    path = folder / f"picture{suffix}"
    image.save(path, **options)
    return path


def pixel(path):
    return np.asarray(read_picture(path))[0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected_mode", "expected"),
    [
        ("1", 1, ".png", "L", 255),
        ("L", 7, ".png", "L", 7),
        ("LA", (7, 9), ".png", "LA", [7, 9]),
        ("RGB", (1, 2, 3), ".png", "RGB", [1, 2, 3]),
        ("RGBA", (1, 2, 3, 4), ".png", "RGBA", [1, 2, 3, 4]),
        ("RGBA", (1, 2, 3, 4), ".tif", "RGBA", [1, 2, 3, 4]),
        ("CMYK", (0, 255, 255, 0), ".tif", "RGB", [255, 0, 0]),
        ("I;16", 65535, ".png", "L", 255),
        ("I;16", 12345, ".png", "L", 48),
        ("I;16", 128, ".png", "L", 0),
        ("I;16", 129, ".png", "L", 1),
        ("I;16", 511, ".tif", "L", 2),
        ("I;16B", 65535, ".tif", "L", 255),
    ],
)
def test_every_mode_becomes_eight_bits(tmp_path, mode, colour, suffix, expected_mode, expected):
    """16 bits are scaled and rounded; before, commands refused them, and masks took their lowest byte or clipped."""
    image = Image.new(mode, (6, 4), colour)
    if mode.startswith("I;16"):
        image = Image.fromarray(np.full((4, 6), colour, ">u2" if mode == "I;16B" else "<u2"))
    path = saved(tmp_path, image, suffix)
    assert read_picture(path).mode == expected_mode
    assert pixel(path) == expected
    assert read_header(path) == PictureHeader(4, 6, expected_mode)


def test_palettes_are_looked_up_with_their_transparency(tmp_path):
    palette = Image.fromarray(np.zeros((4, 6), np.uint8), "P")
    palette.putpalette([200, 30, 60, 0, 0, 0])
    assert pixel(saved(tmp_path, palette)) == [200, 30, 60]
    path = saved(tmp_path, palette, transparency=0)
    assert pixel(path) == [200, 30, 60, 0]
    assert read_header(path).mode == "RGBA"
    assert np.asarray(flatten(read_picture(path)))[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("image", "transparency", "expected"),
    [
        (Image.new("RGB", (6, 4), (200, 30, 60)), (200, 30, 60), [200, 30, 60, 0]),
        (Image.new("L", (6, 4), 7), 7, [7, 0]),
        (Image.fromarray(np.full((4, 6), 40000, np.uint16)), 40000, [156, 0]),
        (Image.fromarray(np.full((4, 6), 40000, np.uint16)), 40001, [156, 255]),
    ],
)
def test_colour_keys_are_transparent(tmp_path, image, transparency, expected):
    assert pixel(saved(tmp_path, image, transparency=transparency)) == expected


def test_transparency_lies_on_black():
    """Before, hidden colours appeared in some commands."""
    image = Image.new("RGBA", (1, 1), (200, 100, 50, 51))
    assert np.asarray(flatten(image))[0, 0].tolist() == [40, 20, 10]
    assert np.asarray(flatten(Image.new("LA", (1, 1), (200, 51)))).tolist() == [[40]]
    assert np.asarray(flatten(image, "white"))[0, 0].tolist() == [244, 224, 214]
    opaque = Image.new("RGB", (1, 1))
    assert flatten(opaque) is opaque


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_photographs_are_turned_upright(tmp_path, suffix, mode):
    """`--mask` and the conditional commands took them as they lay."""
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise: the left side comes on top
    array = np.zeros((32, 64, 3), np.uint8)
    array[:, :32] = 255
    path = saved(tmp_path, Image.fromarray(array).convert(mode), suffix, exif=exif)
    upright = np.asarray(read_picture(path).convert("L"))
    assert upright.shape == (64, 32)
    assert upright[:30].min() > 200 and upright[34:].max() < 50
    header = read_header(path)
    assert (header.height, header.width) == (64, 32)


def test_sixteen_bits_are_turned_upright(tmp_path):
    path = tmp_path / "picture.tif"
    Image.fromarray(np.full((2, 5), 65535, np.uint16)).save(path, tiffinfo={274: 6})
    assert read_picture(path).size == (2, 5)
    assert read_picture(path).getextrema() == (255, 255)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_frame_of_an_animation_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = saved(tmp_path, frames[0], suffix, save_all=True, append_images=frames[1:], **options)
    assert pixel(path) == [255, 0, 0]


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.float32), np.full((2, 2), np.nan, np.float32)])
def test_values_without_a_range_are_refused(tmp_path, array):
    path = saved(tmp_path, Image.fromarray(array), ".tif")
    for read in (read_picture, read_header):
        with pytest.raises(ValueError, match=r"picture\.tif has floating-point values, .* Save it with 8 or 16 bits"):
            read(path)
    path = saved(tmp_path, Image.fromarray(np.zeros((2, 2), np.int32)), ".tif")
    with pytest.raises(ValueError, match=r"picture\.tif has 32-bit integers"):
        read_picture(path)


@pytest.mark.parametrize("size", [(12_000, 12_000), (30_000, 30_000), (8193, 8192), (1, 2**26 + 1)])
@pytest.mark.filterwarnings("error")
def test_large_pictures_are_refused_before_they_are_decoded(tmp_path, size):
    """PIL warns, or raises an error that is neither ValueError nor OSError: a traceback in all commands."""
    path = png_header(tmp_path / "huge.png", *size)
    for read in (read_picture, read_header):
        with pytest.raises(ValueError, match=rf"huge.png has {size[1]} x {size[0]} pixels; at most 67.1 million"):
            read(path)
    with pytest.raises(ValueError, match="pixels; at most"):
        read_picture(saved(tmp_path, Image.fromarray(NOISE)), max_pixels=23)
    assert read_picture(saved(tmp_path, Image.fromarray(NOISE)), max_pixels=24).size == (6, 4)


def test_a_bitmap_that_claims_more_than_there_is_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(NOISE), ".bmp")
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 10**8, 10**8)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"picture\.bmp has 100000000 x 100000000 pixels"):
        read_picture(path)


@pytest.mark.parametrize("suffix", [".eps", ".pcx", ".tga", ".im"])
def test_other_formats_do_not_reach_their_readers(tmp_path, suffix):
    """That of EPS hands the file to Ghostscript, an interpreter outside of this process."""
    path = saved(tmp_path, Image.fromarray(NOISE), suffix)
    path = path.rename(tmp_path / "picture.png")
    with pytest.raises(
        ValueError, match=r"picture\.png is not a picture that can be read here; give one of PNG, JPEG"
    ):
        read_picture(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".ppm"])
def test_a_cut_file_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), suffix)
    assert read_picture(path).size == (64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"picture\{suffix} is (a damaged|not a) picture"):
        read_picture(path)


def test_what_is_no_file_is_refused_by_name(tmp_path):
    """A pipe made commands wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    for name, message in (
        ("pipe.png", "is neither a file nor a folder"),
        ("folder.png", "is a folder"),
        ("loop.png", "loop.png"),
        ("absent.png", "absent.png"),
    ):
        for read in (read_picture, read_header):
            with pytest.raises(OSError, match=message) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(OSError, match="neither a file nor a folder"):
        read_picture("/dev/zero")


def test_bytes_are_read_under_the_name_given(tmp_path):
    content = saved(tmp_path, Image.fromarray(NOISE)).read_bytes()
    np.testing.assert_array_equal(read_picture(content), NOISE)
    with pytest.raises(ValueError, match="image 7 is not a picture"):
        read_picture(b"", "image 7")


def test_hidden_files_are_left_out_and_pipes_with_a_word(tmp_path, caplog):
    """`._photo.png` of other systems stopped `evaluate --samples`; a pipe stopped what opened it."""
    for name in ("b.png", "a/c.JPG", "a/._c.png", ".hidden.png", ".cache/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    found = [str(path.relative_to(tmp_path)) for path in picture_files(tmp_path)]
    assert found == ["a/c.JPG", "b.png"]
    assert "2 of" in caplog.text and "pipe.png" in caplog.text and "loop.png" in caplog.text
    with pytest.raises(OSError, match="nowhere"):
        picture_files(tmp_path / "nowhere")
