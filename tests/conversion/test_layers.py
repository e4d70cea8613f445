"""Activations and normalisations of the official configurations, on recorded networks with other ones put in.

A network whose outputs are recorded is converted with another activation or normalisation in its configuration. It
must equal the recorded network with the official formula, restated here, in the place of the old one.
"""

import msgpack
import numpy as np
import pytest
import torch
from torch import nn

from diffusers_sde.conversion import convert
from diffusers_sde.conversion.architectures import build_architecture, build_network
from diffusers_sde.models.normalization import InstanceNormPlus
from tests.checkpoints import arrays, checkpoint_bytes, description, relative_error

ACTIVATIONS = {
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "relu": lambda x: x * (x > 0),
    "lrelu": lambda x: torch.maximum(x, 0.2 * x),
    "swish": lambda x: x / (1 + (-x).exp()),
}
NETWORKS = ["ve_ncsnpp_continuous", "jax_y_residual_out_fir", "vp_ddpm_discrete", "jax_y_ncsnv2", "ncsn_repaired"]


def configuration(name, **changes):
    config = description(name)
    config = config.get("config", config)
    config["model"] |= changes
    return config


class Restated(nn.Module):
    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, x, label=None):
        return self.formula(x)


def replace(network, kinds, make):
    """Put `make(path)` in the place of every module of these classes; returns how many there were."""
    paths = [path for path, module in network.named_modules() if isinstance(module, kinds)]
    for path in paths:
        network.set_submodule(path, make(path))
    return len(paths)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_activations(checkpoint, name, activation):
    recorded = arrays(name)
    expected = convert(checkpoint(name), configuration(name)).pipeline.unet
    assert replace(expected, (nn.SiLU, nn.ELU), lambda path: Restated(ACTIVATIONS[activation]))
    found = convert(checkpoint(name), configuration(name, nonlinearity=activation.upper())).pipeline.unet
    x, labels = recorded["x"], recorded["labels"]
    assert relative_error(found(x, labels).sample, expected(x, labels).sample) < 1e-5


def test_activations_that_the_official_code_lacks():
    for name in NETWORKS:
        with pytest.raises(ValueError, match=r"`model\.nonlinearity` is 'gelu'; allowed are 'elu', 'relu', 'lrelu'"):
            build_network(configuration(name, nonlinearity="gelu"))


# ---------------------------------------------------------------------------------------------------------------------
# Normalisations
# ---------------------------------------------------------------------------------------------------------------------


def instance(x, p):
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * p["scale"] + p["bias"]


def instance_plus(x, p):
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    of_means = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return ((x - mean) / (variance + 1e-5).sqrt() + of_means * p["alpha"]) * p["gamma"] + p["beta"]


def variance(x, p):
    return x / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt() * p["scale"]


NORMS = {
    "InstanceNorm": ("InstanceNorm2d", ("scale", "bias"), instance),
    "InstanceNorm++": ("InstanceNorm2dPlus", ("alpha", "gamma", "beta"), instance_plus),
    "VarianceNorm": ("VarianceNorm2d", ("scale",), variance),
}
RECORDED = {"jax_vp_ddpm_2level": ("GroupNorm", "scale"), "jax_y_ncsnv2": ("InstanceNorm2dPlus", "gamma")}


def leaf(a):
    return msgpack.ExtType(1, msgpack.packb([a.shape, a.dtype.name, a.tobytes()]))


def norms_of(tree, cls, path=""):
    """The maps that hold a normalisation of this class, by their paths, and the maps around them."""
    for key, value in list(tree.items()):
        if isinstance(value, dict):
            if key.rpartition("_")[0] == cls:
                yield f"{path}{key}", key, tree
            else:
                yield from norms_of(value, cls, f"{path}{key}/")


