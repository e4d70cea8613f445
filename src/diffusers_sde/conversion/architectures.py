"""The networks of the official code: which module here converts which `model.name`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import ModelMixin

from . import ddpm, ncsnpp, ncsnv2
from .flax_names import flax_parameter_map, flax_source
from .parameter_map import ParameterMap, convert_state_dict

_MODULES = {
    "ddpm": ddpm,
    "ncsn": ncsnv2,
    "ncsnpp": ncsnpp,
    "ncsnv2_64": ncsnv2,
    "ncsnv2_128": ncsnv2,
    "ncsnv2_256": ncsnv2,
}

LABEL_CONDITIONED = ("ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256")
"""Networks that look up the noise level by its label, whatever `training.continuous` says."""


# Code that has group normalisation whatever `model.normalization` is: the network and the format of its checkpoints.
_ONLY_GROUP_NORM = (("ncsnpp", "pytorch"), ("ncsnpp", "jax"), ("ddpm", "pytorch"))


@dataclass(frozen=True)
class Architecture:
    """The network of an official configuration on the meta device, and where its parameters come from.

    Args:
        network: the network, without weights.
        parameter_map: our names to their sources in the checkpoint.
        ignored: official names that carry nothing.
        fill_buffers: computes what the network has beside its state dict.
    """

    network: ModelMixin
    parameter_map: ParameterMap
    ignored: tuple[str, ...]
    fill_buffers: Callable[[ModelMixin], None] | None

    def convert(self, official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Our state dict from an official one; see `convert_state_dict`."""
        return convert_state_dict(official, self.parameter_map, self.network.state_dict(), self.ignored)

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> ModelMixin:
        """The network with these weights, which are not copied, in evaluation mode."""
        self.network.load_state_dict(state_dict, assign=True)
        if self.fill_buffers is not None:
            self.fill_buffers(self.network)
        return self.network.eval()


def _module(config: dict):
    name = config["model"]["name"]
    if name not in _MODULES:
        raise ValueError(
            f"`model.name` is {name!r}; networks that can be converted: {', '.join(map(repr, _MODULES))}."
        )
    return _MODULES[name]


def build_network(config: dict) -> ModelMixin:
    """The network, with new weights, of an official configuration.

    Raises:
        ValueError: if the architecture is unknown, or has settings that ours does not express.
    """
    module = _module(config)
    try:
        return module.build_model(config)
    except KeyError as error:
        raise ValueError(f"the configuration lacks {error}.") from error


def as_run(config: dict, checkpoint_format: str) -> dict:
    """The configuration of the network that the official code of a format builds from `config`."""
    model = config["model"]
    if (model.get("name"), checkpoint_format) not in _ONLY_GROUP_NORM or "normalization" not in model:
        return config
    return config | {"model": model | {"normalization": "GroupNorm"}}


def build_architecture(config: dict, checkpoint_format: str) -> Architecture:
    """The network of an official configuration, to be filled from a checkpoint.

    Args:
        config: the official configuration.
        checkpoint_format: `"pytorch"` or `"jax"`.

    Raises:
        ValueError: as `build_network`, or if no checkpoint of that format can exist.
    """
    with torch.device("meta"):
        network = build_network(as_run(config, checkpoint_format))
    module = _module(config)
    if checkpoint_format == "pytorch" and module is ncsnv2 and config["model"]["normalization"] != "InstanceNorm++":
        raise ValueError(
            f"`model.normalization` is {config['model']['normalization']!r}, with which the official PyTorch code "
            "cannot build NCSNv2, so no checkpoint of it is known; its JAX code can."
        )
    parameter_map, ignored = module.parameter_map(network), module.ignored_names(network)
    if checkpoint_format == "jax":
        modules = module.flax_modules(network)
        parameter_map = flax_parameter_map(parameter_map, modules)
        ignored = [flax_source(name, modules)[0] for name in ignored if "." in name]
    fill_buffers = getattr(module, "fill_buffers", None)
    return Architecture(network, parameter_map, tuple(ignored), fill_buffers)
