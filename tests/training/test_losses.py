"""Gaussian data have a closed-form score, and the loss of that score a closed form too.

For x_0 ~ N(m, s^2 I) and v = alpha^2 s^2 + sigma^2, the score of p_t is -(x - alpha m) / v. Scaled by c, it leaves
sigma c score + noise with independent normal entries of variance q = 1 + (c^2 - 2 c) sigma^2 / v. The loss is then
q ("mean") or dims q / 2 ("sum") in expectation, with the relative standard error sqrt(2 / (samples dims)).
"""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import diffusers_sde.training
from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde.training import denoising_score_matching_loss, sliced_score_matching_loss

SCHEDULERS = {
    "ve": lambda: ScoreSdeVeScheduler(sigma_max=50.0),
    "vp": ScoreSdeVpScheduler,
    "subvp": ScoreSdeSubVpScheduler,
}
MEAN, STD = 0.3, 0.7
SAMPLES = 4000
SHAPE = (2, 3, 4)
TIMES = (0.01, 0.2, 0.5, 1.0)


@pytest.fixture(params=SCHEDULERS)
def scheduler(request):
    return SCHEDULERS[request.param]()


def draw(time, shape=SHAPE):
    generator = torch.Generator().manual_seed(3)
    x_0 = MEAN + STD * torch.randn(SAMPLES, *shape, generator=generator)
    noise = torch.randn(SAMPLES, *shape, generator=generator)
    return x_0, torch.full((SAMPLES,), time), noise


def variance(sde, t):
    return sde.alpha(t).square() * STD**2 + sde.sigma(t).square()


def exact_score(sde, x, t):
    shape = (-1, *[1] * (x.ndim - 1))
    return -(x - sde.alpha(t).reshape(shape) * MEAN) / variance(sde, t).reshape(shape)


def expected(sde, time, c):
    t = torch.tensor(time, dtype=torch.float64)
    return float(1 + (c * c - 2 * c) * sde.sigma(t).square() / variance(sde, t))


def tolerance(dims):
    """Five relative standard errors."""
    return 5 * (2 / (SAMPLES * dims)) ** 0.5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("c", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("time", TIMES)
def test_loss_of_the_scaled_exact_score_is_the_closed_form(scheduler, time, c, reduction):
    sde = scheduler.sde
    loss = denoising_score_matching_loss(
        sde, lambda x, t: c * exact_score(sde, x, t), *draw(time), reduction=reduction
    )
    dims = 24
    factor = 1 if reduction == "mean" else dims / 2
    assert loss.shape == (SAMPLES,)
    assert loss.dtype == torch.float32
    assert loss.mean().item() == pytest.approx(factor * expected(sde, time, c), rel=tolerance(dims))


@pytest.mark.parametrize("time", TIMES[2:])
def test_a_wrongly_scaled_score_is_told_apart(scheduler, time):
    """What the test above accepts for c = 1, it does not accept for c = 2 or c = 0."""
    sde = scheduler.sde
    for wrong in (0.0, 2.0):
        loss = denoising_score_matching_loss(sde, lambda x, t, c=wrong: c * exact_score(sde, x, t), *draw(time))
        assert loss.mean().item() > (1 + 2 * tolerance(24)) * expected(sde, time, 1.0)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 2, 3, 2)])
def test_any_rank(scheduler, shape):
    sde = scheduler.sde
    loss = denoising_score_matching_loss(sde, lambda x, t: exact_score(sde, x, t), *draw(0.3, shape))
    dims = torch.Size(shape).numel()
    assert loss.mean().item() == pytest.approx(expected(sde, 0.3, 1.0), rel=tolerance(dims))


def test_times_of_a_batch_may_differ(scheduler):
    sde = scheduler.sde
    x_0, _, noise = draw(0.0)
    t = torch.linspace(0.01, 1, SAMPLES)
    together = denoising_score_matching_loss(sde, lambda x, t: exact_score(sde, x, t), x_0, t, noise)
    for i in (0, 777, SAMPLES - 1):
        rows = slice(i, i + 1)
        alone = denoising_score_matching_loss(
            sde, lambda x, t: exact_score(sde, x, t), x_0[rows], t[rows], noise[rows]
        )
        torch.testing.assert_close(alone, together[rows], rtol=1e-5, atol=1e-6)


class ExactNetwork(torch.nn.Module):
    """Outputs what a perfectly trained network would, from what a network is given."""

    def __init__(self, scheduler, dtype=torch.float32):
        super().__init__()
        self.scheduler = scheduler
        self.scale = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.seen = []

    def forward(self, x, timestep):
        self.seen.append(x.dtype)
        sde = self.scheduler.sde
        if hasattr(sde, "sigma_max"):  # VE: conditioned on sigma, outputs the score
            t = torch.log(timestep / sde.sigma_min) / torch.log(torch.tensor(sde.sigma_max / sde.sigma_min))
            output = exact_score(sde, x, t)
        else:  # VP, sub-VP: conditioned on 999 t, outputs -sigma score
            t = timestep / 999
            output = -sde.sigma(t)[:, None, None, None] * exact_score(sde, x, t)
        return SimpleNamespace(sample=self.scale * output.to(self.scale.dtype))


