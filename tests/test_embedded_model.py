"""The model that comes with the package: it loads as promised, is small, and draws garments."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import diffusers_sde


@pytest.fixture(scope="module")
def pipeline():
    pipeline = DiffusionPipeline.from_pretrained(diffusers_sde.embedded_model_path())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def images(pipeline):
    """16 images in 60 steps, shape (16, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size=16, num_inference_steps=60, generator=generator, output_type="np").images[..., 0]


def test_it_is_a_small_grey_pipeline_of_ours(pipeline):
    assert type(pipeline) is diffusers_sde.ScoreSdePipeline
    assert type(pipeline.unet) is diffusers_sde.NCSNppModel
    assert type(pipeline.scheduler) is diffusers_sde.ScoreSdeVeScheduler
    assert (pipeline.unet.config.in_channels, pipeline.unet.config.sample_size) == (1, 32)
    weights = list(Path(diffusers_sde.embedded_model_path()).rglob("*.safetensors"))
    assert len(weights) == 1
    assert weights[0].stat().st_size <= 8e6


def test_its_card_says_how_it_was_trained():
    card = Path(diffusers_sde.embedded_model_path(), "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    for word in ("train_sde.py", "Fashion-MNIST", "license", "loss"):
        assert word in card


def test_garments_stand_on_a_black_border(images):
    # The training images are 28 x 28 in a black frame of two pixels.
    border = np.ones((32, 32), dtype=bool)
    border[2:-2, 2:-2] = False
    assert images[:, border].mean() < 0.03
    assert images[:, 8:-8, 8:-8].mean() > 0.2


def test_images_differ_and_are_not_noise(images):
    differences = np.abs(images[:, None] - images).mean(axis=(2, 3))
    assert differences[np.triu_indices(16, 1)].min() > 0.02
    # Neighbouring pixels of a garment are alike; of noise of the same spread they would not be.
    neighbours = np.abs(np.diff(images, axis=2)).mean()
    shuffled = np.abs(np.diff(np.random.default_rng(0).permuted(images, axis=2), axis=2)).mean()
    assert neighbours < 0.6 * shuffled


def test_the_score_is_that_of_noised_images(pipeline, images):
    # Denoising its own samples at sigma = 0.3 removes most of the noise. An untrained network leaves all of it; here
    # about 0.45 sigma remain, detail that the noise has covered.
    sigma = 0.3
    clean = torch.from_numpy(images)[:, None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        score = pipeline.unet(clean + sigma * noise, sigma).sample
    denoised = clean + sigma * noise + sigma**2 * score
    assert (denoised - clean).square().mean().sqrt() < 0.6 * sigma


def test_the_classifier_is_small_and_sure_of_clean_garments(images):
    classifier = diffusers_sde.NoiseConditionalClassifier.from_pretrained(diffusers_sde.embedded_classifier_path())
    assert classifier.config.num_classes == 10
    x = torch.from_numpy(images)[:, None]
    with torch.no_grad():
        clean, noisy = (classifier(x, sigma).logits.softmax(dim=1).amax(dim=1) for sigma in (0.01, 15.0))
    assert clean.mean() > 0.6
    assert noisy.mean() < 0.5  # told that all is noise, it does not know


def test_the_colour_model_removes_noise_and_colours_grey_images():
    pipeline = DiffusionPipeline.from_pretrained(diffusers_sde.embedded_colour_model_path())
    assert type(pipeline.scheduler) is diffusers_sde.ScoreSdeVpScheduler
    assert pipeline.unet.dtype is torch.float32  # stored in float16
    row = torch.linspace(-1, 1, 32)
    clean = torch.stack([row.expand(32, 32), row[:, None].expand(32, 32), 0.3 * row.expand(32, 32)])[None]
    t = torch.tensor(0.2, dtype=torch.float64)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    alpha, sigma = float(pipeline.scheduler.sde.alpha(t)), float(pipeline.scheduler.sde.sigma(t))
    x = alpha * clean + sigma * noise
    with torch.no_grad():
        epsilon = pipeline.unet(x, pipeline.scheduler.model_timestep(t).float()).sample
    left = (x - sigma * epsilon) / alpha - clean
    assert left.square().mean().sqrt() < 0.5 * sigma / alpha

    colorize = diffusers_sde.ScoreSdeColorizationPipeline.from_pipe(pipeline)
    colorize.set_progress_bar_config(disable=True)
    grey = (0.5 + 0.4 * clean[:, :1]).expand(2, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    coloured = colorize(grey, num_inference_steps=30, generator=generator, output_type="pt").images
    assert (coloured.mean(dim=1, keepdim=True) - grey).abs().max() < 1e-5
    assert (coloured[0] - coloured[1]).abs().mean() > 0.01  # two draws
    assert 0.02 < coloured.std(dim=1).mean() < 0.4  # colour
