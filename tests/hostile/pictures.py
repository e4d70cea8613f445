"""Picture files as strangers send them, to everything that reads pictures."""

import io
import os
import shutil
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde_cli.conditional import edit, inpaint
from tests.tiny import tiny_network

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
LARGE = RANDOM.integers(0, 256, (64, 48, 3), dtype=np.uint8)


@cache
def model() -> str:
    folder = tempfile.mkdtemp()
    ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler(sigma_max=5.0)).save_pretrained(folder)
    return folder


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2, rows: bytes = b"\0") -> bytes:
    """A PNG that claims a size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + body


def claimed(content: bytes, place: int, width: int, height: int) -> bytes:
    """A BMP that claims a size."""
    return content[:place] + struct.pack("<ii", width, height) + content[place + 8 :]


def tiff(width: int, height: int, bits: int, sample_format: int, rows: bytes) -> bytes:
    tags = [
        *(
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 1, bits),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, 1, 200),
        ),
        *((277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(rows)), (339, 3, 1, sample_format)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + rows


def contents() -> dict[str, tuple[str, bytes]]:
    """Suffix and content by name."""
    colour, large = Image.fromarray(COLOUR), Image.fromarray(LARGE)
    rotated = Image.Exif()
    rotated[274] = 6
    wrong = Image.Exif()
    wrong[274] = 99
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tif": "TIFF", "ppm": "PPM"}
    whole = {suffix: encoded(large, kind) for suffix, kind in kinds.items()}
    ramp = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    frames = [Image.new("RGB", (8, 8), word) for word in ("red", "lime", "blue")]
    more = {"save_all": True, "append_images": frames[1:]}
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touch) (w) file\n%%EOF\n"
    bomb = zlib.compress(bytes(80_000_000), 9)
    deep_exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 200
    return {
        **{f"good_{suffix}": (suffix, content) for suffix, content in whole.items()},
        **{f"half_{suffix}": (suffix, content[: len(content) // 2]) for suffix, content in whole.items()},
        **{f"header_{suffix}": (suffix, content[:20]) for suffix, content in whole.items()},
        **{f"end_{suffix}": (suffix, content[:-5]) for suffix, content in whole.items()},
        **{f"zeros_{suffix}": (suffix, content[:60].ljust(len(content), b"\0")) for suffix, content in whole.items()},
        **{f"misnamed_{suffix}": ("png" if suffix != "png" else "jpg", content) for suffix, content in whole.items()},
        "empty": ("png", b""),
        "one_byte": ("png", b"\x89"),
        "text": ("png", b"not a picture"),
        "pickle": ("png", b"\x80\x04cos\nsystem\n(S'touch canary'\ntR."),
        "html": ("png", b"<html><script>alert(1)</script></html>"),
        "svg": ("png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "eps": ("eps", postscript),
        "eps_as_png": ("png", postscript),
        "eps_dos": ("png", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(postscript)) + bytes(20) + postscript),
        "wmf_as_png": ("png", b"\xd7\xcd\xc6\x9a" + bytes(100)),
        "psd_as_png": ("png", b"8BPS" + bytes(100)),
        "icns_as_png": ("png", b"icns" + bytes(100)),
        "pcx_as_png": ("png", encoded(colour, "PCX")),
        "ico_as_png": ("png", encoded(colour, "ICO")),
        "claims_30000": ("png", png(30000, 30000)),
        "claims_12000": ("png", png(12000, 12000)),
        "claims_two_billion": ("png", png(2**31 - 1, 2**31 - 1)),
        "claims_8000": ("png", png(8000, 8000)),
        "claims_nothing": ("png", png(0, 0)),
        "claims_a_line": ("png", png(2**31 - 1, 1)),
        "bmp_claims_1e8": ("bmp", claimed(whole["bmp"], 18, 10**8, 10**8)),
        "bmp_claims_minus": ("bmp", claimed(whole["bmp"], 18, -5, 8)),
        "gif_claims_65535": ("gif", b"GIF89a" + b"\xff\xff\xff\xff" + whole["gif"][10:]),
        "ppm_claims_1e9": ("ppm", b"P6\n1000000000 1000000000\n255\n" + bytes(100)),
        "ppm_digits": ("ppm", b"P6\n" + b"9" * 100_000 + b" 1\n255\n"),
        "ppm_plain": ("ppm", b"P3\n2 2\n255\n" + b"1 " * 12),
        "ppm_plain_bad": ("ppm", b"P3\n2 2\n255\n" + b"x " * 12),
        "pfm": ("ppm", b"Pf\n2 2\n-1.0\n" + np.full(4, np.nan, "<f4").tobytes()),
        "tiff_claims": ("tif", tiff(2**31 - 1, 2**31 - 1, 8, 1, b"\0")),
        "tiff_short": ("tif", tiff(4000, 4000, 8, 1, b"\0")),
        "tiff_float": ("tif", tiff(8, 8, 32, 3, np.zeros(64, "<f4").tobytes())),
        "tiff_nan": ("tif", tiff(8, 8, 32, 3, np.full(64, np.nan, "<f4").tobytes())),
        "tiff_int32": ("tif", tiff(8, 8, 32, 2, np.zeros(64, "<i4").tobytes())),
        "tiff_16_bits": ("tif", tiff(8, 8, 16, 1, (np.arange(64, dtype="<u2") * 1000).tobytes())),
        "tiff_loop": ("tif", b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0"),
        "text_bomb": ("png", png(8, 8, chunk(b"zTXt", b"a\0\0" + bomb), rows=bytes(200))),
        "profile_bomb": ("png", png(8, 8, chunk(b"iCCP", b"a\0\0" + bomb), rows=bytes(200))),
        "rows_bomb": ("png", png(8, 8, rows=bytes(80_000_000))),
        "chunk_length": ("png", whole["png"][:33] + b"\x7f\xff\xff\xff" + whole["png"][37:]),
        "bad_crc": ("png", whole["png"][:29] + b"\0\0\0\0" + whole["png"][33:]),
        "grey_16": ("png", encoded(ramp, "PNG")),
        "grey_16_key": ("png", encoded(ramp, "PNG", transparency=5000)),
        "one_bit": ("png", encoded(colour.convert("1"), "PNG")),
        "palette": ("png", encoded(colour.convert("P"), "PNG")),
        "palette_key": ("png", encoded(colour.convert("P"), "PNG", transparency=0)),
        "palette_alpha": ("png", encoded(colour.convert("P"), "PNG", transparency=bytes(range(256)))),
        "grey_alpha": ("png", encoded(colour.convert("LA"), "PNG")),
        "colour_alpha": ("png", encoded(colour.convert("RGBA"), "PNG")),
        "colour_key": ("png", encoded(colour, "PNG", transparency=(0, 0, 0))),
        "cmyk_jpeg": ("jpg", encoded(colour.convert("CMYK"), "JPEG")),
        "cmyk_tiff": ("tif", encoded(colour.convert("CMYK"), "TIFF")),
        "lab_tiff": ("tif", encoded(Image.new("LAB", (8, 8)), "TIFF")),
        "ycbcr_tiff": ("tif", encoded(colour.convert("YCbCr"), "TIFF")),
        "rotated_jpeg": ("jpg", encoded(large, "JPEG", exif=rotated)),
        "rotated_tiff": ("tif", encoded(large, "TIFF", exif=rotated)),
        "rotated_png": ("png", encoded(large, "PNG", exif=rotated)),
        "rotation_99": ("jpg", encoded(large, "JPEG", exif=wrong)),
        "damaged_exif": ("jpg", encoded(large, "JPEG", exif=deep_exif)),
        "animated_gif": ("gif", encoded(frames[0], "GIF", **more)),
        "animated_png": ("png", encoded(frames[0], "PNG", **more)),
        "animated_webp": ("webp", encoded(frames[0], "WEBP", **more)),
        "pages": ("tif", encoded(frames[0], "TIFF", **more)),
        "line_60000": ("png", encoded(Image.new("L", (60000, 1)), "PNG")),
        "column_60000": ("png", encoded(Image.new("L", (1, 60000)), "PNG")),
        "pixel": ("png", encoded(Image.new("L", (1, 1)), "PNG")),
    }


def files() -> dict:
    """What makes a file in a folder and returns its path, by name."""

    def write(folder: Path, suffix: str, content: bytes) -> Path:
        path = folder / f"odd.{suffix}"
        path.write_bytes(content)
        return path

    def special(make):
        def build(folder: Path) -> Path:
            make(folder / "odd.png")
            return folder / "odd.png"

        return build

    found = {name: lambda folder, c=content: write(folder, *c) for name, content in contents().items()}
    return found | {
        "pipe": special(os.mkfifo),
        "loop": special(lambda path: path.symlink_to(path.name)),
        "dangling": special(lambda path: path.symlink_to("nowhere")),
        "zero": special(lambda path: path.symlink_to("/dev/zero")),
        "tty": special(lambda path: path.symlink_to("/dev/tty")),
        "passwd": special(lambda path: path.symlink_to("/etc/passwd")),
        "folder": special(lambda path: path.mkdir()),
    }


def good(path: Path) -> Path:
    """A picture beside the odd one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOUR).save(path)
    return path


