"""Steps: dtypes, noise sources, what is returned, the last step, what the network is conditioned on."""

import pytest
import torch

from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from tests.oracles import coefficients, forward_step, seeded

CLASSES = [ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler]
every_scheduler = pytest.mark.parametrize("cls", CLASSES)
SHAPE = (3, 2, 4)


def prepared(cls, num_steps=30, **config):
    scheduler = cls(**{"predictor": "reverse_diffusion", "corrector": "langevin"} | config)
    scheduler.set_timesteps(num_steps)
    return scheduler


def drawn(seed=0, dtype=torch.float32, shape=SHAPE):
    return torch.randn(2, *shape, generator=seeded(seed)).to(dtype)


def both_steps(scheduler, x, output, generator):
    """All four tensors of a corrector and a predictor step."""
    corrected = scheduler.step_correct(output, x, generator)
    predicted = scheduler.step_pred(output, scheduler.timesteps[0], x, generator)
    return [*corrected.to_tuple(), *predicted.to_tuple()]


@every_scheduler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_comes_back_as_it_was(cls, dtype):
    """The float32 step of the same numbers, rounded once at the end, bit for bit. Catches noise drawn in half."""
    x, output = drawn(dtype=dtype)
    found = both_steps(prepared(cls), x, output, seeded(1))
    expected = both_steps(prepared(cls), x.float(), output.float(), seeded(1))
    for ours, exact in zip(found, expected):
        assert ours.dtype == dtype
        assert torch.equal(ours, exact.to(dtype))


@every_scheduler
def test_a_float32_state_under_a_half_precision_network(cls):
    """The network's dtype does not narrow the state; float64 states stay what they are too."""
    x, output = drawn()
    output = output.bfloat16()
    found = both_steps(prepared(cls), x, output, seeded(1))
    for ours, exact in zip(found, both_steps(prepared(cls), x, output.float(), seeded(1))):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact)
    assert all(y.dtype == torch.float64 for y in both_steps(prepared(cls), x.double(), output, seeded(1)))


@every_scheduler
def test_a_list_of_generators_makes_rows_independent(cls):
    """Row i of a batch with its own generator is what it is alone. Only the order of sums may differ."""
    x, output = drawn()
    together = both_steps(prepared(cls), x, output, [seeded(i) for i in range(3)])
    for i in range(3):
        row = slice(i, i + 1)
        for whole, alone in zip(together, both_steps(prepared(cls), x[row], output[row], [seeded(i)])):
            torch.testing.assert_close(whole[row], alone, rtol=1e-6, atol=1e-6)


@every_scheduler
@pytest.mark.parametrize("length", [2, 4])
def test_a_list_of_generators_of_another_length_is_refused(cls, length):
    """randn_tensor of diffusers takes a list that is too long in silence, and fails by IndexError on a short one."""
    x, output = drawn()
    with pytest.raises(ValueError, match=f"{length}.*3|3.*{length}"):
        prepared(cls).step(output, 1.0, x, [seeded(i) for i in range(length)])


@every_scheduler
def test_noise_is_the_generators_corrector_first(cls):
    """Catches noise from the global generator, and noise added to the mean."""
    x, output = drawn()
    generator = seeded(1)
    z = [torch.randn(SHAPE, generator=generator) for _ in range(2)]
    x_1, mean_1, x_2, mean_2 = both_steps(prepared(cls), x, output, seeded(1))
    for noise, step in zip(z, (x_1 - mean_1, x_2 - mean_2)):
        ratio = step.flatten(1) / noise.flatten(1)  # one positive number per row; roundings of numbers up to 100
        torch.testing.assert_close(
            ratio, ratio.median(dim=1, keepdim=True).values.expand_as(ratio), rtol=1e-2, atol=1e-4
        )
        assert (ratio.median(dim=1).values > 0).all()


@every_scheduler
def test_tuple_and_output(cls):
    x, output = drawn()
    for step in (
        lambda s, **kw: s.step_correct(output, x, seeded(), **kw),
        lambda s, **kw: s.step_pred(output, 1.0, x, seeded(), **kw),
        lambda s, **kw: s.step(output, 1.0, x, generator=seeded(), **kw),
    ):
        named, plain = step(prepared(cls)), step(prepared(cls), return_dict=False)
        assert isinstance(plain, tuple) and len(plain) == 2
        assert torch.equal(named.prev_sample, plain[0]) and torch.equal(named.prev_sample_mean, plain[1])


@every_scheduler
@pytest.mark.parametrize("denoise_final", [True, False])
def test_only_the_last_step_is_free_of_noise(cls, denoise_final):
    x, output = drawn()
    scheduler = prepared(cls, denoise_final=denoise_final)
    for i, t in enumerate(scheduler.timesteps):
        step = scheduler.step(output, t, x, seeded(i))
        quiet = torch.equal(step.prev_sample, step.prev_sample_mean)
        assert quiet == (denoise_final and i == len(scheduler.timesteps) - 1)


