"""Noise-conditional classifier, against the recorded logits and gradients of the official JAX one."""

import math

import pytest
import torch

from diffusers_sde.conversion import convert_classifier
from diffusers_sde.conversion.classifier import model_config, parameter_map
from diffusers_sde.conversion.parameter_map import convert_state_dict
from diffusers_sde.models import NoiseConditionalClassifier
from tests.checkpoints import arrays, reference_json, relative_error, write_checkpoint

SMALL = {"sample_size": 8, "blocks_per_group": 1, "channel_multiplier": 1, "embedding_features": 8, "num_classes": 5}


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_recorded_logits_and_gradients(tmp_path):
    """Within 1e-5 of the largest value."""
    recorded = arrays("jax_classifier")
    classifier = convert_classifier(write_checkpoint(tmp_path, "jax_classifier"))
    x = recorded["x"].requires_grad_()
    logits = classifier(x, recorded["sigma"]).logits
    assert relative_error(logits, recorded["logits"]) < 1e-5
    log_probability = logits.log_softmax(dim=1).gather(1, recorded["labels"].long()[:, None]).sum()
    (gradient,) = torch.autograd.grad(log_probability, x)
    assert relative_error(gradient, recorded["grad"]) < 1e-5
    for i in range(len(gradient)):  # small at high noise, so image by image
        assert relative_error(gradient[i], recorded["grad"][i]) < 1e-4


def test_full_size_bijection():
    shapes = {name.removeprefix("params/"): shape for name, shape in reference_json("classifier_parameters").items()}
    official = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        classifier = NoiseConditionalClassifier(**model_config(official))
    assert classifier.config.blocks_per_group == 4 and classifier.config.channel_multiplier == 10
    assert sum(tensor.numel() for tensor in official.values()) == 38_913_242
    converted = convert_state_dict(official, parameter_map(classifier), classifier.state_dict())
    assert converted.keys() == classifier.state_dict().keys()
    assert len(converted) == len(shapes) == 106


def test_runs_and_trains():
    classifier = NoiseConditionalClassifier(**SMALL)
    x, sigma = draw(3, 3, 8, 12), torch.tensor([0.01, 1.0, 40.0])
    output = classifier(x, sigma)
    assert output.logits.shape == (3, 5)
    assert torch.equal(classifier(x, sigma, return_dict=False)[0], output.logits)
    torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    assert not [n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


@torch.no_grad()
def test_images_are_standardised():
    """By the data's statistics and then each by its own: brightness and contrast of the whole do not matter."""
    classifier = NoiseConditionalClassifier(**SMALL).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in (classifier.config.image_mean, classifier.config.image_std))
    x = draw(2, 3, 8, 8)
    changed = ((x - mean) / std * 3 + 0.7) * std + mean
    torch.testing.assert_close(classifier(changed, 1.0).logits, classifier(x, 1.0).logits, rtol=1e-4, atol=1e-5)
    flat = classifier._standardize(mean.expand(1, 3, 8, 8) + 0.01 * std)
    torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-3)
    standard = classifier._standardize(x)
    torch.testing.assert_close(standard.mean(dim=(1, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(standard.square().mean(dim=(1, 2, 3)), torch.ones(2), rtol=1e-5, atol=0)


def test_gradient_of_a_flat_image_is_finite():
    classifier = NoiseConditionalClassifier(**SMALL)
    mean = torch.tensor(classifier.config.image_mean)[:, None, None]
    x = mean.expand(2, 3, 8, 8).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(x, 1.0).logits.sum(), x)
    assert gradient.isfinite().all()


@torch.no_grad()
def test_noise_levels_and_dtypes():
    classifier = NoiseConditionalClassifier(**SMALL).eval()
    x = draw(2, 3, 8, 8)
    logits = classifier(x, 0.5).logits
    assert torch.equal(classifier(x, torch.tensor([0.5, 0.5])).logits, logits)
    assert not torch.equal(classifier(x, 0.6).logits, logits)
    frequencies = classifier.time_proj.weight.clone()
    half = classifier.to(torch.bfloat16)
    assert torch.equal(half.time_proj.weight, frequencies)
    torch.testing.assert_close(half(x.bfloat16(), 0.5).logits.float(), logits, rtol=0.1, atol=0.1)
    with pytest.raises(ValueError, match="`sample`"):
        classifier(x[:, :1], 0.5)
    with pytest.raises(ValueError, match="`timestep` has shape"):
        classifier(x, torch.ones(3))
    with pytest.raises(ValueError, match="one per channel"):
        NoiseConditionalClassifier(**SMALL, in_channels=1)


def test_gradient_checkpointing_changes_nothing():
    classifier = NoiseConditionalClassifier(**SMALL)
    x = draw(2, 3, 8, 8).requires_grad_()
    (expected,) = torch.autograd.grad(classifier(x, 0.3).logits.logsumexp(1).sum(), x)
    classifier.enable_gradient_checkpointing()
    (found,) = torch.autograd.grad(classifier(x, 0.3).logits.logsumexp(1).sum(), x)
    assert torch.equal(found, expected)
    assert math.isfinite(float(found.abs().sum()))


@torch.no_grad()
def test_save_and_load(tmp_path):
    classifier = NoiseConditionalClassifier(**SMALL, image_mean=(0.1, 0.2, 0.3)).eval()
    classifier.save_pretrained(tmp_path)
    x = draw(2, 3, 8, 8)
    assert torch.equal(NoiseConditionalClassifier.from_pretrained(tmp_path)(x, 2.0).logits, classifier(x, 2.0).logits)
