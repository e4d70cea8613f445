"""Our networks as diffusers' own `UNet2DModel`, where that expresses them exactly; it then loads without this package.

`UNet2DModel` has the skip pyramids of NCSN++ (`Skip*` and `AttnSkip*` blocks) and the skeleton of DDPM. It differs
from both in details that its blocks fix: numbers of normalisation groups, three channels, one attention per residual
block. So besides the settings, each parameter's shape and each normalisation's groups are compared before anything is
given out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet2DModel
from torch import nn

from ..models import DDPMModel, NCSNppModel
from ..schedulers import ScoreSdeVeScheduler, ScoreSdeVpScheduler

_NCSNPP_SETTINGS = {
    "resnet_type": "biggan",
    "fir": True,
    "fir_kernel": (1, 3, 3, 1),
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "progressive_combine": "sum",
    "time_embedding_type": "fourier",
    "conditional": True,
    "skip_rescale": True,
    "scale_by_sigma": True,
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
}
_DDPM_SETTINGS = {
    "resample_with_conv": True,
    "conditional": True,
    "scale_by_sigma": False,
    "act_fn": "silu",
    "norm_type": "group",
}
_VE_SAMPLER = {"predictor": "reverse_diffusion", "corrector": "langevin"}
_VP_SAMPLER = {"predictor": "ancestral_sampling", "corrector": "none"}
_COMMON_SAMPLER = {"probability_flow": False, "denoise_final": True}


def native_network(network: ModelMixin) -> UNet2DModel:
    """A network of ours as `UNet2DModel`, with the same outputs.

    The attentions that `UNet2DModel` has beyond those of DDPM get zero weights, which makes them the identity.

    Args:
        network: `NCSNppModel` or `DDPMModel`; on the meta device, only whether it fits is found out.

    Returns:
        The network in evaluation mode; its weights share memory with those of `network` where they are the same.

    Raises:
        ValueError: listing why `UNet2DModel` does not express the network.
    """
    if isinstance(network, NCSNppModel):
        settings, config, names = _NCSNPP_SETTINGS, _ncsnpp_config, _ncsnpp_name
    elif isinstance(network, DDPMModel):
        settings, config, names = _DDPM_SETTINGS, _ddpm_config, _ddpm_name
    else:
        raise _refusal(network, [f"it has nothing like the layers of {type(network).__name__}"])
    reasons = _differences(network.config, settings)
    if reasons:
        raise _refusal(network, reasons)
    try:
        with torch.device("meta"):
            unet = UNet2DModel(**_common_config(network), **config(network))
    except ValueError as error:
        raise _refusal(network, [f"it cannot be built with such channels: {error}"]) from error
    translate = {name: names(network, name) for name, _ in network.named_modules()}
    reasons = list(_group_differences(network, unet, translate))
    state_dict = dict(_state_dict(network, translate))
    reasons += _shape_differences(state_dict, unet)
    if reasons:
        raise _refusal(network, reasons)
    state_dict |= _silent_attentions(unet, state_dict, network.conv_in.weight.device)
    unet.load_state_dict(state_dict, assign=True)
    return unet.eval()


def native_pipeline(unet: ModelMixin, scheduler) -> DiffusionPipeline:
    """A network and a scheduler of ours as a pipeline of diffusers' own, with the same sampler.

    Args:
        unet: `NCSNppModel` or `DDPMModel`.
        scheduler: of the SDE that the network was trained for.

    Returns:
        diffusers' `ScoreSdeVePipeline` (VE), or `DDPMPipeline` with the linear betas `beta_min / N` to `beta_max / N`
        (VP in discrete time, where ancestral sampling is the sampler of DDPM).

    Raises:
        ValueError: listing why diffusers expresses the network or the sampler not exactly.

    Reference: Song et al. 2021, arXiv:2011.13456, App. B and F.
    """
    network = native_network(unet)
    if isinstance(scheduler, ScoreSdeVeScheduler):
        wanted = {"continuous": True, **_VE_SAMPLER, **_COMMON_SAMPLER}
        reasons = _differences(scheduler.config, wanted)
        if network.config.time_embedding_type != "fourier" or not network.config.center_input_sample:
            reasons.append("its VE pipeline conditions on sigma and draws images in [0, 1]")
        cls, build = diffusers.ScoreSdeVePipeline, _ve_scheduler
    elif isinstance(scheduler, ScoreSdeVpScheduler):
        wanted = {"continuous": False, **_VP_SAMPLER, **_COMMON_SAMPLER}
        reasons = _differences(scheduler.config, wanted)
        if network.config.time_embedding_type != "positional" or network.config.center_input_sample:
            reasons.append("its DDPM pipeline conditions on the step's number and draws images in [-1, 1]")
        cls, build = diffusers.DDPMPipeline, _ddpm_scheduler
    else:
        reasons = [f"it has no scheduler like {type(scheduler).__name__}"]
    if reasons:
        raise ValueError(
            f"diffusers' own pipelines do not express this sampler exactly: {'; '.join(reasons)}. Keep the layout "
            "'diffusers_sde'. (`native_network` gives the network alone.)"
        )
    return cls(unet=network, scheduler=build(scheduler.config))


def _ve_scheduler(config) -> diffusers.ScoreSdeVeScheduler:
    keys = ("num_train_timesteps", "snr", "sigma_min", "sigma_max", "sampling_eps", "correct_steps")
    return diffusers.ScoreSdeVeScheduler(**{key: config[key] for key in keys})


def _ddpm_scheduler(config) -> diffusers.DDPMScheduler:
    steps = config.num_train_timesteps
    return diffusers.DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=config.beta_min / steps,
        beta_end=config.beta_max / steps,
        beta_schedule="linear",
        variance_type="fixed_large",  # the noise of ancestral sampling has variance beta
        clip_sample=False,
    )


def _refusal(network, reasons: list[str]) -> ValueError:
    return ValueError(
        f"UNet2DModel does not express this {type(network).__name__}: {'; '.join(reasons)}. Keep the layout "
        "'diffusers_sde'."
    )


def _differences(config, wanted: Mapping[str, Any]) -> list[str]:
    found = {key: tuple(config[key]) if isinstance(config[key], list) else config[key] for key in wanted}
    return [f"`{key}` is {found[key]!r} and must be {value!r}" for key, value in wanted.items() if found[key] != value]


def _common_config(network) -> dict:
    config = network.config
    return {
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "center_input_sample": config.center_input_sample,
        "block_out_channels": tuple(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "dropout": config.dropout,
        "act_fn": config.act_fn,
        "attention_head_dim": None,  # one head
        "norm_eps": 1e-6,
    }


def _blocks(network, down: str, up: str) -> dict:
    """Types of the blocks, where `{}` is "Attn" for a level with attention."""
    down_attention = ["Attn" if len(block.attentions) else "" for block in network.down_blocks]
    up_attention = ["" if block.attention is None else "Attn" for block in network.up_blocks]
    return {
        "down_block_types": tuple(down.format(attention) for attention in down_attention),
        "up_block_types": tuple(up.format(attention) for attention in up_attention),
    }


def _ncsnpp_config(network: NCSNppModel) -> dict:
    return {
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": 2**0.5,
        "norm_num_groups": None,
        **_blocks(network, "{}SkipDownBlock2D", "{}SkipUpBlock2D"),
    }


def _ddpm_config(network: DDPMModel) -> dict:
    return {
        "time_embedding_type": "positional",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "mid_block_scale_factor": 1,
        "norm_num_groups": network.config.norm_num_groups,
        **_blocks(network, "{}DownBlock2D", "{}UpBlock2D"),
    }


def _attention_name(name: str) -> str:
    name = re.sub(r"(attentions\.\d+)\.norm$", r"\1.group_norm", name)
    return re.sub(r"(attentions\.\d+)\.to_out$", r"\1.to_out.0", name)


def _ncsnpp_name(network: NCSNppModel, name: str) -> str:
    """Path of a module in `UNet2DModel` from that in ours."""
    last = f"up_blocks.{len(network.up_blocks) - 1}.progressive"
    name = {f"{last}.norm": "conv_norm_out", f"{last}.conv": "conv_out"}.get(name, name)
    name = re.sub(r"^(mid_block|up_blocks\.\d+)\.attention\b", r"\1.attentions.0", name)
    name = re.sub(r"\.progressive\.(norm|conv)$", r".skip_\1", name)
    name = name.replace(".downsampler", ".resnet_down").replace(".upsampler", ".resnet_up")
    return _attention_name(name)


def _ddpm_name(network: DDPMModel, name: str) -> str:
    """Path of a module in `UNet2DModel` from that in ours; the attention of an up block is its last one there."""
    name = re.sub(r"^mid_block\.attention\b", "mid_block.attentions.0", name)
    name = re.sub(r"^(up_blocks\.\d+)\.attention\b", rf"\1.attentions.{network.config.layers_per_block}", name)
    name = name.replace(".downsampler", ".downsamplers.0").replace(".upsampler", ".upsamplers.0")
    return _attention_name(name)


def _state_dict(network: ModelMixin, translate: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in network.state_dict().items():
        path, _, leaf = name.rpartition(".")
        path = translate[path]
        if path.endswith(".to_qkv"):
            parts = (part.clone() for part in tensor.chunk(3))
            yield from ((f"{path.removesuffix('qkv')}{k}.{leaf}", part) for k, part in zip("qkv", parts, strict=True))
        else:
            yield f"{path}.{leaf}", tensor


def _group_differences(network: ModelMixin, unet: UNet2DModel, translate: Mapping[str, str]) -> Iterator[str]:
    theirs = dict(unet.named_modules())
    for name, module in network.named_modules():
        other = theirs.get(translate[name])
        if isinstance(module, nn.GroupNorm) and isinstance(other, nn.GroupNorm):
            if module.num_groups != other.num_groups:
                groups = f"{module.num_groups} groups of {module.num_channels} channels, and {other.num_groups} there"
                yield f"{name} has {groups}"


def _shape_differences(state_dict: Mapping[str, torch.Tensor], unet: UNet2DModel) -> Iterator[str]:
    theirs = unet.state_dict()
    silent = set(_excess_attentions(unet, state_dict))
    for name in sorted(set(state_dict) ^ set(theirs)):
        if name not in silent:
            yield f"{name} is in one of the two networks only"
    for name in sorted(set(state_dict) & set(theirs)):
        if state_dict[name].shape != theirs[name].shape:
            yield f"{name} has shape {tuple(state_dict[name].shape)}, and {tuple(theirs[name].shape)} there"


def _excess_attentions(unet: UNet2DModel, state_dict: Mapping[str, torch.Tensor]) -> Iterable[str]:
    """Names of what only the attentions in excess have: all but the last in the up blocks."""
    return [name for name in unet.state_dict() if ".attentions." in name and name not in state_dict]


def _silent_attentions(
    unet: UNet2DModel, state_dict: Mapping[str, torch.Tensor], device: torch.device
) -> dict[str, torch.Tensor]:
    """Zero weights, with which the residual sum of an attention is its input; the normalisations are neutral."""
    shapes = unet.state_dict()
    return {
        name: torch.full(shapes[name].shape, float(name.endswith("group_norm.weight")), device=device)
        for name in _excess_attentions(unet, state_dict)
    }
