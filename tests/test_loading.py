"""Loading and saving through diffusers: the ways of docs and design, each as a user meets it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

import diffusers_sde
from diffusers_sde import (
    NCSNppModel,
    ScoreSdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from diffusers_sde.registration import register
from diffusers_sde.sde.operators import GreyAxis
from tests.tiny import assert_alike, legacy_unet, tiny_network

SCHEDULERS = (ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler)


def sample(pipe, seed=0, **kwargs):
    options = {"batch_size": 2, "num_inference_steps": 5, "output_type": "latent"} | kwargs
    return pipe(generator=torch.Generator().manual_seed(seed), **options).images


def python(code, *arguments, cache):
    """Run `code` in a fresh interpreter, with the package importable but not imported."""
    folder = Path(diffusers_sde.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "HF_MODULES_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def pipe():
    pipe = ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler(sigma_max=10.0, snr=0.1))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def index_of(folder):
    return json.loads((folder / "model_index.json").read_text())


# ---------------------------------------------------------------------------------------------------------------------
# Our layout
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
@pytest.mark.parametrize("loader", [DiffusionPipeline, ScoreSdePipeline])
def test_saved_pipeline_loads_without_trust(tmp_path, scheduler_class, loader):
    pipe = ScoreSdePipeline(tiny_network(), scheduler_class(snr=0.11))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is ScoreSdePipeline
    assert type(loaded.unet) is NCSNppModel
    assert type(loaded.scheduler) is scheduler_class
    assert loaded.scheduler.config.snr == 0.11
    assert_alike(sample(loaded), sample(pipe))


def test_index_names_the_package_and_public_classes(tmp_path, pipe):
    pipe.save_pretrained(tmp_path / "first")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for name in ("first", "second"):
        index = index_of(tmp_path / name)
        assert index.pop("_diffusers_version")
        assert index == {
            "_class_name": "ScoreSdePipeline",
            "scheduler": ["diffusers_sde", "ScoreSdeVeScheduler"],
            "unet": ["diffusers_sde", "NCSNppModel"],
        }
        assert not list((tmp_path / name).rglob("*.py"))
    assert Path(loaded.config["_name_or_path"]) == tmp_path / "first"  # the object still knows where it came from
    assert_alike(sample(DiffusionPipeline.from_pretrained(tmp_path / "second")), sample(pipe))


def test_components_load_by_themselves(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    assert type(diffusers.AutoModel.from_pretrained(str(tmp_path), subfolder="unet")) is NCSNppModel
    network = NCSNppModel.from_pretrained(tmp_path, subfolder="unet")
    scheduler = ScoreSdeVeScheduler.from_pretrained(tmp_path, subfolder="scheduler", sigma_max=15.0)
    assert scheduler.config.sigma_max == 15.0
    with pytest.raises(ValueError, match="Take ScoreSdeVeScheduler"):
        ScoreSdeVpScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    other = ScoreSdePipeline.from_pretrained(tmp_path, unet=network, scheduler=scheduler)
    assert other.unet is network
    assert other.scheduler is scheduler


FRESH = """
import sys
import diffusers
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_loading_utils as utils
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin, ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel

plain, remote, again = sys.argv[1:]
places = [diffusers, diffusers.pipelines, diffusers.schedulers, diffusers.models, utils, UNet2DModel]
places += [ConfigMixin, ModelMixin, SchedulerMixin, DiffusionPipeline, ScoreSdeVePipeline, ScoreSdeVeScheduler]
before = [dict(vars(place)) for place in places]
tables = {key: dict(value) for key, value in utils.LOADABLE_CLASSES.items()}

# Remote code asks for trust ...
try:
    DiffusionPipeline.from_pretrained(remote)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise AssertionError("remote code ran without trust")
assert "diffusers_sde" not in sys.modules

