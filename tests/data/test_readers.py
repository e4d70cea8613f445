"""The same picture is the same numbers to whatever reads it."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_sde.commands.given_images import read_file
from diffusers_sde.evaluation.quality import FolderImages
from diffusers_sde.evaluation.splits import SplitImages
from diffusers_sde.suggest.images import choose_format, open_rows, pixels, survey
from diffusers_sde.training import ImageFormat, load_images
from diffusers_sde.training.sources import iterate_batches, open_source

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(folder, kind):
    """A picture whose upright pixels are GREY, in one of several ways."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "rotated":
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(np.rot90(GREY)).save(folder / "a.png", exif=exif)
    elif kind == "16 bits":
        Image.fromarray(GREY.astype(np.uint16) * 257).save(folder / "a.png")
    elif kind == "palette":
        palette = Image.fromarray(GREY, "P")
        palette.putpalette([value for value in range(256) for _ in range(3)])
        palette.save(folder / "a.png")
    else:
        Image.fromarray(GREY).save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize("kind", ["plain", "rotated", "16 bits", "palette"])
def test_all_readers_agree(tmp_path, kind):
    """`evaluate --samples` and the conditional commands left photographs lying; several refused 16 bits."""
    path = write(tmp_path / "test", kind)
    image_format = ImageFormat((6, 4), 1, convert=True, center_crop=True)
    found = {"given": read_file(path, 1, (6, 4), False, True)}
    found["split"] = SplitImages(str(tmp_path), "test", (6, 4), 1, resize=True)[0]
    folder = FolderImages(tmp_path / "test")[0]
    found["folder"] = folder[:1]
    rows = open_rows(str(tmp_path / "test"))
    found["suggest"] = pixels(rows, choose_format(survey(rows), (6, 4), 1, pad=False, resize=False), [0])[0]
    dataset = load_images(train_data_dir=str(tmp_path / "test"))
    for limit, name in ((2.0, "memory"), (0.0, "on the fly")):
        source = open_source(dataset, image_format, memory_limit=limit, show_progress=False)
        found[name] = next(iterate_batches(source, batch_size=1))[0]
    stream = load_images(train_data_dir=str(tmp_path / "test"), streaming=True)
    source = open_source(stream, image_format, show_progress=False)
    found["stream"] = next(iterate_batches(source, batch_size=1))[0]
    for name, image in found.items():
        np.testing.assert_array_equal(image[0], GREY, err_msg=name)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_picture_of_a_data_set_is_named(tmp_path, streaming):
    """Among 50,000 images the user could not find it."""
    for i in range(3):
        Image.fromarray(GREY).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    dataset = load_images(train_data_dir=str(tmp_path), streaming=streaming)
    for limit in (2.0, 0.0):
        with pytest.raises(ValueError, match=r"of the data set, .*1\.png is a damaged picture"):
            source = open_source(dataset, ImageFormat((6, 4), 1), memory_limit=limit, show_progress=False)
            next(iterate_batches(source, batch_size=3))


def test_an_empty_row_is_named(tmp_path):
    """An AttributeError before."""
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(GREY), None]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    dataset = load_images(train_data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="image 1 of the data set is missing: the row is empty"):
        open_source(dataset, ImageFormat((6, 4), 1), show_progress=False)
    with pytest.raises(ValueError, match="image 1 of the data set is missing"):
        survey(open_rows(str(tmp_path)))


def test_hidden_colours_do_not_appear(tmp_path):
    """What is transparent is black, given as a file, by a data set, and by training."""
    (tmp_path / "test").mkdir()
    path = tmp_path / "test" / "a.png"
    Image.new("RGBA", (4, 6), (200, 30, 60, 0)).save(path)
    black = torch.zeros(3, 6, 4, dtype=torch.uint8)
    assert torch.equal(read_file(path, 3, (6, 4), False, True), black)
    assert torch.equal(SplitImages(str(tmp_path), "test", (6, 4), 3, resize=True)[0], black)
    dataset = load_images(train_data_dir=str(tmp_path / "test"))
    source = open_source(dataset, ImageFormat((6, 4), 3, convert=True), show_progress=False)
    assert torch.equal(next(iterate_batches(source, batch_size=1))[0], black)
    with pytest.raises(ValueError, match=r"a\.png has mode 'RGBA'"):
        read_file(path, 3, None, False, False)


def test_advice_is_not_what_was_already_done(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="or pass --resize"):
        read_file(tmp_path / "a.png", 1 + 4, None, False, False)
    with pytest.raises(ValueError, match="pictures have 1") as caught:
        read_file(tmp_path / "a.png", 1 + 4, (6, 4), False, True)
    assert "--resize" not in str(caught.value)
