"""Features are kept under what they are of, and metrics have known values on plain features."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_sde.evaluation.extractors import Features
from diffusers_sde.evaluation.parts import Process, QualityPart, Reference
from diffusers_sde.evaluation.quality import (
    CachedExtractor,
    FolderImages,
    blocks,
    check_reference,
    extract_share,
    identity,
    measure_quality,
)
from diffusers_sde.evaluation.statistics import FeatureStatistics, compute_statistics

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (25, 1, 2, 3), dtype=np.uint8))


class Pixels:
    """Features and logits are the pixels themselves."""

    name, num_features = "pixels", 6

    def __init__(self, fingerprint="0" * 64, logits=True):
        self.fingerprint, self.logits, self.sizes = fingerprint, logits, []

    def __call__(self, images):
        self.sizes.append(len(images))
        features = images.flatten(1).float()
        return Features(features, features if self.logits else None)


def statistics(images, extractor=None):
    return compute_statistics(blocks(images, 10), extractor or Pixels())


def test_features_are_computed_once(tmp_path):
    extractor = Pixels()
    cached = CachedExtractor(extractor, tmp_path, batch_size=4)
    first = [cached(block) for block in blocks(IMAGES, 10)]
    assert extractor.sizes == [4, 4, 2, 4, 4, 2, 4, 1]
    again = CachedExtractor(extractor, tmp_path, batch_size=3)
    for block, expected in zip(blocks(IMAGES, 10), first, strict=True):
        found = again(block)
        assert torch.equal(found.features, expected.features) and torch.equal(found.logits, expected.logits)
    assert len(extractor.sizes) == 8
    assert torch.equal(torch.cat([f.features for f in first]), IMAGES.flatten(1).float())


def test_features_are_never_those_of_others(tmp_path):
    one = CachedExtractor(Pixels(), tmp_path)
    one(IMAGES)
    other_images, other_extractor = IMAGES.clone(), CachedExtractor(Pixels("1" * 64), tmp_path)
    other_images[3, 0, 0, 0] ^= 1
    assert one.knows(IMAGES) and not one.knows(other_images) and not other_extractor.knows(IMAGES)
    assert not one.knows(IMAGES.reshape(25, 1, 3, 2))
    (file,) = one.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-7] + b"0000000")
    assert not one.knows(IMAGES)
    assert torch.equal(one(IMAGES).features, IMAGES.flatten(1).float())


def test_an_extractor_without_logits(tmp_path):
    cached = CachedExtractor(Pixels(logits=False), tmp_path)
    assert cached(IMAGES).logits is None and cached(IMAGES).logits is None
    with pytest.raises(ValueError, match="does not classify, so there is no Inception score"):
        measure_quality(["is"], statistics(IMAGES, cached), None)


def test_processes_share_the_blocks(tmp_path):
    extractors = [Pixels() for _ in range(2)]
    cached = [CachedExtractor(extractor, tmp_path) for extractor in extractors]
    for index in range(2):
        extract_share(IMAGES, cached[index], 10, index, 2)
    assert [extractor.sizes for extractor in extractors] == [[10, 5], [10]]
    assert all(cached[0].knows(block) for block in blocks(IMAGES, 10))


def test_metrics_of_a_shifted_set():
    """A shift by 10 levels of 6 pixels moves the mean by 600 in squares, and nothing else."""
    results = measure_quality(["fid", "precision_recall"], statistics(IMAGES + 10), statistics(IMAGES))
    assert results["fid"]["value"] == pytest.approx(600, rel=1e-9)
    same = measure_quality(["fid", "is", "kid", "precision_recall"], statistics(IMAGES), statistics(IMAGES), seed=3)
    assert same["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert same["precision"] == same["recall"] == {"value": 1.0, "neighborhood": 3}
    assert same["kid"]["subset_size"] == 25 and same["inception_score"]["num_splits"] == 1
    assert list(same) == ["fid", "inception_score", "kid", "precision", "recall"]


def test_precision_and_recall_are_not_swapped():
    """Samples crowd together within the data: all look real, and few of the real are covered."""
    middle = (IMAGES.float() / 20).byte() + 90
    results = measure_quality(["precision_recall"], statistics(middle), statistics(IMAGES))
    assert results["precision"]["value"] > 0.9 and results["recall"]["value"] < 0.2


@pytest.mark.parametrize(
    "reference, metrics, message",
    [
        (statistics(IMAGES, Pixels("1" * 64)), ["fid"], "Compare what one extractor says of both"),
        (FeatureStatistics(np.zeros(5), np.eye(5)), ["fid"], "one has 5 features"),
        (FeatureStatistics(np.zeros(6), np.eye(6)), ["fid", "kid"], "hold no features, only mean and covariance"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_before_work(reference, metrics, message):
    with pytest.raises(ValueError, match=message):
        check_reference(metrics, reference, Pixels())
    check_reference(["fid"], FeatureStatistics(np.zeros(6), np.eye(6)), Pixels())


def test_a_reference_is_known_by_its_images(tmp_path):
    """However they were cut into batches; files of others by what they hold."""
    assert identity(statistics(IMAGES)) == identity(compute_statistics([IMAGES], Pixels()))
    assert identity(statistics(IMAGES)) != identity(statistics(IMAGES + 1))
    own, other = (FeatureStatistics(np.full(6, value), np.eye(6)) for value in (0.0, 1.0))
    assert identity(own) == identity(FeatureStatistics(np.zeros(6), np.eye(6))) != identity(other)


def part(folder, images, index=0, count=1, extractor=None):
    cached = CachedExtractor(extractor or Pixels(), folder)
    reference = Reference({"data": "x"}, images=IMAGES, path=folder / "reference.npz")
    process = Process(index, count)
    return QualityPart(["fid"], images, {"folder": "y"}, None, cached, reference, 10, 0, process)


def test_whoever_comes_last_puts_it_together(tmp_path):
    first, second = (part(tmp_path, IMAGES + 10, index, 2) for index in range(2))
    second.work()
    assert second.collect() is None
    first.work()
    finding = first.collect()
    assert finding.metrics["fid"]["value"] == pytest.approx(600, rel=1e-9)
    assert finding.provenance["extractor"] == {"name": "pixels", "sha256": "0" * 64, "num_features": 6}
    assert finding.provenance["reference"]["data"] == "x" and finding.provenance["reference"]["num_images"] == 25
    assert finding.provenance["samples"]["num_images"] == 25
    assert any("biased upwards" in note for note in finding.notes)
    extractor = Pixels()
    again = part(tmp_path, IMAGES + 10, extractor=extractor)
    again.work()
    assert again.collect() == finding and extractor.sizes == []


def test_pictures_of_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(["b.png", "a.png", "deep/c.png"]):
        Image.fromarray(IMAGES[i, 0].numpy()).save(tmp_path / name)
    images = FolderImages(tmp_path)
    assert [torch.equal(images[i], IMAGES[k]) for i, k in enumerate([1, 0, 2])] == 3 * [True]
    Image.new("RGB", (3, 2)).save(tmp_path / "d.png")
    with pytest.raises(ValueError, match="all must be alike, grey"):
        FolderImages(tmp_path)[2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        FolderImages(tmp_path / "empty")
    with pytest.raises(OSError, match="nowhere"):
        FolderImages(tmp_path / "nowhere")
