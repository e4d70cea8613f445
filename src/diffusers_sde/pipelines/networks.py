"""Checks of a pipeline's network: what it must have, and what the pipelines cannot give it."""

import inspect

import torch

_NEEDED = ("in_channels", "out_channels")
_CLASS_KEYS = ("num_class_embeds", "class_embed_type", "num_embeds_ada_norm")
_CONVENTION = (
    "The pipelines call `network(x, timestep).sample` of a torch module that has `dtype`, `device` and a `config` "
    "with `in_channels` and `out_channels`, such as UNet2DModel or a class of your own derived from diffusers' "
    "ModelMixin and ConfigMixin; `sample_size`, `center_input_sample` and `block_out_channels` are read if the config "
    "has them."
)


def check_network(network) -> None:
    """Refuse networks that the pipelines cannot call, in words that name what is missing.

    Args:
        network: `unet` of a pipeline.

    Raises:
        ValueError: if it is no torch module, lacks `dtype`, `device` or keys of the config, or needs class labels,
            text embeddings or other inputs than state and time.
    """
    name = type(network).__name__
    if network is None:
        raise ValueError("the pipeline has no network: `unet` is None. " + _CONVENTION)
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"`unet` is a {name}, which is no torch module. " + _CONVENTION)
    if isinstance(network, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        raise ValueError(f"`unet` is wrapped in {name}, which hides its config; give the network itself, unet.module.")
    config = getattr(network, "config", None)
    missing = ["`config`"] if config is None else []
    if config is not None:
        missing += [f"`{key}` in its config" for key in _NEEDED if getattr(config, key, None) is None]
    if not missing:  # diffusers' own `dtype` fails on networks without parameters
        missing += [f"`{key}`" for key in ("dtype", "device") if getattr(network, key, None) is None]
    if missing:
        raise ValueError(f"the network, a {name}, has no {', no '.join(missing)}. {_CONVENTION}")
    classes = [f"{key} = {getattr(config, key)!r}" for key in _CLASS_KEYS if getattr(config, key, None) is not None]
    if classes:
        raise ValueError(
            f"the network, a {name}, is class-conditional ({', '.join(classes)}) and the pipelines give it no class "
            "labels. Take an unconditional network; ScoreSdeClassConditionalPipeline draws classes with one and a "
            "classifier."
        )
    _check_signature(network, name)


def _check_signature(network: torch.nn.Module, name: str) -> None:
    try:
        parameters = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):  # no signature to be had
        return
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    of_diffusers = type(network).__module__.startswith("diffusers.")
    if len(positional) < 2 or (of_diffusers and positional[1].name not in ("timestep", "timesteps")):
        raise ValueError(f"the network, a {name}, takes no time: its inputs are {_names(parameters)}. {_CONVENTION}")
    extra = [p for p in parameters if p not in positional[:2] and p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if extra:
        raise ValueError(
            f"the network, a {name}, needs {_names(extra)} besides state and time, and the pipelines have nothing to "
            f"give there: it is conditional, on a text for instance. Take an unconditional network. {_CONVENTION}"
        )


def _names(parameters) -> str:
    return ", ".join(f"`{p.name}`" for p in parameters) or "none"
