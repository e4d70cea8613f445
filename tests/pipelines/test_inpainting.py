"""`ScoreSdeInpaintPipeline`: the official runs, what stays of the image, and what comes in its place."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.conversion import convert_checkpoint
from diffusers_sde.pipelines.pipeline_score_sde_inpaint import ScoreSdeInpaintPipeline, read_mask
from diffusers_sde.pipelines.pipeline_score_sde_inverse_problem import METHODS
from tests.checkpoints import REFERENCE, description, relative_error, write_checkpoint
from tests.oracles import seeded
from tests.tiny import ChainNetwork, GaussianNetwork, assert_alike, tiny_network

RECORDED = ["ve_ncsnpp_continuous", "ve_ncsnpp_skip_continuous", "vp_ddpmpp_continuous", "subvp_ddpmpp_continuous"]


def rand(*shape):
    return torch.rand(*shape, generator=seeded(11))


def make_pipe(network=None, **scheduler):
    scheduler = ScoreSdeVeScheduler(**{"sigma_max": 3.0, **scheduler})
    pipe = ScoreSdeInpaintPipeline(network or tiny_network(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inpaint(pipe, image, mask, seed=0, **options):
    options = {"num_inference_steps": 3, "output_type": "pt", **options}
    return pipe(image, mask, **{"generator": seeded(seed), **options}).images


def half_mask(height=8, width=8):
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs(name, tmp_path):
    """The official inpainting, seed for seed: 50 steps with Langevin corrector, for sub-VP without."""
    recorded = load_file(REFERENCE / "conditional" / f"{name}.safetensors")
    run = json.loads((REFERENCE / "conditional" / f"{name}.json").read_text())
    pipe = ScoreSdeInpaintPipeline.from_pipe(
        convert_checkpoint(write_checkpoint(tmp_path, name), description(name)["config"])
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config,
        predictor=run["predictor"],
        corrector=run["corrector"],
        denoise_final=run["denoise"],
        snr=run["snr"],
        sampling_eps=run["eps"],
        corrector_norm="batch",
    )
    centered = not pipe.unet.config.center_input_sample
    data, known = recorded["data"], recorded["mask"][:, :1]
    image = data / 2 + 0.5 if centered else data
    options = {"num_inference_steps": run["num_steps"], "output_type": "latent"}
    state = inpaint(pipe, image, 1 - known, seed=run["seed_inpaint"], **options)
    state = state / 2 + 0.5 if centered else state
    assert relative_error(state, recorded["inpainted"]) < 5e-4


# ---------------------------------------------------------------------------------------------------------------------
# What is known stays
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center_input_sample", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_known_pixels_keep_their_bits(method, dtype, center_input_sample):
    pipe = make_pipe(tiny_network(center_input_sample=center_input_sample))
    image = torch.rand(2, 3, 8, 8, generator=seeded(1), dtype=dtype)
    mask = torch.rand(2, 1, 8, 8, generator=seeded(2))
    given = image.clone(), mask.clone()
    result = inpaint(pipe, image, mask, method=method, num_samples=2)
    assert torch.equal(image, given[0]) and torch.equal(mask, given[1])
    assert result.dtype == dtype and result.shape == (4, 3, 8, 8)
    known = (mask < 0.5).expand_as(image)
    for i in range(2):
        for sample in result[2 * i : 2 * i + 2]:  # image by image
            assert torch.equal(sample[known[i]], image[i][known[i]])
            assert (sample[~known[i]] != image[i][~known[i]]).float().mean() > 0.9
    assert 0 <= result.min() and result.max() <= 1


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_known_pixels_keep_their_8_bits(channels, mode):
    pipe = make_pipe(tiny_network(in_channels=channels, out_channels=channels))
    array = np.random.default_rng(0).integers(0, 256, (9, 7, 3) if channels == 3 else (9, 7), dtype=np.uint8)
    mask = np.random.default_rng(1).integers(0, 256, (9, 7), dtype=np.uint8)
    forms = {
        "pil": (Image.fromarray(array), Image.fromarray(mask)),
        "colour mask": (Image.fromarray(array), Image.fromarray(mask).convert("RGB")),
        "array": (array, mask),
        "tensors": (torch.from_numpy(array.reshape(9, 7, -1)).permute(2, 0, 1), torch.from_numpy(mask)),
        "bool": ([Image.fromarray(array)], mask >= 128),
    }
    results = []
    for image, mask_image in forms.values():
        (result,) = inpaint(pipe, image, mask_image, output_type="pil")
        assert (result.mode, result.size) == (mode, (7, 9))
        results.append(np.asarray(result))
    known = mask < 128
    assert (results[0][known] == array[known]).all()
    assert all((result == results[0]).all() for result in results)


def test_mask_is_read_as_diffusers_reads_it():
    """Grey is thresholded at a half, which counts as white."""
    levels = np.array([[0, 1, 127, 128, 254, 255]], dtype=np.uint8)
    processor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    picture = Image.fromarray(levels)
    image = torch.zeros(1, 3, 1, 6)
    assert torch.equal(read_mask(picture, image).float(), processor.preprocess(picture))
    exact = torch.tensor([[0.0, 0.49999, 0.5, 0.50001, 1.0, 0.2]])
    assert torch.equal(read_mask(exact, image).float(), processor.preprocess(exact.clone()[None]))


# ---------------------------------------------------------------------------------------------------------------------
# What is unknown is drawn
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_unknown_region_is_free_of_noise(method):
    """Data that are 0.5 everywhere: nothing else may come out, where the official mean keeps noise of sigma_min."""
    pipe = make_pipe(GaussianNetwork(mean=0.5, std=1e-6), sigma_min=0.05)
    image = torch.full((1, 8, 8), 0.5)
    options = {"method": method, "num_samples": 4, "num_inference_steps": 50, "output_type": "latent"}
    state = inpaint(pipe, image, half_mask(), **options)
    assert (state - 0.5).abs().max() < 1e-4
    pipe = make_pipe(GaussianNetwork(mean=0.5, std=1e-6), sigma_min=0.05, denoise_final=False)
    assert (inpaint(pipe, image, half_mask(), **options) - 0.5).std() > 0.03


@pytest.mark.parametrize("method", METHODS)
def test_independent_pixels_are_those_of_the_data(method):
    """Known pixels say nothing of the others, whose moments are those of the prior."""
    pipe = make_pipe(GaussianNetwork(mean=0.5, std=0.2), corrector="none")
    options = {"method": method, "num_samples": 100, "num_inference_steps": 100, "output_type": "latent"}
    state = inpaint(pipe, rand(1, 8, 8), half_mask(), data_std=0.2, **options)[..., :4]
    assert abs(state.mean() - 0.5) < 0.015
    assert abs(state.std() / 0.2 - 1) < 0.05


def test_network_with_a_scheduler_of_diffusers():
    """A DDPM chain: the scheduler is replaced by ours of the same forward process."""
    pipe = ScoreSdeInpaintPipeline(ChainNetwork(mean=0.2, std=0.3), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    options = {"num_samples": 100, "num_inference_steps": 200, "output_type": "latent"}
    state = inpaint(pipe, rand(1, 8, 8), half_mask(), method="pigdm", data_std=0.15, **options)[..., :4]
    assert abs(state.mean() - 0.2) < 0.02
    assert abs(state.std() / 0.3 - 1) < 0.1


@pytest.mark.parametrize("size", [(7, 9), (13, 5), (2, 3)])
def test_any_size(size):
    pipe = make_pipe(tiny_network(block_out_channels=(8, 8, 8)))
    image, seen = rand(1, 3, *size), []
    result = inpaint(pipe, image, half_mask(*size), callback_on_step_end=lambda p, i, t, k: seen.append(k) or {})
    assert result.shape == image.shape
    assert torch.equal(result[..., size[1] // 2 :], image[..., size[1] // 2 :])
    assert all(side % 4 == 0 for side in seen[0]["latents"].shape[2:])


def test_one_mask_for_all_images_or_one_for_each():
    pipe = make_pipe()
    images = rand(2, 3, 8, 8)
    one = inpaint(pipe, images, half_mask())
    assert torch.equal(one, inpaint(pipe, images, [half_mask(), half_mask()]))
    other = inpaint(pipe, images, [half_mask(), 1 - half_mask()])
    assert torch.equal(other[1, :, :, :4], images[1, :, :, :4])
    assert torch.equal(other[0], inpaint(pipe, images, half_mask())[0]) or (other[0] - one[0]).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["replacement", "pigdm"])
def test_every_sample_is_drawn_with_its_own_mask(method):
    """Known pixels are in the final states already, not only pasted into the images."""
    images, masks = rand(2, 3, 8, 8), torch.stack([half_mask(), 1 - half_mask()])[:, None]
    pipe = make_pipe(tiny_network(center_input_sample=True))
    state = inpaint(pipe, images, masks, method=method, num_samples=2, output_type="latent")
    known = (masks == 0).expand_as(images)
    for i in range(4):
        torch.testing.assert_close(state[i][known[i // 2]], images[i // 2][known[i // 2]], rtol=0, atol=1e-4)


def test_sample_does_not_depend_on_its_batch():
    pipe = make_pipe()
    images, mask = rand(2, 3, 8, 8), rand(2, 1, 8, 8)
    together = inpaint(pipe, images, mask, num_samples=2, generator=[seeded(i) for i in range(4)])
    alone = [inpaint(pipe, images[i // 2], mask[i // 2], generator=[seeded(i)]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def test_components_are_shared_and_outputs_as_elsewhere(tmp_path):
    plain = ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler(sigma_max=3.0))
    pipe = ScoreSdeInpaintPipeline.from_pipe(plain)
    assert pipe.unet is plain.unet
    plain.save_pretrained(tmp_path)
    loaded = ScoreSdeInpaintPipeline.from_pretrained(tmp_path)
    image = rand(1, 3, 8, 8)
    for p in (pipe, loaded):
        p.set_progress_bar_config(disable=True)
    assert_alike(inpaint(pipe, image, half_mask()), inpaint(loaded, image, half_mask()))
    output = pipe(image, half_mask(), num_inference_steps=2, output_type="np")
    assert output["sample"] is output.images and output.images.shape == (1, 8, 8, 3)
    assert len(pipe(image, half_mask(), num_inference_steps=2, return_dict=False)) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_image": half_mask(8, 6)}, "1 masks of 8 x 6, `image` 2 images of 8 x 8"),
        ({"mask_image": rand(3, 1, 8, 8)}, "3 masks of 8 x 8, `image` 2 images"),
        ({"mask_image": torch.zeros(8, 8)}, r"mask 0 of `mask_image` leaves nothing to repaint"),
        ({"mask_image": [half_mask(), torch.ones(8, 8)]}, r"mask 1 of `mask_image` leaves nothing known"),
        ({"mask_image": torch.full((8, 8), 0.49)}, r"nothing to repaint: its values are in \[0.49, 0.49\]"),
        ({"mask_image": half_mask() * 255}, "`mask_image` has values in .*divide by 255"),
        ({"mask_image": half_mask() * torch.nan}, "`mask_image` has 64 NaN"),
        ({"mask_image": rand(3, 8, 8)}, "`mask_image` has 3 masks of 8 x 8, `image` 2 images"),
        ({"mask_image": 3 * half_mask().long()}, "`mask_image` is of type torch.int64"),
        ({"mask_image": "mask.png"}, "`mask_image` is or has a str"),
        ({"mask_image": []}, "`mask_image` is an empty list"),
        ({"image": rand(2, 1, 8, 8)}, "takes 3 channels"),
        ({"image": rand(2, 3, 8, 8) * 2 - 1}, r"images are in \[0, 1\]"),
        ({"image": torch.full((2, 3, 8, 8), torch.nan)}, "384 NaN"),
        ({"method": "ddrm"}, "`method` is 'ddrm'"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"num_samples": 2, "generator": [seeded()] * 2}, "list of 2 for a batch of 4"),
        ({"guidance_scale": 3.0}, "'replacement' has no guidance"),
        ({"output_type": "numpy"}, "`output_type` is 'numpy'"),
        ({"latents": torch.zeros(2, 3, 8, 6)}, r"`latents` has shape \(2, 3, 8, 6\)"),
    ],
)
def test_arguments_that_are_refused(options, message):
    network = GaussianNetwork(in_channels=3, out_channels=3)
    arguments = {"image": rand(2, 3, 8, 8), "mask_image": half_mask(), "num_inference_steps": 3, **options}
    with pytest.raises(ValueError, match=message):
        make_pipe(network)(**arguments)
    assert network.calls == 0
