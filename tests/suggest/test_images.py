from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_sde.suggest.images import Survey, choose_format, open_rows, pixels, propose_channels, survey


def picture(size=(8, 8), mode="L", seed=0):
    """Of random values; `size` is (height, width)."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    array = np.random.default_rng(seed).integers(0, 256, (*size, bands), dtype=np.uint8)
    return Image.fromarray(array.squeeze(-1) if bands == 1 else array)


def of(*modes, sizes=((8, 8),)):
    return Survey(Counter(sizes), Counter(modes))


@pytest.fixture(params=["parquet", "folder", "npz"])
def source(request, tmp_path):
    """Five grey images of 5 x 7 pixels in three forms, and their arrays."""
    images = [picture((5, 7), seed=seed) for seed in range(5)]
    if request.param == "parquet":
        features = datasets.Features({"photo": datasets.Image()})
        datasets.Dataset.from_dict({"photo": images}, features=features).to_parquet(tmp_path / "train.parquet")
        path = tmp_path / "train.parquet"
    elif request.param == "folder":
        path = tmp_path / "images"
        path.mkdir()
        for index, image in enumerate(images):
            image.save(path / f"{index}.png")
    else:
        path = tmp_path / "images.npz"
        np.savez(path, images=np.stack(images))
    return str(path), np.stack(images)


def test_every_form_is_read_as_training_reads_it(source):
    path, arrays = source
    rows = open_rows(path)
    found = survey(rows)
    assert found == Survey(Counter({(5, 7): 5}), Counter({"L": 5}))
    image_format = choose_format(found, None, None, pad=False, resize=False)
    assert (image_format.size, image_format.channels, image_format.pad) == ((8, 8), 1, True)
    done = []
    images = pixels(rows, image_format, [4, 1], done.append)
    assert images.dtype == torch.uint8 and images.shape == (2, 1, 8, 8) and done == [1, 1]
    assert np.array_equal(images[0, 0, 1:6, :7], arrays[4]) and np.array_equal(images[1, 0, 1:6, :7], arrays[1])
    assert images.sum() == arrays[4].sum() + arrays[1].sum()


def test_other_splits_are_found_by_their_name(tmp_path):
    features = datasets.Features({"photo": datasets.Image()})
    for split, count in (("train", 2), ("test", 3)):
        rows = datasets.Dataset.from_dict({"photo": [picture(seed=i) for i in range(count)]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    for split, count in (("train", 2), ("test", 3)):
        rows = open_rows(str(tmp_path), split)
        assert len(rows) == count and rows.column_names == ["image"]


@pytest.mark.parametrize(
    ("modes", "channels"),
    [(["L"], 1), (["LA", "L"], 2), (["RGB"], 3), (["L", "RGB"], 3), (["RGBA", "RGB"], 4), (["LA", "RGB"], 4)],
)
def test_the_fewest_channels_without_loss(modes, channels):
    assert propose_channels(of(*modes)) == channels


def test_headers_are_those_of_the_upright_pictures_in_8_bits(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.zeros((8, 4), np.uint16)).save(tmp_path / "b.png")
    found = survey(open_rows(str(tmp_path)))
    assert (dict(found.sizes), dict(found.modes)) == ({(8, 4): 2}, {"RGB": 1, "L": 1})
    Image.fromarray(np.zeros((8, 4), np.float32)).save(tmp_path / "c.tiff")
    with pytest.raises(ValueError, match=r"image 2 of the data set, .*c\.tiff has floating-point values"):
        survey(open_rows(str(tmp_path)))


def test_sizes_that_are_asked_for():
    keep = {"pad": False, "resize": False}
    assert choose_format(of("L", sizes=[(32, 32)]), None, None, **keep).size == (32, 32)
    assert not choose_format(of("L", sizes=[(32, 32)]), None, None, pad=True, resize=False).pad
    assert choose_format(of("L", sizes=[(28, 30)]), None, None, pad=False, resize=True).size == (32, 32)
    assert choose_format(of("RGB", sizes=[(5, 6), (8, 8)]), (8, 8), 1, pad=True, resize=False).convert
    assert not choose_format(of("RGB", sizes=[(9, 9)]), (8, 8), None, pad=False, resize=True).convert
    with pytest.raises(ValueError, match="the images have 2 sizes, the commonest 5 x 6"):
        choose_format(of("L", sizes=[(5, 6), (8, 8)]), None, None, **keep)
    with pytest.raises(ValueError, match="an image has 9 x 9 pixels, --size is 8 x 8"):
        choose_format(of("L", sizes=[(9, 9)]), (8, 8), None, pad=True, resize=False)
    with pytest.raises(ValueError, match="an image has 5 x 5 pixels, --size is 8 x 8"):
        choose_format(of("L", sizes=[(5, 5)]), (8, 8), None, **keep)
