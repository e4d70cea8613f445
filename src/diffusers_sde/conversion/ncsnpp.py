"""NCSN++ / DDPM++: official configuration and parameter names to ours."""

from collections.abc import Iterator

import torch
from torch import nn

from ..models import NCSNppModel
from ..models.attention import AttentionBlock
from ..models.embeddings import GaussianFourierProjection
from ..models.ncsnpp import InputResidual, InputSkip, OutputResidual, ResnetBlock
from ..models.resampling import Downsample, Upsample
from .parameter_map import Source

_RESNET = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "time_emb_proj": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
}


def model_config(config: dict) -> dict:
    """Arguments of `NCSNppModel` for an official configuration (nested dictionaries).

    Raises:
        ValueError: for settings that no official configuration has and the network does not express.
    """
    model, data = config["model"], config["data"]
    if model["ch_mult"][0] != 1:
        raise ValueError(f"`model.ch_mult` is {model['ch_mult']}; it must start with 1, as in all official configs.")
    if model["nonlinearity"].lower() != "swish" or model["normalization"] != "GroupNorm":
        raise ValueError("`model.nonlinearity` must be 'swish' and `model.normalization` 'GroupNorm'.")
    channels = data["num_channels"]
    return {
        "sample_size": data["image_size"],
        "in_channels": channels,
        "out_channels": channels,
        "center_input_sample": not data["centered"],
        "block_out_channels": tuple(model["nf"] * multiplier for multiplier in model["ch_mult"]),
        "layers_per_block": model["num_res_blocks"],
        "attn_resolutions": tuple(model["attn_resolutions"]),
        "resnet_type": model["resblock_type"].lower(),
        "resample_with_conv": model["resamp_with_conv"],
        "fir": model["fir"],
        "fir_kernel": tuple(model["fir_kernel"]),
        "progressive": model["progressive"].lower(),
        "progressive_input": model["progressive_input"].lower(),
        "progressive_combine": model["progressive_combine"].lower(),
        "time_embedding_type": model["embedding_type"].lower(),
        "fourier_scale": model.get("fourier_scale", 16),
        "conditional": model["conditional"],
        "skip_rescale": model["skip_rescale"],
        "scale_by_sigma": model["scale_by_sigma"],
        "sigma_min": model["sigma_min"],
        "sigma_max": model["sigma_max"],
        "num_train_timesteps": model["num_scales"],
        "dropout": model["dropout"],
        "init_scale": model["init_scale"],
    }


def parameter_map(model: NCSNppModel) -> dict[str, Source]:
    """Names of our parameters to their sources in the official PyTorch state dict."""
    sources = {}
    for index, path in enumerate(_modules_in_official_order(model)):
        if path is not None:
            module = model.get_submodule(path)
            for name, source in _sources(module, f"all_modules.{index}"):
                sources[f"{path}.{name}"] = source
    return sources


def ignored_names(model: NCSNppModel) -> list[str]:
    """Official names that carry nothing: the table of noise levels, and what an unconditional network never reads."""
    names = ["sigmas"]
    if not model.config.conditional:
        for index, path in enumerate(_modules_in_official_order(model)):
            if path is None:
                names.append(f"all_modules.{index}.W")
            elif isinstance(model.get_submodule(path), ResnetBlock):
                names += [f"all_modules.{index}.Dense_0.weight", f"all_modules.{index}.Dense_0.bias"]
    return names


