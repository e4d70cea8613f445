"""Statistics of features: exact moments in any batches, files of ours and of others, and the whole chain."""

import numpy as np
import pytest
import torch

from diffusers_sde.evaluation.distances import frechet_distance, inception_score, kernel_distance, precision_recall
from diffusers_sde.evaluation.extractors import Features
from diffusers_sde.evaluation.statistics import FeatureStatistics, compute_statistics
from tests.evaluation.test_distances import import_torch_fidelity

PIXELS = 3 * 8 * 8


def pictures(count=23, seed=0, top=256):
    shape = (count, 3, 8, 8)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8))


class Projection:
    """Features and logits that are linear in the pixels."""

    name, fingerprint, num_features = "projection", "f" * 64, 6

    def __init__(self, offset=0.0, scale=1.0, classifies=True):
        weight = np.random.default_rng(5).normal(size=(PIXELS, 10)) * 4 / PIXELS**0.5
        self.weight, self.offset, self.scale = torch.from_numpy(weight).float(), offset, scale
        self.classifies = classifies

    def __call__(self, images):
        output = (images.flatten(1).float() / 255 - 0.5) @ self.weight
        features = self.scale * output[:, :6] + self.offset
        return Features(features, output[:, 6:] if self.classifies else None)


def statistics(images, batch_size=5, extractor=None, **options):
    return compute_statistics(images.split(batch_size), extractor or Projection(), **options)


@pytest.mark.parametrize("offset, scale", [(0.0, 1.0), (1e4, 0.1)])
@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_mean_and_covariance_are_numpys_in_any_batches(batch_size, offset, scale):
    """Far from 0, sums of squares of the numbers themselves would lose what the deviations have."""
    extractor, images = Projection(offset, scale), pictures()
    found = statistics(images, batch_size, extractor)
    rows = torch.cat([extractor(part).features for part in images.split(batch_size)]).double().numpy()
    assert np.allclose(found.mean, rows.mean(axis=0), rtol=1e-13)
    expected = np.cov(rows, rowvar=False)
    assert np.abs(found.covariance - expected).max() < 1e-11 * np.abs(expected).max()
    assert found.mean.dtype == found.covariance.dtype == np.float64 and found.count == 23
    assert np.array_equal(found.features, rows.astype(np.float32)) and found.logits.shape == (23, 4)


def test_the_hash_is_of_the_images_in_their_order():
    images = pictures()

    def digest(x, **options):
        return statistics(x, **options).provenance["images_sha256"]

    same = digest(images)
    assert same == digest(images, batch_size=7) == digest(images, extractor=Projection(1.0))
    changed = images.clone()
    changed[-1, -1, -1, -1] ^= 1
    assert len({same, digest(changed), digest(images.flip(0)), digest(images[:-1])}) == 4
    assert digest(images.reshape(23, 3, 4, 16)) != same  # the same bytes in another shape


def test_what_is_kept_and_said():
    done = []
    small = statistics(pictures(), keep_features=False, provenance={"data": "cats"}, on_progress=done.append)
    assert small.features is None and small.logits is None and done == [5, 5, 5, 5, 3]
    assert statistics(pictures(), extractor=Projection(classifies=False)).logits is None
    said = small.provenance
    assert (said["data"], said["extractor"], said["extractor_sha256"]) == ("cats", "projection", "f" * 64)
    assert {"diffusers_sde", "torch"} <= set(said["versions"])


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_features", [True, False])
def test_files_hold_everything(tmp_path, keep_features):
    written = statistics(pictures(), keep_features=keep_features, provenance={"data": "Katzen, süß"})
    written.save(tmp_path / "new" / "a.npz")
    read = FeatureStatistics.load(tmp_path / "new" / "a.npz")
    for name in ("mean", "covariance", "features", "logits"):
        assert np.array_equal(getattr(read, name), getattr(written, name))
    assert (read.features is None) is not keep_features
    assert (read.count, read.provenance) == (23, written.provenance)
    with np.load(tmp_path / "new" / "a.npz") as file:  # as pytorch-fid and others read it
        assert np.array_equal(file["mu"], written.mean) and np.array_equal(file["sigma"], written.covariance)


def test_a_file_is_complete_or_as_it_was(tmp_path, monkeypatch):
    written = statistics(pictures())
    written.save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        written.save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_files_of_other_code_bases(tmp_path):
    """score_sde keeps `pool_3` and `logits`, TTUR and its descendants `mu` and `sigma`, at times in float32."""
    ours = statistics(pictures())
    np.savez_compressed(tmp_path / "cifar10_stats.npz", pool_3=ours.features, logits=ours.logits)
    official = FeatureStatistics.load(tmp_path / "cifar10_stats.npz")
    assert np.allclose(official.mean, ours.mean, rtol=1e-13) and np.allclose(official.covariance, ours.covariance)
    assert np.array_equal(official.features, ours.features) and np.array_equal(official.logits, ours.logits)
    assert (official.count, official.provenance) == (23, {})
    np.savez(tmp_path / "ttur.npz", mu=ours.mean.astype(np.float32), sigma=ours.covariance)
    ttur = FeatureStatistics.load(tmp_path / "ttur.npz")
    assert ttur.mean.dtype == np.float64 and np.allclose(ttur.mean, ours.mean, rtol=1e-6)
    assert ttur.count is None and ttur.features is None and ttur.bias_note() is None
    for other in (official, ttur):
        other.check_comparable(ours)