# ... and with it gives the installed classes, not copies.
pipe = DiffusionPipeline.from_pretrained(remote, trust_remote_code=True)
import diffusers_sde
assert type(pipe) is diffusers_sde.ScoreSdePipeline, type(pipe)
assert type(pipe.unet) is diffusers_sde.NCSNppModel, type(pipe.unet)
assert type(pipe.scheduler) is diffusers_sde.ScoreSdeVeScheduler
assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)
pipe.save_pretrained(again)

# Our layout needs no trust once the package is imported.
pipe = DiffusionPipeline.from_pretrained(plain)
assert type(pipe) is diffusers_sde.ScoreSdePipeline

# Nothing of diffusers' was patched or replaced, its own classes least of all.
for place, old in zip(places, before):
    now = dict(vars(place))
    changed = [name for name, value in old.items() if name not in now or now[name] is not value]
    assert not changed, (place, changed)
    ours = {n for n in set(now) - set(old) if str(getattr(now[n], "__module__", "")).startswith("diffusers_sde")}
    assert not ours or place is diffusers, (place, ours)
assert set(utils.LOADABLE_CLASSES) - set(tables) == {"diffusers_sde"}
assert {key: value for key, value in utils.LOADABLE_CLASSES.items() if key in tables} == tables
assert diffusers.ScoreSdeVeScheduler is ScoreSdeVeScheduler is not diffusers_sde.ScoreSdeVeScheduler
assert diffusers.ScoreSdeVePipeline is ScoreSdeVePipeline
assert diffusers.ScoreSdePipeline is diffusers_sde.ScoreSdePipeline
"""


def test_fresh_interpreter(tmp_path, pipe):
    """What depends on whether the package is imported."""
    pipe.save_pretrained(tmp_path / "plain")
    pipe.save_pretrained(tmp_path / "remote", remote_code=True)
    folders = [tmp_path / name for name in ("plain", "remote", "again")]
    python(FRESH, *folders, cache=tmp_path / "cache")
    index = index_of(tmp_path / "again")
    assert index["_class_name"] == "ScoreSdePipeline"
    assert index["unet"] == ["diffusers_sde", "NCSNppModel"]
    assert_alike(sample(DiffusionPipeline.from_pretrained(tmp_path / "again")), sample(pipe))


# ---------------------------------------------------------------------------------------------------------------------
# Remote-code layout
# ---------------------------------------------------------------------------------------------------------------------


def test_remote_code_is_one_line_stubs(tmp_path, pipe):
    pipe.save_pretrained(tmp_path, remote_code=True)
    stubs = {str(path.relative_to(tmp_path)): path.read_text().splitlines() for path in tmp_path.rglob("*.py")}
    assert {path: len(lines) for path, lines in stubs.items()} == {
        "pipeline.py": 1,
        str(Path("scheduler", "diffusers_sde.py")): 1,
        str(Path("unet", "diffusers_sde.py")): 1,
    }
    assert all(line.startswith("from diffusers_sde import ") for lines in stubs.values() for line in lines)
    index = index_of(tmp_path)
    assert index["_class_name"] == ["pipeline", "ScoreSdePipeline"]
    assert index["unet"] == ["diffusers_sde", "NCSNppModel"]
    pipe.save_pretrained(tmp_path / "plain")  # the choice is for one call
    assert not list((tmp_path / "plain").rglob("*.py"))


def test_stub_of_a_network_of_diffusers_is_not_written(tmp_path):
    ScoreSdePipeline(legacy_unet(), ScoreSdeVeScheduler()).save_pretrained(tmp_path, remote_code=True)
    assert index_of(tmp_path)["unet"] == ["diffusers", "UNet2DModel"]
    assert not list((tmp_path / "unet").glob("*.py"))
    assert (tmp_path / "scheduler" / "diffusers_sde.py").is_file()


def test_plain_layout_over_a_remote_code_layout(tmp_path, pipe):
    """Saved again without stubs, the folder asks for trust no more."""
    pipe.save_pretrained(tmp_path, remote_code=True)
    pipe.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is ScoreSdePipeline


# ---------------------------------------------------------------------------------------------------------------------
# Published repositories: everything at the root, names and classes of diffusers' early versions
# ---------------------------------------------------------------------------------------------------------------------

LEGACY_VALUES = {
    "correct_steps": 1,
    "num_train_timesteps": 25,
    "sampling_eps": 1e-5,
    "sigma_max": 0.6,  # so small that a random network leaves many pixels within [0, 1]
    "sigma_min": 0.01,
    "snr": 0.1,
}


def write_legacy_repository(folder, weights):
    """A folder of the shape of google/ncsnpp-*."""
    unet = legacy_unet()
    unet.save_pretrained(folder, safe_serialization=weights == "safetensors")
    assert {path.suffix for path in folder.iterdir()} == {".json", f".{weights}"}
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key in LEGACY_KEYS} | {"_diffusers_version": "0.1.3"}
    (folder / "config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "ScoreSdeVeScheduler", "_diffusers_version": "0.1.3", "tensor_format": "pt"}
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler | LEGACY_VALUES))
    index = {
        "_class_name": "ScoreSdeVePipeline",
        "_diffusers_version": "0.1.3",
        "scheduler": ["diffusers", "ScoreSdeVeScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return unet


LEGACY_KEYS = {
    *("_class_name", "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "down_block_types"),
    *("downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block", "sample_size"),
    *("mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels", "time_embedding_type"),
    "up_block_types",
}


@torch.no_grad()
def official_ve_sampler(network, shape, seed, num_steps, snr, sigma_min, sigma_max, sampling_eps, **_):
    """The Predictor-Corrector loop as published: Langevin corrector by batch means, reverse-diffusion predictor."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = torch.exp(torch.linspace(np.log(sigma_min), np.log(sigma_max), num_steps))
    x = torch.randn(shape, generator=generator) * sigma_max
    for t in torch.linspace(1, sampling_eps, num_steps):
        label = torch.full(shape[:1], float(sigma_min * (sigma_max / sigma_min) ** t))
        score = network(x, label).sample
        noise = torch.randn(shape, generator=generator)
        score_norm = score.reshape(shape[0], -1).norm(dim=-1).mean()
        noise_norm = noise.reshape(shape[0], -1).norm(dim=-1).mean()
        step_size = (snr * noise_norm / score_norm) ** 2 * 2
        x = x + step_size * score + (2 * step_size) ** 0.5 * noise
        place = int(t * (num_steps - 1))
        variance = sigmas[place] ** 2 - (sigmas[place - 1] ** 2 if place > 0 else 0)
        x_mean = x + variance * network(x, label).sample
        x = x_mean + variance**0.5 * torch.randn(shape, generator=generator)
    return x_mean


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_legacy_repository_samples_as_the_official_code(tmp_path, weights):
    unet = write_legacy_repository(tmp_path, weights)
    loaded = ScoreSdePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is ScoreSdePipeline
    assert type(loaded.unet) is diffusers.UNet2DModel
    for name, tensor in unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor)
    assert type(loaded.scheduler) is ScoreSdeVeScheduler
    assert {key: loaded.scheduler.config[key] for key in LEGACY_VALUES} == LEGACY_VALUES

    loaded.scheduler = ScoreSdeVeScheduler.from_config(loaded.scheduler.config, corrector_norm="batch")
    images = sample(loaded, seed=3, output_type="pt", num_inference_steps=None)
    expected = official_ve_sampler(unet, (2, 3, 8, 8), 3, 25, **LEGACY_VALUES)
    inside = (expected > 0) & (expected < 1)
    assert inside.float().mean() > 0.25  # the comparison is not one of clamped pixels
    assert (images - expected.clamp(0, 1)).abs().max() < 1e-4