def by_command(command, *arguments) -> None:
    """Exit status 0 and pictures, or one line of error, and then no exit status 0."""
    output = Path(tempfile.mkdtemp())
    options = ["--model", model(), "--steps", "4", "--num-samples", "1", "--output", str(output / "out")]
    result = CliRunner().invoke(command, [*map(str, arguments), *options])
    if result.exit_code == 0:
        assert (output / "out" / "00000.png").is_file()
        assert (output / "out" / "grid.png").stat().st_size < 10**8
        return
    if not isinstance(result.exception, SystemExit):
        raise result.exception
    message = result.output.split("Error:")[-1]
    named = [str(part) for part in arguments if "odd" in str(part)]
    assert any(name in message for name in named) or "mask" in message or "no whole" in message, message
    raise ValueError(message)


def by_edit(path: Path) -> None:
    by_command(edit, path, "--resize", "--strength", "0.5")


def by_mask(path: Path) -> None:
    by_command(inpaint, good(path.parent / "good.png"), "--mask", path)


def by_training(path: Path) -> None:
    from diffusers_sde.training import ImageFormat, load_images
    from diffusers_sde.training.sources import iterate_batches, open_source

    for i in range(3):
        good(path.parent / f"good{i}.png")
    dataset = load_images(train_data_dir=str(path.parent), cache_dir=tempfile.mkdtemp())
    image_format = ImageFormat((8, 8), 3, convert=True, center_crop=True)
    for limit in (2.0, 0.0):
        source = open_source(dataset, image_format, memory_limit=limit, show_progress=False)
        batch = next(iterate_batches(source, batch_size=8))
        assert batch.shape == (8, 3, 8, 8)