def _modules_in_official_order(model: NCSNppModel) -> Iterator[str | None]:
    """Paths of our modules as the official list `all_modules` numbers them; None where it has one that ours lacks."""
    if model.config.time_embedding_type == "fourier":
        yield "time_proj" if model.config.conditional else None
    if model.config.conditional:
        yield from ("time_embedding.linear_1", "time_embedding.linear_2")
    yield "conv_in"
    for i, block in enumerate(model.down_blocks):
        path = f"down_blocks.{i}"
        for j in range(len(block.resnets)):
            yield f"{path}.resnets.{j}"
            if block.attentions:
                yield f"{path}.attentions.{j}"
        if block.downsampler is not None:
            yield f"{path}.downsampler"
        if block.progressive is not None:
            yield f"{path}.progressive"
    yield from ("mid_block.resnets.0", "mid_block.attention", "mid_block.resnets.1")
    for i, block in enumerate(model.up_blocks):
        path = f"up_blocks.{i}"
        yield from (f"{path}.resnets.{j}" for j in range(len(block.resnets)))
        if block.attention is not None:
            yield f"{path}.attention"
        if isinstance(block.progressive, OutputResidual) and block.progressive.upsample is not None:
            yield f"{path}.progressive"
        elif block.progressive is not None:
            yield from (f"{path}.progressive.norm", f"{path}.progressive.conv")
        if block.upsampler is not None:
            yield f"{path}.upsampler"
    if model.conv_out is not None:
        yield from ("conv_norm_out", "conv_out")


def _sources(module: nn.Module, origin: str) -> Iterator[tuple[str, Source]]:
    """Parameter names of one module and their sources."""
    if isinstance(module, ResnetBlock):
        yield from _resnet_sources(module, origin)
    elif isinstance(module, AttentionBlock):
        yield from _plain("norm", f"{origin}.GroupNorm_0")
        projections = tuple(f"{origin}.NIN_{k}" for k in range(3))
        yield "to_qkv.weight", Source(tuple(f"{p}.W" for p in projections), lambda *w: torch.cat(w, dim=1).T)
        yield "to_qkv.bias", Source(tuple(f"{p}.b" for p in projections), lambda *b: torch.cat(b))
        yield "to_out.weight", Source((f"{origin}.NIN_3.W",), lambda w: w.T)
        yield "to_out.bias", Source((f"{origin}.NIN_3.b",))
    elif isinstance(module, (Downsample, Upsample)):
        yield from _resample_sources(module, origin)
    elif isinstance(module, InputSkip):
        yield from _plain("conv", f"{origin}.Conv_0")
    elif isinstance(module, InputResidual):
        yield from ((f"downsample.{name}", source) for name, source in _resample_sources(module.downsample, origin))
    elif isinstance(module, OutputResidual):
        yield from ((f"upsample.{name}", source) for name, source in _resample_sources(module.upsample, origin))
    elif isinstance(module, GaussianFourierProjection):
        yield "weight", Source((f"{origin}.W",))
    else:
        yield "weight", Source((f"{origin}.weight",))
        yield "bias", Source((f"{origin}.bias",))


def _plain(name: str, origin: str) -> Iterator[tuple[str, Source]]:
    yield f"{name}.weight", Source((f"{origin}.weight",))
    yield f"{name}.bias", Source((f"{origin}.bias",))


def _resnet_sources(module: ResnetBlock, origin: str) -> Iterator[tuple[str, Source]]:
    for ours, official in _RESNET.items():
        if getattr(module, ours) is not None:
            yield from _plain(ours, f"{origin}.{official}")
    if module.conv_shortcut is None:
        return
    if module.is_biggan:
        yield from _plain("conv_shortcut", f"{origin}.Conv_2")
    else:
        yield "conv_shortcut.weight", Source((f"{origin}.NIN_0.W",), lambda w: w.T[:, :, None, None])
        yield "conv_shortcut.bias", Source((f"{origin}.NIN_0.b",))


def _resample_sources(module: Downsample | Upsample, origin: str) -> Iterator[tuple[str, Source]]:
    if module.conv is None:
        return
    if isinstance(module.conv, nn.ConvTranspose2d):
        # Kept there as the weight of a convolution, here as that of the transposed convolution which is run.
        weight = Source((f"{origin}.Conv2d_0.weight",), lambda w: w.flip(2, 3).transpose(0, 1))
        yield from (("conv.weight", weight), ("bias", Source((f"{origin}.Conv2d_0.bias",))))
    else:
        yield from _plain("conv", f"{origin}.{'Conv_0' if module.filter is None else 'Conv2d_0'}")
