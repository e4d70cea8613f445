"""Sampling of a chosen class, against mixtures whose score and noisy classifier are known exactly."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from diffusers_sde import (
    NoiseConditionalClassifier,
    ScoreSdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from diffusers_sde.models.classifier import NoiseConditionalClassifierOutput
from diffusers_sde.pipelines.guidance import ClassifierGuidance
from diffusers_sde.pipelines.pipeline_score_sde_class_conditional import ScoreSdeClassConditionalPipeline
from tests.oracles import SDES, Gaussian, GaussianMixture, sampler_moments, seeded
from tests.tiny import GaussianNetwork, tiny_network

WEIGHTS, MEANS, STDS = torch.tensor([[0.2, 0.5, 0.3], [-0.5, 0.1, 0.6], [0.2, 0.1, 0.3]], dtype=torch.float64)
SHAPE = (1, 4, 4)  # small, so that the classes overlap at noise levels where an image still tells something
MIXTURE = GaussianMixture(WEIGHTS, MEANS[:, None, None, None].expand(3, *SHAPE), STDS)
SCHEDULERS = {"ve": ScoreSdeVeScheduler, "vp": ScoreSdeVpScheduler, "subvp": ScoreSdeSubVpScheduler}


def make_scheduler(name, **options):
    return SCHEDULERS[name](**{"corrector": "ald", **({"sigma_max": 50.0} if name == "ve" else {}), **options})


class MixtureNetwork(ModelMixin, ConfigMixin):
    """What a perfect network says of the mixture; conditioned on sigma (VE) or 999 t."""

    @register_to_config
    def __init__(
        self,
        sde: str = "ve",
        center_input_sample: bool = True,
        sample_size: int = 4,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (4,),
    ):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep):
        sde, timestep = SDES[self.config.sde], torch.as_tensor(timestep, dtype=torch.float64)
        t = sde.time_of_log_snr(-2 * timestep.log()) if self.config.sde == "ve" else timestep / 999
        score = MIXTURE.score(sde, sample, t)
        return UNet2DOutput(sample=score if self.config.sde == "ve" else -sde.sigma(t).float() * score)


def mixture_logits(y, s, shift=0.0, scale=1.0):
    """log p(k, y) up to a constant, of the mixture seen through (. + shift) / scale with noise s added after that."""
    y, s = y.double(), s.double()
    means, stds = (MEANS + shift) / scale, STDS / scale
    variances = stds**2 + s[:, None] ** 2
    distances = (y[:, None] - means[:, None, None, None]).square().sum(dim=(2, 3, 4))
    return WEIGHTS.log() - distances / (2 * variances) - y[0].numel() / 2 * variances.log()


class MixtureClassifier(ModelMixin, ConfigMixin):
    """The exact classifier of images in [0, 1]; `centered` says that the mixture above is in [-1, 1]."""

    downsample_factor = 1

    @register_to_config
    def __init__(self, centered: bool = False, in_channels: int = 1, num_classes: int = 3):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, sample, sigma):
        self.calls += 1
        shift, scale = (1.0, 2.0) if self.config.centered else (0.0, 1.0)
        return NoiseConditionalClassifierOutput(logits=mixture_logits(sample, sigma, shift, scale).to(sample.dtype))


SMALL = {"sample_size": 8, "blocks_per_group": 1, "channel_multiplier": 1, "embedding_features": 8, "num_classes": 5}


def real_classifier(**options):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return NoiseConditionalClassifier(**{**SMALL, **options}).eval()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_pipe(unet=None, scheduler=None, classifier=None):
    scheduler = scheduler or make_scheduler("ve", corrector="langevin")
    return quiet(ScoreSdeClassConditionalPipeline(unet or tiny_network(), scheduler, classifier or real_classifier()))


def mixture_pipe(name="ve", centered=False, **options):
    network = MixtureNetwork(name, center_input_sample=not centered)
    return make_pipe(network, make_scheduler(name, **options), MixtureClassifier(centered))


def sample(pipe, labels, seed=0, **options):
    options = {"num_inference_steps": 5, "output_type": "latent", "generator": seeded(seed), **options}
    return pipe(labels, **options).images


# ---------------------------------------------------------------------------------------------------------------------
# Exact
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("time", [0.02, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_the_guided_score_is_that_of_the_class(name, time, dtype, tolerance):
    """Relative to its root mean square."""
    sde, t = SDES[name], torch.tensor(time, dtype=torch.float64)
    x = sde.perturb(MIXTURE.sample(12, seeded()).double(), torch.randn(12, *SHAPE, generator=seeded(1)), t).to(dtype)
    labels = torch.arange(12) % 3
    guidance = ClassifierGuidance(mixture_logits, labels, 1.0, sde)
    guided = guidance.score(lambda x: MIXTURE.score(sde, x, t), x, t)
    assert guided.dtype is dtype
    for k in range(3):
        exact = Gaussian(MEANS[k], STDS[k]).score(sde, x[labels == k].double(), t)
        assert (guided[labels == k] - exact).abs().max() < tolerance * exact.square().mean().sqrt()


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("centered", [False, True])
def test_samples_follow_the_chosen_component(name, centered):
    """Mean and variance per class within five standard errors of what this sampler makes of exact scores."""
    pipe = mixture_pipe(name, centered, snr=0.1)
    steps, count = 60, 600
    x = sample(pipe, torch.arange(count) % 3, num_inference_steps=steps)
    assert x.dtype is torch.float32
    for k in range(3):
        part = x[k::3].double()
        mean, variance = sampler_moments(SDES[name], Gaussian(MEANS[k], STDS[k]), pipe.scheduler, steps)
        assert abs(mean - MEANS[k]) < 0.05 and abs(variance**0.5 / STDS[k] - 1) < 0.25  # and that is the class
        assert abs(part.mean() - mean) < 5 * (variance / part.numel()) ** 0.5
        assert abs(part.var() / variance - 1) < 5 * (2 / part.numel()) ** 0.5


def test_the_scale_multiplies_the_gradient():
    sde, t, x = SDES["vp"], torch.tensor(0.4, dtype=torch.float64), torch.randn(4, *SHAPE, generator=seeded())
    labels = torch.tensor([0, 1, 2, 2])
    base, once, thrice = (
        ClassifierGuidance(mixture_logits, labels, scale, sde).score(lambda x: MIXTURE.score(sde, x, t), x, t)
        for scale in (0.0, 1.0, 3.0)
    )
    torch.testing.assert_close(thrice - base, 3 * (once - base), rtol=1e-5, atol=1e-5)
    assert (once - base).abs().max() > 0.1


def test_the_gradient_is_taken_in_inference_mode_too():
    sde, t, x = SDES["vp"], torch.tensor(0.4, dtype=torch.float64), torch.randn(2, *SHAPE, generator=seeded())
    expected = ClassifierGuidance(mixture_logits, torch.tensor([0, 1]), 1.0, sde).log_probability_gradient(x, t)
    with torch.inference_mode():
        guidance = ClassifierGuidance(mixture_logits, torch.tensor([0, 1]), 1.0, sde)
        assert torch.equal(guidance.log_probability_gradient(x + 0, t + 0), expected)


# ---------------------------------------------------------------------------------------------------------------------
# The pipeline
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, per_step", [({}, 2), ({"corrector": "none"}, 1), ({"correct_steps": 2}, 3)])
def test_predictor_and_corrector_are_guided(options, per_step):
    pipe = mixture_pipe(**options)
    sample(pipe, [0, 1], num_inference_steps=7)
    assert pipe.classifier.calls == 7 * per_step


def test_guidance_scale_zero_is_the_unconditional_pipeline():
    pipe = mixture_pipe()
    plain = quiet(ScoreSdePipeline(pipe.unet, pipe.scheduler))
    expected = plain(batch_size=3, num_inference_steps=5, generator=seeded(), output_type="latent").images
    assert torch.equal(sample(pipe, [0, 1, 2], guidance_scale=0), expected)
    assert pipe.classifier.calls == 0
    assert not torch.equal(sample(pipe, [0, 1, 2]), expected)


def test_an_image_does_not_depend_on_its_batch():
    """To rounding: convolutions sum in another order in another batch."""
    pipe, labels = make_pipe(), [3, 0, 4]
    together = sample(pipe, labels, generator=[seeded(i) for i in range(3)], guidance_scale=20.0, output_type="pt")
    for i, label in enumerate(labels):
        alone = sample(pipe, label, generator=[seeded(i)], guidance_scale=20.0, output_type="pt")
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=2e-5)
    other = sample(pipe, [3, 1, 4], generator=[seeded(i) for i in range(3)], guidance_scale=20.0, output_type="pt")
    assert torch.equal(other[[0, 2]], together[[0, 2]])
    assert (other[1] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("labels", [2, [2], torch.tensor(2), torch.tensor([2], dtype=torch.uint8), np.array([2])])
def test_kinds_of_labels(labels):
    assert torch.equal(sample(mixture_pipe(), labels), sample(mixture_pipe(), [2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_classifier_in_half_precision(dtype):
    """It runs in its own dtype; state and gradient stay in float32."""
    classifier, seen = real_classifier().to(dtype), set()
    classifier.linear_out.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    pipe = make_pipe(classifier=classifier)
    x = sample(pipe, [0, 4])
    assert seen == {dtype}
    assert x.dtype is torch.float32 and x.isfinite().all()
    gradient = ClassifierGuidance(pipe._classify, torch.tensor([0, 4]), 1.0, pipe.scheduler.sde)
    gradient = gradient.log_probability_gradient(x, torch.tensor(0.5, dtype=torch.float64))
    assert gradient.dtype is torch.float32 and (gradient != 0).any()
    assert all(p.grad is None for p in classifier.parameters())


def test_outputs_and_callback():
    pipe, steps = make_pipe(), []

    def callback(pipe, step, timestep, tensors):
        steps.append((step, tuple(tensors["latents"].shape)))
        return {}

    images = sample(pipe, [0, 1], output_type="pil", height=12, width=8, callback_on_step_end=callback)
    assert [image.size for image in images] == [(8, 12)] * 2
    assert steps == [(i, (2, 3, 12, 8)) for i in range(5)]
    (array,) = pipe([0], num_inference_steps=2, output_type="np", return_dict=False)
    assert array.shape == (1, 8, 8, 3)
    latents = torch.randn(1, 3, 8, 8, generator=seeded())
    one, other = (sample(pipe, 0, latents=latents * 50) for _ in range(2))
    assert torch.equal(one, other)


def test_it_is_saved_loaded_and_made_of_another_pipeline(tmp_path):
    plain, classifier = quiet(ScoreSdePipeline(tiny_network(), make_scheduler("ve"))), real_classifier()
    pipe = quiet(ScoreSdeClassConditionalPipeline.from_pipe(plain, classifier=classifier))
    assert pipe.unet is plain.unet and pipe.classifier is classifier
    pipe.save_pretrained(tmp_path)
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is ScoreSdeClassConditionalPipeline
    assert torch.equal(sample(loaded, [1, 2]), sample(pipe, [1, 2]))
    assert quiet(ScoreSdePipeline.from_pipe(loaded)).unet is loaded.unet


def test_a_scheduler_of_diffusers_is_read():
    pipe = make_pipe(GaussianNetwork("vp", center_input_sample=False), DDPMScheduler(), MixtureClassifier())
    assert type(pipe.scheduler) is ScoreSdeVpScheduler


@pytest.mark.parametrize(
    "labels, options, message",
    [
        (5, {}, r"`class_labels` has \[5\]; the classifier knows 5 classes, 0 to 4"),
        ([0, -1, 7], {}, r"`class_labels` has \[-1, 7\]"),
        ([], {}, r"`class_labels` is \[\]; give at least one"),
        (torch.zeros(0, dtype=torch.long), {}, r"`class_labels` is tensor.*at least one"),
        ([[0, 1]], {}, r"`class_labels` has shape \(1, 2\)"),
        (1.0, {}, r"`class_labels` are of type torch.float32; give whole numbers"),
        (True, {}, r"`class_labels` are of type torch.bool"),
        ("boot", {}, r"`class_labels` is 'boot'; give whole numbers"),
        (None, {}, r"`class_labels` is None; give whole numbers"),
        (0, {"guidance_scale": -1.0}, r"`guidance_scale` is -1.0; it must be finite and at least 0"),
        (0, {"guidance_scale": float("nan")}, r"`guidance_scale` is nan"),
        (0, {"guidance_scale": float("inf")}, r"`guidance_scale` is inf"),
        ([0, 1], {"generator": [torch.Generator()]}, r"`generator` is a list of 1 for a batch of 2"),
        (
            [0, 1],
            {"latents": torch.zeros(1, 3, 8, 8)},
            r"`latents` has shape \(1, 3, 8, 8\); \(2, 3, 8, 8\) is needed",
        ),
        (0, {"height": 10}, r"height and width are 10 x 8; the classifier takes multiples of 4"),
        (0, {"num_inference_steps": 0}, r"`num_inference_steps` is 0"),
        (0, {"output_type": "jpg"}, r"`output_type` is 'jpg'"),
    ],
)
def test_arguments_that_are_refused(labels, options, message):
    network = GaussianNetwork(in_channels=3, out_channels=3)
    with pytest.raises(ValueError, match=message):
        make_pipe(network)(labels, **{"num_inference_steps": 3, **options})
    assert network.calls == 0  # before any work


def test_network_and_classifier_must_take_the_same_channels():
    network = GaussianNetwork()
    with pytest.raises(ValueError, match="makes images of 1 channels and the classifier takes 3"):
        make_pipe(network)(0)
    assert network.calls == 0