@pytest.mark.parametrize("time", TIMES)
def test_loss_of_an_exact_network(scheduler, time):
    score_fn = scheduler.score_fn(ExactNetwork(scheduler))
    loss = denoising_score_matching_loss(scheduler.sde, score_fn, *draw(time)).mean()
    assert loss.item() == pytest.approx(expected(scheduler.sde, time, 1.0), rel=tolerance(24))


def test_the_exact_network_is_a_minimum_of_the_loss(scheduler):
    """d loss / d scale = 0 for the exact score, in expectation: 2 (c - 1) sigma^2 / v."""
    network = ExactNetwork(scheduler)
    x_0, t, noise = draw(0.5)
    loss = denoising_score_matching_loss(scheduler.sde, scheduler.score_fn(network), x_0, t, noise).mean()
    (gradient,) = torch.autograd.grad(loss, network.scale)
    assert abs(gradient.item()) < 5 * 2 / (SAMPLES * 24) ** 0.5


def test_half_precision_network_has_its_score_scaled_in_float32(scheduler):
    network = ExactNetwork(scheduler, torch.bfloat16)
    x_0, t, noise = draw(0.5)
    score = scheduler.score_fn(network)(x_0, t)
    loss = denoising_score_matching_loss(scheduler.sde, scheduler.score_fn(network), x_0, t, noise)
    assert set(network.seen) == {torch.bfloat16}
    assert score.dtype == loss.dtype == torch.float32
    # bfloat16 has 8 bits of precision; the loss at t = 0.5 is dominated by values of order 1.
    exact = denoising_score_matching_loss(scheduler.sde, scheduler.score_fn(ExactNetwork(scheduler)), x_0, t, noise)
    assert (loss - exact).abs().max() < 0.05


def probes_of(noise):
    return torch.where(torch.rand(noise.shape, generator=torch.Generator().manual_seed(8)) < 0.5, -1.0, 1.0)


@pytest.mark.parametrize("c", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("time", TIMES)
def test_sliced_loss_of_the_scaled_exact_score_is_the_closed_form(scheduler, time, c):
    """sigma^2 (c^2 / v - 2 c / v) per dimension: the denoising loss less 1. Its Jacobian is that of a linear score,
    so that the variance comes from |s|^2 alone."""
    sde = scheduler.sde
    x_0, t, noise = draw(time)
    loss = sliced_score_matching_loss(sde, lambda x, t: c * exact_score(sde, x, t), x_0, t, noise, probes_of(noise))
    assert loss.dtype == torch.float32
    spread = expected(sde, time, c) - 1 + 2 * c * sde.sigma(t[:1]).square() / variance(sde, t[:1])
    assert loss.mean().item() == pytest.approx(expected(sde, time, c) - 1, abs=tolerance(24) * spread.item() + 1e-6)
    half_sum = sliced_score_matching_loss(
        sde, lambda x, t: c * exact_score(sde, x, t), x_0, t, noise, probes_of(noise), reduction="sum"
    )
    torch.testing.assert_close(half_sum, 12 * loss)


def test_sliced_loss_has_the_gradient_of_the_denoising_loss(scheduler):
    """In expectation, for a score that is not linear: s = w1 tanh(x) + w2 x^3."""
    sde, (x_0, t, noise) = scheduler.sde, draw(0.3, (6,))
    weights = torch.tensor([0.4, -0.02], requires_grad=True)

    def score_fn(x, t):
        return weights[0] * x.tanh() + weights[1] * x**3

    denoising = denoising_score_matching_loss(sde, score_fn, x_0, t, noise)
    sliced = sliced_score_matching_loss(sde, score_fn, x_0, t, noise, probes_of(noise))

    def gradients(loss):
        return [torch.autograd.grad(part.mean(), weights, retain_graph=True)[0] for part in loss.split(400)]

    one, other = torch.stack(gradients(denoising)), torch.stack(gradients(sliced))
    error = (one - other).std(dim=0) / 10**0.5
    assert ((one - other).mean(dim=0).abs() < 5 * error).all()
    assert (one.mean(dim=0).abs() > 10 * error).all()  # the gradients are no noise


def test_weights_multiply_the_losses(scheduler):
    sde, (x_0, t, noise) = scheduler.sde, draw(0.3)
    weight = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(1))
    arguments = (sde, lambda x, t: exact_score(sde, x, t), x_0, t, noise)
    plain, weighted = (denoising_score_matching_loss(*arguments, weight=w) for w in (None, weight))
    torch.testing.assert_close(weighted, weight * plain)
    plain, weighted = (sliced_score_matching_loss(*arguments, probes_of(noise), weight=w) for w in (None, weight))
    torch.testing.assert_close(weighted, weight * plain)


def test_unusable_arguments_are_refused(scheduler):
    x_0, t, noise = draw(0.5)
    with pytest.raises(ValueError, match="reduction is 'max'; allowed are 'mean', 'sum'"):
        denoising_score_matching_loss(scheduler.sde, lambda x, t: x, x_0, t, noise, reduction="max")
    with pytest.raises(ValueError, match="one time per sample, shape"):
        denoising_score_matching_loss(scheduler.sde, lambda x, t: x, x_0, t[:2], noise)


def test_heavy_packages_are_imported_only_when_used():
    heavy = {"accelerate", "datasets", "tensorboard", "wandb", "tqdm", "huggingface_hub"}
    for path in Path(diffusers_sde.training.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not heavy & {name.split(".")[0] for name in names}, path
