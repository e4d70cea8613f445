"""The model that comes with the package: it loads as promised, is small, and draws garments."""

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
    weights = list(diffusers_sde.embedded_model_path().rglob("*.safetensors"))
    assert len(weights) == 1
    assert weights[0].stat().st_size <= 8e6


def test_its_card_says_how_it_was_trained():
    card = (diffusers_sde.embedded_model_path() / "README.md").read_text(encoding="utf-8")
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
