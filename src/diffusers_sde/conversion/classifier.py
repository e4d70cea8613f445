"""Noise-conditional classifier: the parameter names of the official JAX code, the only one that has it, to ours."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..models import NoiseConditionalClassifier
from .flax_names import channels, conv_kernel, dense_kernel
from .jax import load_jax_parameters
from .parameter_map import Source, convert_state_dict

_MODULES = re.compile(
    r"(GaussianFourierProjection_0|Dense_\d+|init_conv|pre-pool-bn|WideResnetGroup_\d+/WideResnetBlock_\d+)/"
)
_MAX_BLOCKS = 100


def parameter_map(model: NoiseConditionalClassifier) -> dict[str, Source]:
    """Names of our parameters to their sources in the flax tree."""
    sources = {"time_proj.weight": Source(("GaussianFourierProjection_0/W",))}
    for ours, official in (("time_embedding.linear_1", 0), ("time_embedding.linear_2", 1), ("linear_out", 2)):
        sources |= _dense(ours, f"Dense_{official}")
    sources["conv_in.weight"] = Source(("init_conv/kernel",), conv_kernel)
    sources |= _norm("norm_out", "pre-pool-bn")
    for i, group in enumerate(model.groups):
        for j in range(len(group.blocks)):
            ours, official = f"groups.{i}.blocks.{j}", f"WideResnetGroup_{i}/WideResnetBlock_{j}"
            sources |= _norm(f"{ours}.norm1", f"{official}/init_bn")
            sources |= _norm(f"{ours}.norm2", f"{official}/bn_2")
            sources |= _dense(f"{ours}.time_emb_proj", f"{official}/Dense_0")
            for conv in ("conv1", "conv2"):
                sources[f"{ours}.{conv}.weight"] = Source((f"{official}/{conv}/kernel",), conv_kernel)
    return sources


def _dense(ours: str, official: str) -> dict[str, Source]:
    return {
        f"{ours}.weight": Source((f"{official}/kernel",), dense_kernel),
        f"{ours}.bias": Source((f"{official}/bias",)),
    }


def _norm(ours: str, official: str) -> dict[str, Source]:
    return {
        f"{ours}.weight": Source((f"{official}/scale",), channels),
        f"{ours}.bias": Source((f"{official}/bias",), channels),
    }


def model_config(parameters: Mapping[str, torch.Tensor]) -> dict:
    """Arguments of `NoiseConditionalClassifier`, read off the names and shapes of its parameters.

    Raises:
        ValueError: if they are not those of such a classifier.
    """
    blocks = [name for name in parameters if re.fullmatch(r"WideResnetGroup_0/WideResnetBlock_\d+/conv1/kernel", name)]
    try:
        frequencies = parameters["GaussianFourierProjection_0/W"].shape[0]
        in_channels = parameters["init_conv/kernel"].shape[2]
        features, num_classes = parameters["Dense_2/kernel"].shape
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the file holds {sorted(parameters)[:4]} and {max(len(parameters) - 4, 0)} more; the official classifier "
            "has GaussianFourierProjection_0, Dense_0 to Dense_2, init_conv, WideResnetGroup_0 to 2 and pre-pool-bn."
        ) from error
    if (
        len(blocks) > _MAX_BLOCKS
        or in_channels != 3
        or features < 64
        or features % 64
        or not (frequencies and num_classes and blocks)
    ):
        raise ValueError(
            f"a classifier of {in_channels} channels, {features} features, {frequencies} frequencies, {num_classes} "
            f"classes and {len(blocks)} blocks per group is none that the official code builds for 3 channels."
        )
    return {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "blocks_per_group": len(blocks),
        "channel_multiplier": features // 64,
        "embedding_features": frequencies,
    }


def convert_classifier(path: str | Path) -> NoiseConditionalClassifier:
    """Convert the file of the official noise-conditional classifier, which holds its parameters alone.

    Args:
        path: the file, plain or gzip-compressed.

    Returns:
        The classifier on the CPU, in float32 and evaluation mode.

    Raises:
        ValueError: if the file cannot be read, or any parameter is missing, left over or of another shape.
    """
    parameters = load_jax_parameters(path)
    config = model_config(parameters)
    with torch.device("meta"):
        model = NoiseConditionalClassifier(**config)
    # Files written by other programs may hold things beside the parameters.
    parameters = {name: tensor for name, tensor in parameters.items() if _MODULES.match(name)}
    state_dict = convert_state_dict(parameters, parameter_map(model), model.state_dict())
    model.load_state_dict(state_dict, assign=True)
    return model.eval()
