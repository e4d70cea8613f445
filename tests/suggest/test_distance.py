import itertools

import numpy as np
import pytest
import torch

from diffusers_sde.suggest.distance import LargestDistance, largest_distance, widen


def random_images(n, shape=(3, 5, 4), seed=0, low=0, high=256):
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, (n, *shape), dtype=np.uint8))


def brute_force(images):
    """Largest squared distance in Python integers, and the pairs that have it."""
    rows = [[int(value) for value in image.flatten()] for image in images]
    squared = {
        (i, j): sum((a - b) ** 2 for a, b in zip(rows[i], rows[j]))
        for i, j in itertools.combinations(range(len(rows)), 2)
    }
    top = max(squared.values())
    return top, {pair for pair, value in squared.items() if value == top}


def test_corners_of_a_cube():
    corners = torch.tensor(list(itertools.product((0, 255), repeat=8)), dtype=torch.uint8)
    found = largest_distance(corners)
    assert found.distance == (255**2 * 8) ** 0.5 and found.exact
    assert (corners[found.pair[0]].int() + corners[found.pair[1]].int() == 255).all()


@pytest.mark.parametrize("seed", range(5))
def test_any_set_against_brute_force_in_integers(seed):
    """Random images lie almost on a sphere about their mean: no bound helps, and all pairs are compared."""
    images = random_images(60, seed=seed)
    found, (top, pairs) = largest_distance(images), brute_force(images)
    assert found.distance == top**0.5 and found.exact
    assert tuple(sorted(found.pair)) in pairs


@pytest.mark.parametrize("seed", range(8))
def test_where_sweeps_end_in_a_smaller_distance(seed):
    """A triangle whose long side no sweep from the outermost image sees, in a cloud that hides nothing."""
    x = np.random.default_rng(seed).integers(118, 138, (1500, 12)).astype(np.uint8)
    x[100] = 128
    x[100, :4] = 255  # 254 from the centre: the start of the sweeps
    x[700, :], x[700, 4:8] = 128, 250
    x[1400, :], x[1400, 4:8] = 128, 0
    images = torch.from_numpy(x)
    exact = torch.cdist(images.double(), images.double(), compute_mode="donot_use_mm_for_euclid_dist").max()
    found = largest_distance(images)
    assert found.exact and abs(found.distance - float(exact)) < 1e-9
    assert sorted(found.pair) == [700, 1400]


def test_most_pairs_of_clustered_images_are_not_compared():
    images = random_images(4000, (30,), low=100, high=110)
    images[1234], images[3210] = 0, 255
    found = largest_distance(images)
    assert found.distance == (255**2 * 30) ** 0.5 and sorted(found.pair) == [1234, 3210]
    assert found.num_pairs <= 512 * 511 // 2 < 4000 * 3999 // 2 / 60


def test_far_more_numbers_than_float32_holds():
    """Two images of a million numbers that differ by one level in one: float32 products lose it."""
    images = torch.full((3, 1, 1000, 1000), 255, dtype=torch.uint8)
    images[2, 0, 0, 0] = 254
    assert largest_distance(images).distance == 1.0


def test_a_search_that_is_cut_short_tells_both_bounds():
    images = random_images(1100, (20,))
    full, cut = largest_distance(images), largest_distance(images, max_pairs=200_000)
    assert full.exact and not cut.exact
    assert cut.distance <= full.distance <= cut.upper_bound < float("inf")
    assert cut.num_pairs <= 200_000 < full.num_pairs


def test_sweeps_over_the_whole_widen_a_part():
    images = random_images(1300, (30,), low=100, high=110)
    images[1], images[1299], images[600] = 50, 255, 90
    part = largest_distance(images[:600])
    assert part.pair[0] == 1
    found = widen(part, lambda numbers: images[list(numbers)], len(images))
    assert found.distance == (205**2 * 30) ** 0.5 and sorted(found.pair) == [1, 1299]
    assert not found.exact and found.upper_bound == float("inf")


@pytest.mark.parametrize("outside", [60, 190])
def test_one_sweep_looks_from_both_ends(outside):
    images = torch.full((700, 30), 120, dtype=torch.uint8)
    images[1], images[2], images[650] = 100, 150, outside
    found = widen(largest_distance(images[:600]), lambda numbers: images[list(numbers)], len(images), max_sweeps=1)
    assert found.distance == (90**2 * 30) ** 0.5 and 650 in found.pair


def test_sweeps_never_lose_what_was_found():
    images = random_images(50, (30,))
    found = widen(LargestDistance(1e6, 1e6, (3, 7), 1), lambda numbers: images[list(numbers)], len(images))
    assert (found.distance, found.pair) == (1e6, (3, 7))


def test_images_that_are_all_alike():
    found = largest_distance(torch.full((5, 1, 4, 4), 7, dtype=torch.uint8))
    assert found.distance == 0 and found.exact


@pytest.mark.parametrize("images", [torch.zeros(1, 3, dtype=torch.uint8), torch.zeros(4, 3)])
def test_what_has_no_distance_is_refused(images):
    with pytest.raises(ValueError, match=r"at least two images of torch.uint8"):
        largest_distance(images)