def test_the_noise_of_a_real_config_samples_as_the_official_code():
    values = LEGACY_VALUES | {"sigma_max": 348.0, "snr": 0.075, "num_train_timesteps": 40, "correct_steps": 1}
    unet = legacy_unet()
    pipe = ScoreSdePipeline(unet, ScoreSdeVeScheduler(**values, corrector_norm="batch"))
    state = sample(pipe, seed=4, num_inference_steps=None)
    expected = official_ve_sampler(unet, (2, 3, 8, 8), 4, 40, **values)
    assert (state - expected).abs().max() < 1e-4 * expected.abs().max()


def test_legacy_repository_through_diffusers_stays_diffusers(tmp_path):
    write_legacy_repository(tmp_path, "safetensors")
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe) is diffusers.ScoreSdeVePipeline
    assert type(pipe.scheduler) is diffusers.ScoreSdeVeScheduler


def test_legacy_repository_saves_in_our_layout(tmp_path):
    write_legacy_repository(tmp_path / "legacy", "safetensors")
    loaded = ScoreSdePipeline.from_pretrained(tmp_path / "legacy")
    loaded.save_pretrained(tmp_path / "ours")
    index = index_of(tmp_path / "ours")
    assert index["scheduler"] == ["diffusers_sde", "ScoreSdeVeScheduler"]
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    scheduler = json.loads((tmp_path / "ours" / "scheduler" / "scheduler_config.json").read_text())
    assert "tensor_format" not in scheduler
    assert LEGACY_VALUES.items() <= scheduler.items()
    again = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(again) is ScoreSdePipeline
    assert_alike(sample(again), sample(loaded))


