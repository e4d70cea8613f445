"""Activation functions by name, among them those of the official code."""

from diffusers.models.activations import get_activation
from torch import nn

_OFFICIAL = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "lrelu": lambda: nn.LeakyReLU(0.2),
}


def activation(name: str) -> nn.Module:
    """The activation function of a configuration's `act_fn`.

    Args:
        name: `"elu"`, `"relu"`, `"lrelu"` (of slope 0.2 below zero), `"silu"`, or another name of diffusers.

    Raises:
        ValueError: if there is none of that name.
    """
    if name in _OFFICIAL:
        return _OFFICIAL[name]()
    try:
        return get_activation(name)
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"`act_fn` is {name!r}; allowed are {', '.join(map(repr, _OFFICIAL))} and the names of diffusers."
        ) from error