@every_scheduler
def test_the_state_given_is_not_written_to(cls):
    x, output = drawn()
    before = x.clone(), output.clone()
    both_steps(prepared(cls), x, output, seeded())
    assert torch.equal(x, before[0]) and torch.equal(output, before[1])


@every_scheduler
def test_model_input_and_initial_noise(cls):
    scheduler = cls()
    x = drawn()[0]
    assert scheduler.scale_model_input(x, 0.5) is x and scheduler.order == 1
    assert scheduler.init_noise_sigma == (1348.0 if cls is ScoreSdeVeScheduler else 1.0)


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.3, 0.7])])
def test_continuous_networks_are_conditioned_on_sigma_or_999_t(t):
    ve, expected = ScoreSdeVeScheduler(sigma_max=50.0), torch.as_tensor(t)
    torch.testing.assert_close(ve.model_timestep(t), 0.01 * 5000**expected)
    for cls in (ScoreSdeVpScheduler, ScoreSdeSubVpScheduler):
        torch.testing.assert_close(cls(num_train_timesteps=100).model_timestep(t), 999 * expected)


def test_discrete_networks_are_conditioned_on_labels():
    """VE counts from the highest noise. 1e-4: float32 rounding of numbers up to 99."""
    labels = torch.arange(100)
    ve = ScoreSdeVeScheduler(num_train_timesteps=100, continuous=False)
    assert torch.equal(ve.model_timestep(1 - labels / 99).long(), labels)
    for cls in (ScoreSdeVpScheduler, ScoreSdeSubVpScheduler):
        vp = cls(num_train_timesteps=100, continuous=False)
        torch.testing.assert_close(vp.model_timestep(labels / 99).float(), labels.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.3, 0.7, 0.01])])
@every_scheduler
def test_score_is_the_output_or_minus_it_over_sigma(cls, t):
    scheduler, (x, output) = cls(), drawn()
    score = scheduler.step_score(output, x, t)
    if cls is ScoreSdeVeScheduler:
        assert torch.equal(score, output)
    else:
        for i, time in enumerate(torch.as_tensor(t).expand(3).tolist()):
            torch.testing.assert_close(score[i], -output[i] / coefficients(scheduler.sde, time)[1])


def test_score_of_a_discrete_vp_network_is_by_the_ddpm_chain():
    """sqrt(1 - prod (1 - beta_i / N)) up to the label below t (N - 1), as the official code has it."""
    scheduler, (x, output) = ScoreSdeVpScheduler(num_train_timesteps=100, continuous=False), drawn()
    betas = [(0.1 + 19.9 * i / 99) / 100 for i in range(100)]
    for label in (0, 7, 98):
        product = 1.0
        for beta in betas[: label + 1]:
            product *= 1 - beta
        score = scheduler.step_score(output, x, (label + 0.5) / 99)
        torch.testing.assert_close(score, -output / (1 - product) ** 0.5, rtol=1e-5, atol=0)


@pytest.mark.parametrize("corrector", ["ald", "langevin"])
@pytest.mark.parametrize("index", [0, 12])
@every_scheduler
def test_a_corrector_step_is_made_at_the_current_time(cls, index, corrector):
    """epsilon = 2 (a r)^2 (sigma(t)^2 or |z|^2 / |score|^2), a of a forward step of 1/N; read off the step's mean.

    1 %: a time off by one step changes it by 5 % (VP), and t for the place on the grid, which is t + 5e-4, by 0.1 %.
    For VE sigma differs by a factor 1.4 per step; a = 1, and "langevin" does not tell the time.
    """
    scheduler, (x, output) = prepared(cls, 25, corrector=corrector, snr=0.2), drawn()
    for t in scheduler.timesteps[:index]:
        scheduler.step(output, t, x)
    t = float(scheduler.timesteps[index])
    score, noise = scheduler.step_score(output, x, t), torch.randn(SHAPE, generator=seeded(1))
    a, _ = forward_step(scheduler.sde, t, t - 1 / 25)
    unit = coefficients(scheduler.sde, t)[1] ** 2 * torch.ones(3)
    if corrector == "langevin":
        unit = noise.flatten(1).square().sum(dim=1) / score.flatten(1).square().sum(dim=1)
    x_mean = scheduler.step_correct(output, x, seeded(1)).prev_sample_mean
    epsilon = ((x_mean - x) * score).flatten(1).sum(dim=1) / score.flatten(1).square().sum(dim=1)
    torch.testing.assert_close(epsilon, 2 * (0.2 * a) ** 2 * unit, rtol=0.01, atol=0)