def write(tmp_path, state):
    path = tmp_path / "file"
    path.write_bytes(msgpack.packb(state))
    return path


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", RECORDED)
@torch.no_grad()
def test_normalisations(tmp_path, name, norm):
    recorded, (old, tag) = arrays(name), RECORDED[name]
    draw = np.random.default_rng(0)
    # The recorded network, each normalisation marked by a number, to learn which of ours is which.
    state = msgpack.unpackb(checkpoint_bytes(name))
    sizes = {}
    for number, (path, key, around) in enumerate(norms_of(state["params_ema"], old)):
        sizes[path] = len(msgpack.unpackb(around[key][tag].data)[2]) // 4
        around[key][tag] = leaf(np.full((1, 1, 1, sizes[path]), number, np.float32))
    expected = convert(write(tmp_path, state), configuration(name)).pipeline.unet
    parameters = [
        {key: torch.from_numpy(1 + draw.normal(size=(1, size, 1, 1))).float() for key in NORMS[norm][1]}
        for size in sizes.values()
    ]

    def restated(path):
        module = expected.get_submodule(path)
        number = int((module.scale if isinstance(module, InstanceNormPlus) else module.weight)[0])
        return Restated(lambda x: NORMS[norm][2](x, parameters[number]))

    assert replace(expected, (nn.GroupNorm, InstanceNormPlus), restated) == len(sizes)
    # The same with the other normalisation, as the official code would write it.
    for number, (_, key, around) in enumerate(norms_of(state["params_ema"], old)):
        del around[key]
        values = {k: leaf(p.numpy().transpose(0, 2, 3, 1).copy()) for k, p in parameters[number].items()}
        around[f"{NORMS[norm][0]}_{key.rpartition('_')[2]}"] = values
    found = convert(write(tmp_path, state), configuration(name, normalization=norm)).pipeline.unet
    x, labels = recorded["x"], recorded["labels"]
    assert relative_error(found(x, labels).sample, expected(x, labels).sample) < 1e-5
    found.save_pretrained(tmp_path / "saved")
    again = type(found).from_pretrained(tmp_path / "saved")
    assert torch.equal(again(x, labels).sample, found(x, labels).sample)


@torch.no_grad()
def test_group_normalisation_in_ncsnv2():
    """flax's has 32 groups and eps = 1e-6."""
    network = build_architecture(configuration("jax_y_ncsnv2", normalization="GroupNorm", nf=32), "jax").network
    found = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    assert found == {32} and network.norm_out.eps == 1e-6
    with pytest.raises(ValueError, match="divisible"):
        build_network(configuration("jax_y_ncsnv2", normalization="GroupNorm"))


@pytest.mark.parametrize("name", ["ve_ncsnpp_continuous", "jax_y_residual_out_fir", "vp_ddpm_discrete"])
def test_code_that_has_group_normalisation_whatever_it_is_told(checkpoint, name):
    """Official NCSN++ never looks at the setting, official DDPM in PyTorch neither: the network is the same."""
    plain = convert(checkpoint(name), configuration(name))
    other = convert(checkpoint(name), configuration(name, normalization="InstanceNorm++"))
    assert plain.notes == ()
    assert "normalization is 'GroupNorm', which the official code has whatever" in other.notes[0]
    expected = plain.pipeline.unet.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in other.pipeline.unet.state_dict().items())


@pytest.mark.parametrize(
    "name, norm, checkpoint_format, message",
    [
        ("jax_vp_ddpm_2level", "BatchNorm", "jax", "can build 'GroupNorm', 'InstanceNorm', 'InstanceNorm"),
        ("jax_y_ncsnv2", "NoneNorm", "jax", "can build 'GroupNorm', 'InstanceNorm', 'InstanceNorm"),
        ("jax_y_ncsnv2", "VarianceNorm", "pytorch", "the official PyTorch code cannot build NCSNv2"),
        ("ncsn_repaired", "InstanceNorm", "pytorch", r"can build 'InstanceNorm\+\+' alone"),
    ],
)
def test_normalisations_that_no_official_code_runs(name, norm, checkpoint_format, message):
    with pytest.raises(ValueError, match=message):
        build_architecture(configuration(name, normalization=norm), checkpoint_format)


def test_new_networks_have_what_is_asked_for():
    """For training, group normalisation instead of another is a mistake, although the official code makes it."""
    with pytest.raises(ValueError, match="can build 'GroupNorm' alone"):
        build_network(configuration("ve_ncsnpp_continuous", normalization="InstanceNorm"))