def test_files_that_are_no_statistics(tmp_path):
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.eye(2))
    np.save(tmp_path / "array.npy", np.eye(2))
    (tmp_path / "text.npz").write_text("mu")
    (tmp_path / "half.npz").write_bytes((tmp_path / "objects.npz").read_bytes()[:200])
    (tmp_path / "empty.npz").touch()
    for name in ("objects.npz", "array.npy", "text.npz", "half.npz", "empty.npz"):
        with pytest.raises(ValueError, match=rf"{name} is not an npz file of plain arrays"):
            FeatureStatistics.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", sigma=np.eye(2), x=np.eye(2))
    with pytest.raises(ValueError, match=r"other.npz holds sigma; statistics have mu and sigma, or pool_3"):
        FeatureStatistics.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        FeatureStatistics.load(tmp_path / "none.npz")


# ---------------------------------------------------------------------------------------------------------------------
# What may be compared
# ---------------------------------------------------------------------------------------------------------------------


def test_statistics_of_two_extractors_do_not_compare():
    class Other(Projection):
        name, fingerprint = "other", "0" * 64

    ours = statistics(pictures())
    ours.check_comparable(statistics(pictures(seed=1)))
    with pytest.raises(ValueError, match=r"6 features of projection \(.*ffff\), the other 6 of other \(.*0000\)"):
        ours.check_comparable(statistics(pictures(), extractor=Other()))
    with pytest.raises(ValueError, match="the other 2 of an unnamed extractor"):
        ours.check_comparable(FeatureStatistics(np.zeros(2), np.eye(2)))


def test_few_images_are_said_to_be_few():
    """Few at all, or not more than features: the covariance is singular."""
    for count, features, few in ((9_999, 10, True), (10_000, 10, False), (20_000, 20_000, True)):
        note = FeatureStatistics(np.zeros(features), np.empty((0, 0)), count).bias_note()
        assert (note is not None) is few
        assert not few or f"of {count} images with {features} features is biased upwards" in note


class Bad(Projection):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def __call__(self, images):
        return Features(self.change(super().__call__(images).features))


@pytest.mark.parametrize(
    "extractor, count, message",
    [
        (Bad(lambda x: x[:, :5]), 3, r"gave features of shape \(3, 5\) for 3 images; they must have shape \(3, 6\)"),
        (Bad(lambda x: x[:1]), 3, r"gave features of shape \(1, 6\)"),
        (Bad(lambda x: x / 0), 3, "finite numbers only"),
        (Projection(), 1, "1 images were given; a covariance needs at least 2"),
        (Projection(), 0, "0 images were given"),
    ],
)
def test_bad_extractors_and_too_few_images(extractor, count, message):
    with pytest.raises(ValueError, match=message):
        compute_statistics([pictures(count)] if count else [], extractor)


# ---------------------------------------------------------------------------------------------------------------------
# The whole chain
# ---------------------------------------------------------------------------------------------------------------------


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_all_metrics_of_images_are_torch_fidelitys():
    torch_fidelity = import_torch_fidelity()
    real, fake = pictures(150), pictures(120, seed=1, top=240)

    class TheirProjection(torch_fidelity.FeatureExtractorBase):
        """The same extractor in their form."""

        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        def forward(self, images):
            output = Projection()(images)
            named = {"features": output.features, "logits": output.logits}
            return tuple(named[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

    torch_fidelity.register_feature_extractor("projection", TheirProjection)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="projection",
        **dict.fromkeys(("isc", "fid", "kid", "prc"), True),
        **{"kid_subsets": 5, "kid_subset_size": 60, "rng_seed": 2, "batch_size": 32},
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        save_cpu_ram=True,
    )
    a, b = statistics(fake, 50), statistics(real, 7)
    fid = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5) and fid > 0.05
    kid = kernel_distance(a.features, b.features, num_subsets=5, subset_size=60, seed=2)
    names = ("kernel_inception_distance_mean", "kernel_inception_distance_std")
    assert kid == pytest.approx([theirs[name] for name in names], rel=1e-4)
    score = inception_score(a.logits, seed=2)
    assert score == pytest.approx([theirs["inception_score_mean"], theirs["inception_score_std"]], rel=1e-5)
    both = precision_recall(b.features, a.features)
    assert both == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6) and min(both) < 1