def by_split(path: Path) -> None:
    from diffusers_sde.evaluation.splits import SplitImages

    folder = path.parent / "data" / "test"
    good(folder / "a.png")
    shutil.move(path, folder / path.name)
    images = SplitImages(str(path.parent / "data"), "test", (8, 8), 3, resize=True)
    assert all(images[i].shape == (3, 8, 8) for i in range(len(images)))


def by_samples(path: Path) -> None:
    from diffusers_sde.evaluation.quality import FolderImages

    good(path.parent / "good.png")
    images = FolderImages(path.parent)
    assert all(images[i].shape == (3, 8, 8) for i in range(len(images)))


def by_survey(path: Path) -> None:
    from diffusers_sde.suggest.images import choose_format, open_rows, pixels, survey

    good(path.parent / "good.png")
    rows = open_rows(str(path.parent))
    image_format = choose_format(survey(rows), (8, 8), 3, pad=False, resize=True)
    assert pixels(rows, image_format, range(len(rows))).shape[1:] == (3, 8, 8)


def by_space(path: Path) -> None:
    import gradio as gr
    from gradio.components.image_editor import EditorData
    from gradio.data_classes import FileData, ImageData
    from score_space.uploads import MaskedPicture, Picture

    try:
        assert Picture().preprocess(ImageData(path=str(path))).mode == "RGB"
        background = FileData(path=str(good(path.parent / "good.png")))
        MaskedPicture(type="pil").preprocess(EditorData(background=background, layers=[FileData(path=str(path))]))
    except gr.Error as error:
        raise ValueError(error.message) from error


READERS = (by_edit, by_mask, by_training, by_split, by_samples, by_survey, by_space)


def cases() -> dict:
    """Every file to every reader."""
    found = {}
    for name, build in files().items():
        for reader in READERS:

            def case(folder, build=build, reader=reader):
                place = folder / "input"
                place.mkdir()
                path = build(place)
                reader(path)

            found[f"{name}_{reader.__name__}"] = case
    return found
