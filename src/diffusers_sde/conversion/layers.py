"""Activations and normalisations of the official configurations by our names."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..models.attention import AttentionBlock
from ..models.normalization import GroupNorm, InstanceNorm, InstanceNormPlus, VarianceNorm
from .parameter_map import Source, plain

_ACTIVATIONS = {"elu": "elu", "relu": "relu", "lrelu": "lrelu", "swish": "silu"}
_NORMS = {"GroupNorm": "group", "InstanceNorm": "instance", "InstanceNorm++": "instance++", "VarianceNorm": "variance"}
_FLAX_CLASSES = {
    GroupNorm: "GroupNorm",
    InstanceNorm: "InstanceNorm2d",
    InstanceNormPlus: "InstanceNorm2dPlus",
    VarianceNorm: "VarianceNorm2d",
}


def activation_name(model: dict) -> str:
    """Our name of `model.nonlinearity`.

    Raises:
        ValueError: for a value that the official code does not have.
    """
    name = model["nonlinearity"]
    if str(name).lower() not in _ACTIVATIONS:
        raise ValueError(f"`model.nonlinearity` is {name!r}; allowed are {', '.join(map(repr, _ACTIVATIONS))}.")
    return _ACTIVATIONS[name.lower()]


def norm_name(model: dict, allowed: Sequence[str] = tuple(_NORMS)) -> str:
    """Our name of `model.normalization`.

    Args:
        model: this part of the official configuration.
        allowed: official names of those with which the network can be built.

    Raises:
        ValueError: for any other.
    """
    name = model["normalization"]
    if name not in allowed:
        raise ValueError(
            f"`model.normalization` is {name!r}; with `model.name` {model['name']!r} the official code can build "
            f"{', '.join(map(repr, allowed))} alone."
        )
    return _NORMS[name]


def norm_class(norm: nn.Module) -> str:
    """Name of a normalisation's class in the official code."""
    return _FLAX_CLASSES[type(norm)]


def norm_sources(norm: nn.Module, ours: str, official: str) -> Iterator[tuple[str, Source]]:
    """Parameter names of a normalisation and their sources; conditional ones keep all in one table on both sides.

    Args:
        norm: the normalisation.
        ours: its path in our network.
        official: its path in the official one.
    """
    if isinstance(norm, InstanceNormPlus) and norm.embedding is not None:
        yield f"{ours}.embedding.weight", Source((f"{official}.embed.weight",))
    elif isinstance(norm, InstanceNormPlus):
        for name, theirs in (("scale", "gamma"), ("mean_scale", "alpha"), ("bias", "beta")):
            yield f"{ours}.{name}", Source((f"{official}.{theirs}",))
    else:
        yield from plain(ours, official, bias=not isinstance(norm, VarianceNorm))


def attention_sources(attention: AttentionBlock, official: str) -> Iterator[tuple[str, Source]]:
    """Parameter names of an attention block: the official three projections become one, stored transposed."""
    yield from norm_sources(attention.norm, "norm", f"{official}.{norm_class(attention.norm)}_0")
    projections = tuple(f"{official}.NIN_{k}" for k in range(3))
    yield "to_qkv.weight", Source(tuple(f"{p}.W" for p in projections), lambda *w: torch.cat(w, dim=1).T)
    yield "to_qkv.bias", Source(tuple(f"{p}.b" for p in projections), lambda *b: torch.cat(b))
    yield "to_out.weight", Source((f"{official}.NIN_3.W",), lambda w: w.T)
    yield "to_out.bias", Source((f"{official}.NIN_3.b",))
