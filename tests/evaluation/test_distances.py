"""Distances of feature sets against closed forms, explicit sums and torch-fidelity."""

import importlib.util
import itertools
import math
import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusers_sde.evaluation import distances
from diffusers_sde.evaluation.distances import frechet_distance, inception_score, kernel_distance, precision_recall


def import_torch_fidelity():
    """`torch_fidelity`, also where torchvision is missing: it imports that, but what is compared here needs none."""
    names = ["torchvision"] + [f"torchvision.{name}" for name in ("datasets", "transforms", "transforms.functional")]
    missing = importlib.util.find_spec("torchvision") is None
    if missing:
        sys.modules.update({name: types.ModuleType(name) for name in names})
        for name in names[1:]:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, sys.modules[name])
        for name in ("CIFAR10", "CIFAR100", "STL10"):
            setattr(sys.modules["torchvision.datasets"], name, type(name, (), {}))
    try:
        return pytest.importorskip("torch_fidelity", exc_type=ImportError)
    finally:
        if missing:  # others must not find it
            for name in names:
                del sys.modules[name]


@pytest.fixture(scope="module")
def torch_fidelity():
    return import_torch_fidelity()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def orthogonal(features):
    return np.linalg.qr(normal(features, features, seed=99))[0]


def moments(x):
    return x.mean(axis=0), np.cov(x, rowvar=False)


# ---------------------------------------------------------------------------------------------------------------------
# Frechet distance
# ---------------------------------------------------------------------------------------------------------------------


def test_frechet_distance_in_one_dimension_and_of_commuting_covariances():
    """(m_a - m_b)^2 + (s_a - s_b)^2, per axis; axes may be rotated."""
    assert frechet_distance([1.0], [[4.0]], [-2.0], [[0.25]]) == pytest.approx(9 + 1.5**2, rel=1e-14)
    stds_a, stds_b, shift = np.array([0.5, 2.0]), np.array([3.0, 0.1]), np.array([1.0, -2.0])
    axes = orthogonal(2)
    distance = frechet_distance(shift, (axes * stds_a**2) @ axes.T, 0 * shift, (axes * stds_b**2) @ axes.T)
    assert distance == pytest.approx(5 + ((stds_a - stds_b) ** 2).sum(), rel=1e-13)


@pytest.mark.parametrize("features", [2, 7])
def test_frechet_distance_of_covariances_that_do_not_commute(features):
    (mean_a, a), (mean_b, b) = (
        moments(normal(30, features, seed=s) @ normal(features, features, seed=s)) for s in (1, 2)
    )
    b = b + np.diag(np.arange(features))
    assert np.abs(a @ b - b @ a).max() > 0.1
    root = scipy.linalg.sqrtm(a @ b).real
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-11)


def test_frechet_distance_of_a_plane_and_a_line():
    """C_b = v v^T has one singular value with C_a: tr (C_a C_b)^(1/2) = sqrt(v^T C_a v)."""
    a, v = np.diag([4.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0])
    expected = 5 + v @ v - 2 * math.sqrt(v @ a @ v)
    assert frechet_distance(np.zeros(3), a, np.zeros(3), np.outer(v, v)) == pytest.approx(expected, rel=1e-7)
    disjoint = frechet_distance(np.zeros(3), a, np.zeros(3), np.diag([0.0, 0.0, 9.0]))
    assert disjoint == pytest.approx(14, rel=1e-12)


