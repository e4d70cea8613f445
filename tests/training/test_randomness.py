import itertools

import pytest
import torch

from diffusers_sde.training import (
    ImagesInMemory,
    PositionNoise,
    Purpose,
    ShuffledOrder,
    derive_seed,
    iterate_batches,
)
from diffusers_sde.training.randomness import crop_fractions

CPU = torch.device("cpu")


def test_seeds_of_nearby_keys_differ():
    seeds = {derive_seed(*keys) for keys in itertools.product(range(8), repeat=3)}
    assert len(seeds) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)


def test_every_epoch_is_another_permutation():
    order = ShuffledOrder(20, seed=1)
    epochs = [order.indices(20 * epoch, 20).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert ShuffledOrder(20, seed=2).indices(0, 20).tolist() != epochs[0]


def test_any_piece_of_the_order_is_a_slice_of_the_whole():
    whole = ShuffledOrder(7, seed=3).indices(0, 70)
    for start, count in [(0, 7), (5, 4), (6, 30), (69, 1)]:
        torch.testing.assert_close(ShuffledOrder(7, seed=3).indices(start, count), whole[start : start + count])


def batches(count, **options):
    source = ImagesInMemory(torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1))
    return [batch.flatten().tolist() for batch in itertools.islice(iterate_batches(source, **options), count)]


def test_batches_go_on_where_a_run_stopped_even_within_an_epoch():
    whole = batches(9, batch_size=4)
    assert all(len(batch) == 4 for batch in whole)
    assert batches(5, batch_size=4, first_micro_step=4) == whole[4:]


def test_processes_share_the_batches_of_one():
    one = batches(4, batch_size=6)
    parts = [batches(4, batch_size=3, process_index=r, num_processes=2) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == one


DRAWS = {
    "uniform": lambda noise: noise.uniform(Purpose.TIME),
    "normal": lambda noise: noise.normal(Purpose.NOISE, (1, 2, 3)),
    "signs": lambda noise: noise.signs(Purpose.PROBE, (5,)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize(("start", "count"), [(0, 16), (3, 4), (7, 2), (8, 8), (13, 27), (39, 1)])
def test_numbers_depend_on_the_position_alone(draw, start, count):
    whole = draw(PositionNoise(5, 0, 40, CPU))
    assert torch.equal(draw(PositionNoise(5, start, count, CPU)), whole[start : start + count])


def test_every_seed_purpose_and_position_has_numbers_of_its_own():
    draws = [
        PositionNoise(seed, start, 8, CPU).uniform(purpose)
        for seed, start, purpose in itertools.product((0, 1), (0, 8), Purpose)
    ]
    assert len({value for draw in draws for value in draw.tolist()}) == 8 * len(draws)


def test_distribution_of_the_numbers():
    """Five standard errors: U(0, 1) has the deviation 1 / sqrt(12)."""
    noise, count = PositionNoise(0, 3, 20000, CPU), 20000
    uniform = noise.uniform(Purpose.TIME)
    assert (uniform.min() >= 0, uniform.max() < 1) == (True, True)
    assert abs(uniform.mean() - 0.5) < 5 * 12**-0.5 / count**0.5
    normal = noise.normal(Purpose.NOISE, (2, 2))
    assert abs(normal.mean()) < 5 / (4 * count) ** 0.5
    assert abs(normal.square().mean() - 1) < 5 * (2 / (4 * count)) ** 0.5
    signs = noise.signs(Purpose.PROBE, (4,))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / (4 * count) ** 0.5
    assert abs((signs[:, 0] * signs[:, 1]).mean()) < 5 / count**0.5


def test_crops_are_drawn_by_position():
    assert crop_fractions(1, 2) == crop_fractions(1, 2) != crop_fractions(1, 3)
    assert all(0 <= value < 1 for value in crop_fractions(1, 2))
