"""Official configurations as runs: every one by name, every value by a flag or `--set`."""

import logging

import pytest
import torch

from diffusers_sde.configs import official_config, official_config_names
from diffusers_sde.training import build_network, build_scheduler, parse_args, preset_defaults, read_preset, train
from diffusers_sde.training.components import check_fit
from diffusers_sde.training.presets import resolved_preset
from diffusers_sde.training.times import TrainingTimes
from tests.checkpoints import reference_json

CIFAR = "ve/cifar10_ncsnpp_continuous"


def parse(*argv):
    return parse_args(["--data", "photos", *argv])


@pytest.mark.parametrize("name", official_config_names())
def test_every_official_configuration_is_a_run(name):
    args = parse("--config", name)
    config = official_config(name)
    with torch.device("meta"):
        network = build_network(args)
    scheduler = build_scheduler(args)
    check_fit(network, scheduler)
    assert network.config.in_channels == config["data"]["num_channels"]
    assert scheduler.config.num_train_timesteps == config["model"]["num_scales"]
    levels = TrainingTimes(scheduler, t_min=args.training_eps)(torch.tensor([0.0, 0.5]))
    assert levels.timestep.is_floating_point() is scheduler.config.continuous
    assert (args.total_batch_size, args.learning_rate) == (config["training"]["batch_size"], config["optim"]["lr"])
    assert (args.loss_reduction == "mean") is config["training"]["reduce_mean"]
    assert (args.ema_decay, args.seed) == (config["model"]["ema_rate"], config["seed"])


def test_full_size_networks_have_the_official_number_of_parameters():
    official = reference_json("official_parameters")
    for name in (CIFAR, "subvp/cifar10_ddpmpp_deep_continuous", "vp/ddpm/cifar10_continuous"):
        with torch.device("meta"):
            network = build_network(parse("--config", name))
        parameters = official[name]["parameters"]  # name, shape, whether trained
        expected = sum(torch.Size(shape).numel() for _, shape, trained in parameters if trained)
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected


def test_flags_win_over_the_configuration():
    argv = (
        "--learning_rate",
        "3e-4",
        "--no-random_flip",
        "--sigma_max",
        "90",
        "--snr",
        "0.2",
        "--sampling_eps",
        "1e-4",
    )
    args = parse("--config", CIFAR, *argv)
    assert (args.learning_rate, args.random_flip, args.lr_warmup_steps) == (3e-4, False, 5000)
    config = build_scheduler(args).config
    assert (config.sigma_max, config.snr, config.sampling_eps, config.corrector) == (90, 0.2, 1e-4, "langevin")


def test_flags_of_data_and_noise_reach_the_network():
    argv = ("--resolution", "16x24", "--channels", "1", "--sigma_max", "30", "--num_train_timesteps", "50")
    network = build_network(
        parse("--config", "ve/cifar10_ncsnpp", "--set", "model.nf=8", "model.ch_mult=[1,2]", *argv)
    )
    config = network.config
    assert (tuple(config.sample_size), config.in_channels) == ((16, 24), 1)
    assert (config.sigma_max, config.num_train_timesteps, list(config.block_out_channels)) == (30, 50, [8, 16])


def test_values_of_the_configuration_are_json_or_text():
    config = read_preset(CIFAR, ["model.dropout=0", "model.fir=false", "sampling.predictor=ancestral_sampling"])
    assert (config["model"]["dropout"], config["model"]["fir"]) == (0, False)
    assert config["sampling"]["predictor"] == "ancestral_sampling"
    assert resolved_preset(parse("--config", CIFAR, "--set", "model.nf=32"))["model"]["nf"] == 32


def test_a_value_of_a_wrong_type_is_told():
    with pytest.raises(ValueError, match=r"--config ve/cifar10_ncsnpp_continuous model.nf=x: a value is not allowed"):
        build_network(parse("--config", CIFAR, "--set", "model.nf=x"))


def test_a_configuration_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"data": {}, "model": {}, "training": {}, "optim": {}}')
    with pytest.raises(ValueError, match="lacks the value 'sde'"):
        preset_defaults(read_preset(str(path), []))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"mine.json is not JSON"):
        read_preset(str(path), [])


def test_celeba_is_cropped_as_officially():
    assert parse("--config", "ve/celeba_ncsnpp").crop_size == 140
    assert parse("--config", CIFAR).crop_size is None


def test_a_dry_run_tells_the_plan_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    assert train(parse_args(["--config", CIFAR, "--dry-run", "--gradient_accumulation_steps", "4"])) == 0
    for part in (
        "NCSNppModel, 62.76 M parameters, images of 32 x 32 pixels and 3 channels in [0, 1]",
        "VESDE, sigma_min 0.01, sigma_max 50, continuous time; sampled by reverse_diffusion + langevin (snr 0.16) in",
        "AdamW, learning rate 0.0002 (constant_with_warmup, 5000 steps of warm-up)",
        "32 images x 4 passes x 1 processes = 128 images per step",
        "1.26 GB for weights, gradients, moments and average",
    ):
        assert part in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_of_the_activations_is_what_a_forward_pass_keeps():
    """Counted on real tensors; buffers of the attention and of normalisation are where it may differ."""
    from diffusers_sde.training.plan import activation_bytes

    network = build_network(parse("--config", CIFAR, "--set", "model.nf=16", "model.num_res_blocks=1")).train()
    parameters = {p.data_ptr() for p in network.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(torch.rand(4, 3, 32, 32), torch.rand(4) + 0.1)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert output is not None
    assert activation_bytes(network, 4) == pytest.approx(measured, rel=0.15)
