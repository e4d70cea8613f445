"""`diffusers-sde stats`: what is read, what is written, messages."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_sde.evaluation.extractors import load_extractor
from diffusers_sde.evaluation.splits import SplitImages
from diffusers_sde.evaluation.statistics import FeatureStatistics, compute_statistics
from diffusers_sde_cli.stats import stats

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (7, 32, 32), dtype=np.uint8)

EXTRACTORS = """
from diffusers_sde.evaluation.extractors import Features

class Mean:
    name, fingerprint, num_features = "mean", "0" * 64, 3
    def __init__(self, device): self.device = device
    def __call__(self, images):
        return Features(images.expand(-1, 3, -1, -1).float().mean(dim=(2, 3)).to(self.device))
"""


def write(path, *arrays):
    features = Features({"picture": ImageFeature()})
    Dataset.from_dict({"picture": [Image.fromarray(array) for array in arrays]}, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of parquet files: grey 32 x 32; 28 x 28 of it; colour 6 x 10 with one image of another size."""
    folder = tmp_path_factory.mktemp("data")
    colour = RANDOM.integers(0, 256, (2, 6, 10, 3), dtype=np.uint8)
    write(folder / "train.parquet", *GREY)
    write(folder / "test.parquet", *GREY[:, 2:30, 2:30])
    write(folder / "colour.parquet", *colour)
    write(folder / "mixed.parquet", *colour, colour[0, :4])
    write(folder / "empty.parquet")
    (folder / "mean_extractor.py").write_text(EXTRACTORS)
    return folder


@pytest.fixture(autouse=True)
def importable(data, monkeypatch):
    monkeypatch.syspath_prepend(data)


def run(*args, expect=0):
    result = CliRunner().invoke(stats, [*map(str, args)])
    assert result.exit_code == expect, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.output


def test_statistics_are_of_all_images_as_they_are(data, tmp_path):
    output = run(data, "--extractor", "classifier", "--output", tmp_path / "a.npz", "--batch-size", 3)
    written = FeatureStatistics.load(tmp_path / "a.npz")
    extractor = load_extractor("classifier", "cpu")
    by_hand = compute_statistics([torch.from_numpy(GREY)[:, None]], extractor)
    assert np.allclose(written.features, by_hand.features, atol=1e-5) and written.count == 7
    assert np.allclose(written.covariance, by_hand.covariance, atol=1e-4)
    assert np.allclose(written.logits, by_hand.logits, atol=1e-4)
    said = written.provenance
    assert said["images_sha256"] == by_hand.provenance["images_sha256"]
    assert said["extractor_sha256"] == extractor.fingerprint
    chosen = {"data": str(data), "split": "train", "shape": [1, 32, 32], "pad": False, "resize": False}
    assert {name: said[name] for name in chosen} == chosen
    assert f"7 images of {data}, split train, 1 x 32 x 32" in output
    assert said["images_sha256"] in output and extractor.fingerprint in output and "biased upwards" in output
    assert f"statistics: {tmp_path / 'a.npz'}" in output


def test_sizes_channels_padding_and_resizing(data, tmp_path):
    def features(*args):
        run(data, "--extractor", "mean_extractor:Mean", "--output", tmp_path / "a.npz", "--overwrite", *args)
        read = FeatureStatistics.load(tmp_path / "a.npz")
        assert read.provenance["split"] == (args[1] if "--split" in args else "train")
        return read.features, read.provenance["shape"]

    small, shape = features("--split", "test")
    assert np.allclose(small[:, 0], GREY[:, 2:30, 2:30].mean(axis=(1, 2)), rtol=1e-6) and shape == [1, 28, 28]
    padded, shape = features("--split", "test", "--size", 32, "--pad", "--num-images", 5)
    assert np.allclose(padded, small[:5] * 28**2 / 32**2, rtol=1e-5) and shape == [1, 32, 32] and len(padded) == 5
    _, shape = features("--split", "colour", "--channels", 1, "--resize", "--size", "4x8")
    assert shape == [1, 4, 8]
    grey, shape = features("--split", "train", "--channels", 3)
    assert shape == [3, 32, 32] and np.array_equal(grey[:, 0], grey[:, 2])


def test_a_file_is_kept_unless_it_may_be_replaced(data, tmp_path):
    common = (data, "--extractor", "mean_extractor:Mean", "--output", tmp_path / "a.npz")
    run(*common)
    before = (tmp_path / "a.npz").read_bytes()
    assert "a.npz exists. Choose another --output, or pass --overwrite" in run(*common, "--num-images", 3, expect=1)
    assert (tmp_path / "a.npz").read_bytes() == before
    run(*common, "--num-images", 3, "--overwrite")
    assert FeatureStatistics.load(tmp_path / "a.npz").count == 3


@pytest.mark.parametrize(
    "args, code, message",
    [
        (("--extractor", "vgg"), 1, "there is no extractor 'vgg'; allowed are inception, inception:PATH"),
        (("--split", "test", "--extractor", "classifier"), 1, "(1, 28, 28) were given; the classifier takes (1, 32,"),
        (("--split", "mixed"), 1, "image 2 has 4 x 10 pixels, the first image has 6 x 10. Pad small images"),
        (("--split", "mixed", "--size", "6x10"), 1, "image 2 has 4 x 10 pixels, the network takes 6 x 10."),
        (("--split", "empty"), 1, "split 'empty' of"),
        (("--split", "none"), 1, "no parquet file of split 'none'"),
        (("--split", "colour", "--channels", 1), 1, "3 channels (mode 'RGB'), the network takes 1"),
        (("--num-images", 8), 1, "--num-images is 8; split 'train' of"),
        (("--output", "a.txt"), 1, "--output is a.txt; statistics are npz files, a.npz for instance"),
        (("--size", "32x"), 2, "'32x' is neither a number of pixels, like 32, nor height x width, like 32x48"),
        (("--size", "0"), 2, "'0' is neither a number of pixels"),
        (("--size", "1x2x3"), 2, "'1x2x3' is neither a number of pixels"),
    ],
)
def test_messages(data, tmp_path, args, code, message):
    common = (data, "--extractor", "mean_extractor:Mean", "--output", tmp_path / "a.npz")
    assert message in " ".join(run(*common, *args, expect=code).split())
    assert not (tmp_path / "a.npz").exists()


def test_a_split_takes_size_and_channels_from_its_first_image(data):
    assert tuple(SplitImages(str(data), "colour")[1].shape) == (3, 6, 10)
    assert tuple(SplitImages(str(data), "colour", (8, 12), pad=True)[1].shape) == (3, 8, 12)
    assert torch.equal(SplitImages(str(data), "train")[3][0], torch.from_numpy(GREY[3]))
