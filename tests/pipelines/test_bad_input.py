"""What a user can get wrong: each a ValueError that says what was seen and what is allowed."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffusers_sde import ScoreSdePipeline, ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from tests.tiny import GaussianNetwork, legacy_unet, tiny_network


def make_pipe(network=None, scheduler=None):
    pipe = ScoreSdePipeline(
        network or GaussianNetwork(in_channels=3, out_channels=3), scheduler or ScoreSdeVeScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(number):
    return [torch.Generator() for _ in range(number)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, r"`batch_size` is 0; it must be"),
        ({"batch_size": -2}, r"`batch_size` is -2; it must be"),
        ({"batch_size": 1.5}, r"`batch_size` is 1.5; it must be"),
        ({"num_inference_steps": 0}, r"`num_inference_steps` is 0; it must be"),
        ({"num_inference_steps": -3}, r"`num_inference_steps` is -3; it must be"),
        ({"num_inference_steps": 2.5}, r"`num_inference_steps` is 2.5; it must be"),
        ({"batch_size": 2, "generator": generators(1)}, r"`generator` is a list of 1 for a batch of 2"),
        ({"batch_size": 2, "generator": generators(3)}, r"`generator` is a list of 3 for a batch of 2"),
        ({"batch_size": 2, "generator": []}, r"`generator` is a list of 0 for a batch of 2"),
        ({"generator": 42}, r"`generator` .* int"),
        ({"batch_size": 2, "generator": tuple(generators(2))}, r"`generator` .* tuple"),
        ({"batch_size": 2, "generator": [1, 2]}, r"`generator` .* int"),
        ({"output_type": "numpy"}, r"`output_type` is 'numpy'; allowed are 'pil', 'np', 'pt', 'latent'"),
        ({"output_type": None}, r"`output_type` is None; allowed are"),
        ({"latents": torch.zeros(2, 3, 8, 8)}, r"`latents` has shape \(2, 3, 8, 8\); \(1, 3, 8, 8\) is needed"),
        ({"latents": torch.zeros(1, 1, 8, 8)}, r"`latents` has shape \(1, 1, 8, 8\); \(1, 3, 8, 8\) is needed"),
        ({"latents": torch.zeros(1, 3, 8, 16)}, r"`latents` has shape \(1, 3, 8, 16\); \(1, 3, 8, 8\) is needed"),
        ({"latents": torch.zeros(3, 8, 8)}, r"`latents` has shape \(3, 8, 8\)"),
        ({"height": 9}, r"height and width are 9 x 8; this network takes positive multiples of 2"),
        ({"width": 7}, r"height and width are 8 x 7; this network takes"),
        ({"height": 0}, r"`height` is 0; it must be an integer of at least 1"),
        ({"width": -8}, r"`width` is -8; it must be an integer of at least 1"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\]; allowed are \['latents'\]"),
    ],
)
def test_arguments_that_are_refused(options, message):
    network = GaussianNetwork(in_channels=3, out_channels=3)
    with pytest.raises(ValueError, match=message):
        make_pipe(network)(**{"num_inference_steps": 3, "output_type": "np", **options})
    assert network.calls == 0  # before any work


def test_unknown_arguments_are_not_swallowed():
    with pytest.raises(TypeError, match="snr"):
        make_pipe()(num_inference_steps=3, snr=0.1)


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("num_steps", [0, -3, 2.5])
def test_number_of_steps_with_a_scheduler_of_diffusers(scheduler_class, num_steps):
    pipe = make_pipe(GaussianNetwork("vp", center_input_sample=False), scheduler_class())
    with pytest.raises(ValueError, match=f"`num_inference_steps` is {num_steps}; it must be"):
        pipe(num_inference_steps=num_steps)


@pytest.mark.parametrize("network", [tiny_network, legacy_unet, GaussianNetwork])
def test_network_that_is_no_field_on_images(network):
    """A learned-variance network, say, has twice as many channels out as in."""
    with pytest.raises(ValueError, match=r"3 .*channels.* 6"):
        make_pipe(network(in_channels=3, out_channels=6))(num_inference_steps=2)
    with pytest.raises(ValueError, match=r"1 .*channels.* 3"):  # would broadcast
        make_pipe(network(in_channels=1, out_channels=3))(num_inference_steps=2)


def test_two_channels_are_no_pil_image():
    pipe = make_pipe(GaussianNetwork(in_channels=2, out_channels=2))
    with pytest.raises(ValueError, match="2 channels, and PIL shows 1, 3 or 4"):
        pipe(num_inference_steps=2)
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 2)


def test_size_has_to_be_known():
    pipe = make_pipe(GaussianNetwork(sample_size=None))
    with pytest.raises(ValueError, match="no `sample_size`; give `height` and `width`"):
        pipe(num_inference_steps=2)
    with pytest.raises(ValueError, match="no `sample_size`; give `height` and `width`"):
        pipe(num_inference_steps=2, height=8)
    assert pipe(num_inference_steps=2, height=8, width=6, output_type="np").images.shape == (1, 8, 6, 1)


def test_sizes_that_the_network_does_not_divide():
    pipe = make_pipe(tiny_network(block_out_channels=(8, 8, 8)))
    with pytest.raises(ValueError, match="6 x 8; this network takes positive multiples of 4"):
        pipe(num_inference_steps=2, height=6)


def test_vp_with_too_few_steps_is_refused():
    for predictor in ("reverse_diffusion", "ancestral_sampling"):
        network = GaussianNetwork("vp")
        with pytest.raises(ValueError, match=r"more than 20 steps, or the `euler_maruyama` predictor"):
            make_pipe(network, ScoreSdeVpScheduler(predictor=predictor))(num_inference_steps=10)
        assert network.calls == 0


@pytest.mark.parametrize(
    "scheduler_class, options, message",
    [
        (ScoreSdeVeScheduler, {"predictor": "heun"}, r"'heun'; there are 'euler_maruyama', 'reverse_diffusion'"),
        (ScoreSdeVeScheduler, {"corrector": "mala"}, r"'mala'; there are 'langevin', 'ald'"),
        (ScoreSdeVeScheduler, {"corrector_norm": "image"}, r"'image'; allowed are 'sample', 'batch'"),
        (ScoreSdeSubVpScheduler, {"predictor": "ancestral_sampling"}, r"not defined for SubVPSDE; use"),
    ],
)
def test_schedulers_that_cannot_be_built(scheduler_class, options, message):
    with pytest.raises(ValueError, match=message):
        scheduler_class(**options)


# ---------------------------------------------------------------------------------------------------------------------
# NaN and infinity are reported with the step
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde, scheduler", [("ve", ScoreSdeVeScheduler), ("vp", ScoreSdeVpScheduler)])
@pytest.mark.parametrize("step", [0, 7, 19])
def test_nan_is_reported_with_the_step(sde, scheduler, step):
    pipe = make_pipe(GaussianNetwork(sde, nan_from=step), scheduler(corrector="none"))
    with pytest.raises(ValueError, match=f"NaN or infinite at step {step}\\. "):
        pipe(num_inference_steps=20)


def test_nan_with_a_scheduler_of_diffusers():
    pipe = make_pipe(GaussianNetwork("vp", nan_from=4, center_input_sample=False), DDIMScheduler())
    with pytest.raises(ValueError, match="NaN or infinite at step 4"):
        pipe(num_inference_steps=20)


def test_nan_ends_a_long_run_early():
    network = GaussianNetwork(nan_from=3)
    with pytest.raises(ValueError, match="at step 3"):
        make_pipe(network, ScoreSdeVeScheduler(corrector="none"))(num_inference_steps=2000)
    assert network.calls < 100


def test_infinity_is_reported():
    with pytest.raises(ValueError, match="NaN or infinite at step 0"):
        make_pipe(GaussianNetwork())(num_inference_steps=3, latents=torch.full((1, 1, 8, 8), torch.inf))