def test_a_part_of_the_legacy_repository_is_missing(tmp_path):
    write_legacy_repository(tmp_path, "safetensors")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        ScoreSdePipeline.from_pretrained(tmp_path)


def test_scheduler_of_diffusers_is_turned_into_ours():
    theirs = diffusers.ScoreSdeVeScheduler(num_train_timesteps=7, snr=0.2, sigma_min=0.1, sigma_max=3.0)
    pipe = ScoreSdePipeline(legacy_unet(), theirs)
    assert type(pipe.scheduler) is ScoreSdeVeScheduler
    keys = ("num_train_timesteps", "snr", "sigma_min", "sigma_max", "sampling_eps", "correct_steps")
    assert [pipe.scheduler.config[key] for key in keys] == [theirs.config[key] for key in keys]


def test_published_ddpm_repository(tmp_path):
    """google/ddpm-*: flat, an epsilon-predicting network with diffusers' scheduler, which stays."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = legacy_unet(time_embedding_type="positional", norm_num_groups=8, center_input_sample=False, **blocks)
    unet.save_pretrained(tmp_path)
    diffusers.DDPMScheduler(num_train_timesteps=20, beta_end=0.3).save_pretrained(tmp_path)
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet2DModel"]}))
    ours, theirs = ScoreSdePipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)
    assert type(theirs) is diffusers.DDPMPipeline
    options = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
    images = [p(generator=torch.Generator().manual_seed(1), **options).images for p in (ours, theirs)]
    np.testing.assert_allclose(images[0], images[1], rtol=0, atol=1e-6)

    # Its scheduler as ours: the same forward process under the samplers of the SDE.
    for predictor in ("ancestral_sampling", "euler_maruyama"):
        ours.scheduler = ScoreSdeVpScheduler.from_config(theirs.scheduler.config, predictor=predictor)
        assert (ours.scheduler.config.num_train_timesteps, ours.scheduler.config.continuous) == (20, False)
        ours.set_progress_bar_config(disable=True)
        assert sample(ours, num_inference_steps=20).isfinite().all()
    ours.save_pretrained(tmp_path / "ours")
    again = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    assert type(again) is ScoreSdePipeline
    assert_alike(sample(again), sample(ours))


# ---------------------------------------------------------------------------------------------------------------------
# Registration
# ---------------------------------------------------------------------------------------------------------------------


def test_registration_is_additive_and_may_be_repeated():
    before = dict(vars(diffusers))
    table = dict(LOADABLE_CLASSES)
    register("diffusers_sde", pipelines=(ScoreSdePipeline,), components=(NCSNppModel, ScoreSdeVeScheduler))
    assert dict(vars(diffusers)) == before
    assert dict(LOADABLE_CLASSES) == table
    assert diffusers.ScoreSdeVeScheduler is not ScoreSdeVeScheduler


def test_a_name_that_diffusers_owns_is_refused():
    theirs = diffusers.DDPMPipeline
    ours = type("DDPMPipeline", (ScoreSdePipeline,), {})
    with pytest.raises(RuntimeError, match="has a class DDPMPipeline of its own"):
        register("diffusers_sde", pipelines=(ours,), components=())
    assert diffusers.DDPMPipeline is theirs


# ---------------------------------------------------------------------------------------------------------------------
# Other pipelines of the same components, other precisions
# ---------------------------------------------------------------------------------------------------------------------


def conditional_calls():
    """A call of each conditional pipeline on 8 x 8 colour images."""
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 3, "generator": generator, "output_type": "latent"}
    grey, colour = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    return {
        diffusers_sde.ScoreSdeInpaintPipeline: lambda pipe: pipe(colour, mask, **options),
        diffusers_sde.ScoreSdeColorizationPipeline: lambda pipe: pipe(grey, **options),
        diffusers_sde.ScoreSdeInverseProblemPipeline: lambda pipe: pipe(grey, GreyAxis(3), **options),
        diffusers_sde.ScoreSdeEditPipeline: lambda pipe: pipe(colour, **options),
    }


@pytest.mark.parametrize("name", ["Inpaint", "Colorization", "InverseProblem", "Edit"])
def test_conditional_pipelines_are_saved_loaded_and_share_the_network(tmp_path, pipe, name):
    cls = getattr(diffusers_sde, f"ScoreSde{name}Pipeline")
    conditional = cls.from_pipe(pipe)
    assert conditional.unet is pipe.unet
    conditional.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is cls
    call = conditional_calls()[cls]
    for one in (conditional, loaded):
        one.set_progress_bar_config(disable=True)
    first, second = call(conditional).images, conditional_calls()[cls](loaded).images
    assert_alike(first, second)
    assert ScoreSdePipeline.from_pipe(loaded).unet is loaded.unet


def test_from_pipe_keeps_the_components(pipe):
    other = ScoreSdePipeline.from_pipe(pipe)
    assert other is not pipe
    assert other.unet is pipe.unet
    assert type(other.scheduler) is ScoreSdeVeScheduler
    assert other.scheduler.config == pipe.scheduler.config
    vp = ScoreSdePipeline.from_pipe(pipe, scheduler=ScoreSdeVpScheduler())
    assert vp.unet is pipe.unet
    assert type(vp.scheduler) is ScoreSdeVpScheduler


@pytest.mark.parametrize("argument", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("loader", [DiffusionPipeline, ScoreSdePipeline])
def test_half_precision_keeps_the_frequencies(tmp_path, pipe, argument, loader):
    frequencies = pipe.unet.time_proj.weight.clone()
    pipe.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path, **{argument: torch.bfloat16})
    assert loaded.unet.conv_in.weight.dtype is torch.bfloat16
    assert loaded.unet.time_proj.weight.dtype is torch.float32
    assert torch.equal(loaded.unet.time_proj.weight, frequencies)
    moved = ScoreSdePipeline.from_pipe(pipe, torch_dtype=torch.bfloat16)
    assert moved.unet.conv_in.weight.dtype is torch.bfloat16
    assert torch.equal(moved.unet.time_proj.weight, frequencies)
    assert sample(moved).isfinite().all()


def test_missing_folder(tmp_path):
    with pytest.raises((OSError, ValueError), match="nowhere"):
        ScoreSdePipeline.from_pretrained(str(tmp_path / "nowhere"), local_files_only=True)


def test_embedded_or_moved_folder_is_complete(tmp_path, pipe):
    """A saved pipeline can be moved; nothing in it points back."""
    pipe.save_pretrained(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert torch.equal(sample(DiffusionPipeline.from_pretrained(tmp_path / "there")), sample(pipe))