def test_frechet_distance_of_fewer_images_than_features():
    """Factors by hand: centred features X / sqrt(n - 1), so the overlap is the nuclear norm of X_a X_b^T."""
    a, b = normal(12, 64, seed=1), 0.3 + 1.5 * normal(20, 64, seed=2)
    centred = [(x - x.mean(axis=0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * overlap
    assert frechet_distance(*moments(a), *moments(b)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("count", [10, 200])
def test_frechet_distance_is_zero_for_equals_symmetric_and_turns_with_its_axes(count):
    a, b = moments(normal(count, 32, seed=1)), moments(1 + 2 * normal(count, 32, seed=2))
    assert abs(frechet_distance(*a, *a)) < 1e-12 * np.trace(a[1])
    distance = frechet_distance(*a, *b)
    assert distance > 30
    assert frechet_distance(*b, *a) == pytest.approx(distance, rel=1e-8)
    axes = orthogonal(32)
    turned = [(3 * axes @ mean + 1, 9 * axes @ covariance @ axes.T) for mean, covariance in (a, b)]
    assert frechet_distance(*turned[0], *turned[1]) == pytest.approx(9 * distance, rel=1e-8)


def test_frechet_distance_as_torch_fidelity(torch_fidelity):
    a, b = moments(normal(300, 20, seed=1) ** 2), moments(normal(200, 20, seed=2) + 0.5)
    theirs = torch_fidelity.metric_fid.fid_statistics_to_metric(
        *({"mu": mean, "sigma": covariance} for mean, covariance in (a, b)), False
    )
    assert frechet_distance(*a, *b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-11)


# ---------------------------------------------------------------------------------------------------------------------
# Kernel distance
# ---------------------------------------------------------------------------------------------------------------------


def test_kernel_distance_by_explicit_sums():
    """All points in one subset: no random number takes part."""
    a, b = normal(5, 3, seed=1), normal(5, 3, seed=2) + 1

    def k(u, v):
        return (sum(x * y for x, y in zip(u, v)) / 3 + 1) ** 3

    within = sum(k(x[i], x[j]) for x in (a, b) for i, j in itertools.permutations(range(5), 2)) / 20
    across = sum(k(u, v) for u in a for v in b) / 25
    mean, deviation = kernel_distance(a, b, num_subsets=2, subset_size=5)
    assert mean == pytest.approx(within - 2 * across, rel=1e-12)
    assert deviation < 1e-12


def test_kernel_distance_of_the_linear_kernel():
    """k(u, v) = u.v: |m_a - m_b|^2 - (tr S_a + tr S_b) / n, which undoes the bias of the means."""
    a, b = normal(40, 6, seed=1), 2 * normal(40, 6, seed=2) + 1
    (mean_a, s_a), (mean_b, s_b) = moments(a), moments(b)
    expected = ((mean_a - mean_b) ** 2).sum() - np.trace(s_a + s_b) / 40
    linear = {"subset_size": 40, "num_subsets": 1, "degree": 1, "gamma": 1.0, "coef0": 0.0}
    assert kernel_distance(a, b, **linear)[0] == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_expects_the_differences_of_moments():
    """In one dimension (u v + 1)^3 gives sum_j C(3, j) (E a^j - E b^j)^2; subsets average to it."""
    a, b = normal(20_000, 1, seed=1), 0.6 + 0.8 * normal(20_000, 1, seed=2)
    exact_a, exact_b = (1, 0, 1, 0), (1, 0.6, 0.36 + 0.64, 0.6**3 + 3 * 0.6 * 0.64)
    expected = sum(math.comb(3, j) * (exact_a[j] - exact_b[j]) ** 2 for j in range(4))
    mean, deviation = kernel_distance(a, b, num_subsets=100, subset_size=200)
    assert abs(mean - expected) < 4 * deviation / math.sqrt(100)
    assert deviation / math.sqrt(100) < 0.1 * expected
    null, spread = kernel_distance(a[:10_000], a[10_000:], num_subsets=100, subset_size=200)
    assert abs(null) < 4 * spread / math.sqrt(100) < 0.1 * expected


@pytest.mark.parametrize("options", [{}, {"degree": 2, "gamma": 0.3, "coef0": 0.5}])
def test_kernel_distance_as_torch_fidelity(torch_fidelity, options):
    a, b = (torch.from_numpy(normal(n, 16, seed=n)) for n in (150, 90))
    ours = kernel_distance(a, b, num_subsets=7, subset_size=50, seed=3, **options)
    theirs = torch_fidelity.metric_kid.kid_features_to_metric(
        a,
        b,
        kid_subsets=7,
        kid_subset_size=50,
        rng_seed=3,
        verbose=False,
        **{f"kid_kernel_poly_{name}": value for name, value in options.items()},
    )
    assert ours == pytest.approx(tuple(theirs.values()), rel=1e-9)
    assert kernel_distance(a, b, num_subsets=7, subset_size=50, seed=4, **options) != ours


# ---------------------------------------------------------------------------------------------------------------------
# Inception score
# ---------------------------------------------------------------------------------------------------------------------


def test_inception_score_of_known_posteriors():
    assert inception_score(np.ones((20, 4))) == pytest.approx((1, 0), abs=1e-12)
    certain = 1000 * np.eye(5)[np.arange(20) % 5]  # every other probability underflows
    assert inception_score(certain, num_splits=1) == pytest.approx((5, 0), rel=1e-12)
    absent = np.pad(certain, ((0, 0), (0, 2)), constant_values=-1000)  # classes that no image has
    assert inception_score(absent, num_splits=1) == pytest.approx((5, 0), rel=1e-12)
    collapsed = 1000 * np.eye(5)[np.zeros(20, int)]
    assert inception_score(collapsed) == pytest.approx((1, 0), abs=1e-12)


def test_inception_score_between():
    """Half the images say (q, 1 - q), half the reverse: log IS = log 2 - H(q), whatever is added to logits."""
    q = 0.9
    p = np.array([[q, 1 - q], [1 - q, q]] * 8)
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    score, _ = inception_score(np.log(p) + normal(16, 1), num_splits=1)
    assert score == pytest.approx(2 * math.exp(-entropy), rel=1e-12)


@pytest.mark.parametrize("count, num_splits", [(100, 10), (57, 4)])
def test_inception_score_as_torch_fidelity(torch_fidelity, count, num_splits):
    logits = torch.from_numpy(3 * normal(count, 6)).float()
    theirs = torch_fidelity.metric_isc.isc_features_to_metric(logits, num_splits, True, 5)
    assert inception_score(logits, num_splits=num_splits, seed=5) == pytest.approx(tuple(theirs.values()), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Precision and recall
# ---------------------------------------------------------------------------------------------------------------------


def column(*values):
    return np.array(values, dtype=float)[:, None]


def test_precision_and_recall_of_constructed_sets():
    """Real points 0..9 with radius 1 cover [-1, 10]. The generated ones have radii 6, 6, 0.5, 0.5."""
    real, fake = column(*range(10)), column(-1, 5, 20, 20.5)
    assert precision_recall(real, fake, neighborhood=1) == (0.5, 1.0)  # balls of the fake: [-7, 11], [19.5, 21]
    assert precision_recall(fake, real, neighborhood=1) == (1.0, 0.5)
    assert precision_recall(real, column(-1.01, 5, 20, 20.5), neighborhood=1)[0] == 0.25
    # The third neighbour: 0 reaches 3 and 1 reaches 2, so that [-3, 12] is covered, but for k = 2 [-2, 11].
    assert precision_recall(real, column(-3, -2.5, 4, 5), neighborhood=3)[0] == 1.0
    assert precision_recall(real, column(-3, -2.5, 4, 5), neighborhood=2)[0] == 0.5


def test_precision_without_recall_recall_without_precision_and_neither():
    everywhere, cluster = 10 * normal(200, 2, seed=1), 0.1 * normal(200, 2, seed=2)
    precision, recall = precision_recall(everywhere, cluster)
    assert precision == 1 and recall < 0.05
    assert precision_recall(everywhere, everywhere + 1000) == (0, 0)
    assert precision_recall(everywhere, everywhere[::-1].copy()) == (1, 1)


@pytest.mark.parametrize("features, shift", [(3, 1.5), (64, 0.1)])
def test_precision_and_recall_as_torch_fidelity_and_in_blocks(torch_fidelity, monkeypatch, features, shift):
    """64 features go by matrix products in `torch.cdist`."""
    real, fake = (torch.from_numpy(normal(n, features, seed=n)) for n in (120, 75))
    fake = fake + shift
    theirs = torch_fidelity.metric_prc.prc_features_to_metric(
        fake, real, prc_neighborhood=4, verbose=False, save_cpu_ram=True
    )
    ours = precision_recall(real, fake, neighborhood=4)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-7)
    assert all(0.1 < share < 0.9 for share in ours) and ours[0] != ours[1]
    monkeypatch.setattr(distances, "_BLOCK", 1000)
    sizes = [len(block) for block in distances._distances(fake.double(), real.double())]
    assert sizes == [8] * 9 + [3]
    assert precision_recall(real, fake, neighborhood=4) == ours


GOOD = normal(6, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: frechet_distance(*moments(GOOD), *moments(normal(6, 4))), r"\(3,\), \(3, 3\), \(4,\), \(4, 4\)"),
        (lambda: frechet_distance(GOOD[0], GOOD, *moments(GOOD)), r"\(3,\), \(6, 3\)"),
        (lambda: frechet_distance(GOOD[0] * np.nan, np.eye(3), *moments(GOOD)), "finite numbers only"),
        (lambda: kernel_distance(GOOD, GOOD), "subset_size 1000; allowed are at least 1, and 2 to 6"),
        (lambda: kernel_distance(GOOD, GOOD[:5], subset_size=6), "2 to 5, the size of the smaller set"),
        (lambda: kernel_distance(GOOD, normal(6, 4), subset_size=2), "has 3 features per image, the other 4"),
        (lambda: kernel_distance(GOOD[0], GOOD), r"features of shape \(3,\) was given; it must have 2 dimensions"),
        (lambda: inception_score(GOOD), "num_splits is 10; allowed are 1 to 6"),
        (lambda: precision_recall(GOOD, GOOD[:3]), "neighborhood is 3; allowed are 1 to 2"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
