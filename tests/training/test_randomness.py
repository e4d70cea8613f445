import itertools

import torch

from diffusers_sde.training import ShuffledOrder, StepNoise, derive_seed, iterate_batches
from diffusers_sde.training.data import ImagesInMemory
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
    iterator = iterate_batches(source, ShuffledOrder(10, seed=0), **options)
    return [batch.flatten().tolist() for batch in itertools.islice(iterator, count)]


def test_batches_go_on_where_a_run_stopped_even_within_an_epoch():
    whole = batches(9, batch_size=4)
    assert all(len(batch) == 4 for batch in whole)
    assert batches(5, batch_size=4, first_micro_step=4) == whole[4:]


def test_processes_share_the_batches_of_one():
    one = batches(4, batch_size=6)
    parts = [batches(4, batch_size=3, process_index=r, num_processes=2) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == one


def test_noise_of_a_step_depends_on_its_place_alone():
    arguments = {"seed": 5, "micro_step": 3, "process_index": 1, "t_min": 1e-3, "device": CPU}
    first, again = (StepNoise.draw((64, 1, 4, 4), **arguments) for _ in range(2))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.t, again.t)
    assert torch.equal(first.flip, again.flip)
    for key in ("seed", "micro_step", "process_index"):
        other = StepNoise.draw((64, 1, 4, 4), **arguments | {key: 9})
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.t, other.t)


def test_distribution_of_the_noise_of_a_step():
    draw = StepNoise.draw((20000, 1, 2, 2), seed=0, micro_step=0, process_index=0, t_min=0.2, device=CPU)
    assert 0.2 <= draw.t.min() < 0.201
    assert 0.999 < draw.t.max() <= 1
    # Five standard errors: U(0.2, 1) has standard deviation 0.8 / sqrt(12), a coin 0.5.
    assert abs(draw.t.mean() - 0.6) < 5 * 0.231 / 20000**0.5
    assert abs(draw.flip.float().mean() - 0.5) < 5 * 0.5 / 20000**0.5
    assert abs(draw.noise.mean()) < 5 / 80000**0.5
    assert abs(draw.noise.square().mean() - 1) < 5 * (2 / 80000) ** 0.5


def test_crops_are_drawn_by_position():
    assert crop_fractions(1, 2) == crop_fractions(1, 2) != crop_fractions(1, 3)
    assert all(0 <= value < 1 for value in crop_fractions(1, 2))
