"""Checkpoints of the official PyTorch code: outputs and whole sampler runs.

Outputs agree to 2e-5 of their largest value in float32; sampler runs of 100 steps, seed for seed, to 5e-4.
"""

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_sde.conversion import convert, convert_checkpoint
from tests.checkpoints import arrays, checkpoint_content, description, relative_error

NAMES = [
    "ve_ncsnpp_continuous",
    "ve_ncsnpp_skip_continuous",
    "vp_ddpmpp_continuous",
    "subvp_ddpmpp_continuous",
    "vp_ddpm_discrete",
    "ve_ncsnpp_discrete",
]
RUNS = [(name, run["key"]) for name in NAMES for run in description(name)["pc"]["runs"]]
# One run per checkpoint and kind of step is enough for every day; all of them are for `make test-slow`.
QUICK = {
    ("ve_ncsnpp_continuous", "ancestral_sampling|none|pf=0|denoise=1"),
    ("ve_ncsnpp_skip_continuous", "reverse_diffusion|langevin|pf=0|denoise=1"),
    ("vp_ddpmpp_continuous", "euler_maruyama|langevin|pf=0|denoise=0"),
    ("vp_ddpmpp_continuous", "none|ald|pf=0|denoise=0"),
    ("subvp_ddpmpp_continuous", "reverse_diffusion|none|pf=1|denoise=1"),
    ("vp_ddpm_discrete", "ancestral_sampling|none|pf=0|denoise=1"),
    ("vp_ddpm_discrete", "euler_maruyama|none|pf=0|denoise=1"),
    ("vp_ddpm_discrete", "none|langevin|pf=0|denoise=1"),
    ("ve_ncsnpp_discrete", "ancestral_sampling|none|pf=0|denoise=1"),
}


@pytest.mark.parametrize("use_ema", [True, False], ids=["ema", "raw"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs(checkpoint, name, use_ema):
    recorded = arrays(name)
    conversion = convert(checkpoint(name), description(name)["config"], use_ema)
    output = conversion.pipeline.unet(recorded["x"], recorded["labels"]).sample
    assert relative_error(output, recorded["output_ema" if use_ema else "output"]) < 2e-5
    assert (conversion.format, conversion.use_ema, conversion.step) == ("pytorch", use_ema, 3)
    assert 0.99 < conversion.ema_decay < 1
    assert conversion.num_parameters == sum(p.numel() for p in conversion.pipeline.unet.parameters())
    assert not conversion.pipeline.unet.training


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_conditioning_and_score(checkpoint, name):
    """What the official code gives the network at time t (fractions of labels for VP), and what it makes of it."""
    recorded = arrays(name)
    pipeline = convert_checkpoint(checkpoint(name), description(name)["config"])
    labels = pipeline.scheduler.model_timestep(recorded["t"])
    torch.testing.assert_close(labels.float(), recorded["labels"], rtol=1e-6, atol=0)
    score = pipeline.scheduler.step_score(pipeline.unet(recorded["x"], labels).sample, recorded["x"], recorded["t"])
    assert relative_error(score, recorded["score_ema"]) < 2e-5


@pytest.mark.parametrize(
    "name, key", [pytest.param(*run, marks=() if run in QUICK else pytest.mark.slow) for run in RUNS]
)
def test_sampler_runs(checkpoint, name, key):
    recorded, about = arrays(name)[f"pc|{key}"], description(name)
    predictor, corrector, probability_flow, denoise = key.split("|")
    pipeline = convert_checkpoint(checkpoint(name), about["config"])
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config,
        predictor=predictor,
        corrector=corrector,
        probability_flow=probability_flow == "pf=1",
        denoise_final=denoise == "denoise=1",
        snr=about["pc"]["snr"],
        sampling_eps=about["pc"]["eps"],
        corrector_norm="batch",
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=about["pc"]["batch"],
        num_inference_steps=about["pc"]["num_steps"],
        generator=torch.Generator().manual_seed(about["pc"]["seed"]),
        output_type="latent",
    ).images
    if not pipeline.unet.config.center_input_sample:
        images = (images + 1) / 2
    assert relative_error(images, recorded) < 5e-4


def test_names_without_the_prefix_of_data_parallel(checkpoint, tmp_path):
    name = "ve_ncsnpp_discrete"
    content = checkpoint_content(name)
    assert all(key.startswith("module.") for key in content["model"])
    content["model"] = {key.removeprefix("module."): value for key, value in content["model"].items()}
    torch.save(content, tmp_path / "plain")
    torch.save(content, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    config = description(name)["config"]
    expected = convert_checkpoint(checkpoint(name), config).unet.state_dict()
    for path in (tmp_path / "plain", tmp_path / "legacy"):
        found = convert_checkpoint(path, config).unet.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_converted_pipeline_is_whole(checkpoint, tmp_path):
    """It was built without memory for its weights first: nothing may be left of that, and it saves and loads."""
    name = "ve_ncsnpp_continuous"
    pipeline = convert_checkpoint(checkpoint(name), description(name)["config"])
    tensors = [*pipeline.unet.parameters(), *pipeline.unet.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(p.requires_grad and p.is_contiguous() for p in pipeline.unet.parameters())
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in pipeline.unet.parameters())
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path)
    recorded = arrays(name)
    with torch.no_grad():
        output = again.unet(recorded["x"], recorded["labels"]).sample
    assert relative_error(output, recorded["output_ema"]) < 2e-5


@pytest.mark.parametrize("name", ["vp_ddpm_discrete", "ncsn_repaired", "jax_y_ncsnv2"])
def test_every_network_saves_loads_and_draws(checkpoint, tmp_path, name):
    about = description(name)
    pipeline = convert_checkpoint(checkpoint(name), about.get("config", about))
    pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is type(pipeline) and type(again.unet) is type(pipeline.unet)
    images = []
    for p in (pipeline, again):
        p.scheduler = type(p.scheduler).from_config(p.scheduler.config, correct_steps=1)
        p.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(p(batch_size=2, num_inference_steps=25, generator=generator, output_type="pt").images)
    assert images[0].isfinite().all()
    assert torch.equal(*images)
