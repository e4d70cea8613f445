"""NCSN++ / DDPM++: official configuration and parameter names to ours."""

from collections.abc import Iterator

from torch import nn

from ..models import NCSNppModel
from ..models.attention import AttentionBlock
from ..models.embeddings import GaussianFourierProjection
from ..models.ncsnpp import InputResidual, InputSkip, OutputResidual, OutputSkip, ResnetBlock
from ..models.resampling import Downsample, Upsample, fir_kernel_2d
from .flax_names import ModuleCounter
from .layers import activation_name, attention_sources, norm_name
from .parameter_map import Source, plain, pointwise_sources

_RESNET = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "time_emb_proj": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
}


def build_model(config: dict) -> NCSNppModel:
    """The network, with new weights, of an official configuration."""
    return NCSNppModel(**model_config(config))


def model_config(config: dict) -> dict:
    """Arguments of `NCSNppModel` for an official configuration (nested dictionaries).

    Raises:
        ValueError: for settings that no official configuration has and the network does not express.
    """
    model, data = config["model"], config["data"]
    if model["ch_mult"][0] != 1:
        raise ValueError(f"`model.ch_mult` is {model['ch_mult']}; it must start with 1, as in all official configs.")
    norm_name(model, allowed=("GroupNorm",))
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
        "act_fn": activation_name(model),
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


def flax_modules(model: NCSNppModel) -> dict[str, str]:
    """Modules of the official PyTorch network to those of the JAX one, where each class is numbered for itself."""
    counter, names = ModuleCounter(), {}
    for index, path in enumerate(_modules_in_official_order(model)):
        if path is not None and ".progressive" in path:
            progressive = model.get_submodule(path.partition(".progressive")[0]).progressive
            # Resamplers without parameters take a number in JAX and none in the list of PyTorch.
            if isinstance(progressive, InputSkip):
                counter.skip("Downsample")
            elif isinstance(progressive, OutputSkip) and progressive.upsample is not None and path.endswith("norm"):
                counter.skip("Upsample")
        names[f"all_modules.{index}"] = counter.name(_flax_class(model, path))
    return names


def _flax_class(model: NCSNppModel, path: str | None) -> str:
    module = None if path is None else model.get_submodule(path)
    if module is None or isinstance(module, GaussianFourierProjection):
        return "GaussianFourierProjection"
    if isinstance(module, ResnetBlock):
        return "ResnetBlockBigGANpp" if module.is_biggan else "ResnetBlockDDPMpp"
    classes = {
        AttentionBlock: "AttnBlockpp",
        InputSkip: "Combine",
        InputResidual: "Downsample",
        OutputResidual: "Upsample",
        nn.Linear: "Dense",
        nn.Conv2d: "Conv",
    }
    return classes.get(type(module), type(module).__name__)


def fill_buffers(model: NCSNppModel) -> None:
    """Compute the FIR filters, which no checkpoint holds, of a network that was built on the meta device."""
    for module in model.modules():
        if isinstance(module, (Downsample, Upsample)) and module.filter is not None and module.filter.is_meta:
            gain = 4.0 if isinstance(module, Upsample) else 1.0
            taps = gain * fir_kernel_2d(model.config.fir_kernel)
            module.filter = taps.expand(module.filter.shape).contiguous()


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
        yield from attention_sources(module, origin)
    elif isinstance(module, (Downsample, Upsample)):
        yield from _resample_sources(module, origin)
    elif isinstance(module, InputSkip):
        yield from plain("conv", f"{origin}.Conv_0")
    elif isinstance(module, InputResidual):
        yield from ((f"downsample.{name}", source) for name, source in _resample_sources(module.downsample, origin))
    elif isinstance(module, OutputResidual):
        yield from ((f"upsample.{name}", source) for name, source in _resample_sources(module.upsample, origin))
    elif isinstance(module, GaussianFourierProjection):
        yield "weight", Source((f"{origin}.W",))
    else:
        yield "weight", Source((f"{origin}.weight",))
        yield "bias", Source((f"{origin}.bias",))


def _resnet_sources(module: ResnetBlock, origin: str) -> Iterator[tuple[str, Source]]:
    for ours, official in _RESNET.items():
        if getattr(module, ours) is not None:
            yield from plain(ours, f"{origin}.{official}")
    if module.conv_shortcut is None:
        return
    if module.is_biggan:
        yield from plain("conv_shortcut", f"{origin}.Conv_2")
    else:
        yield from pointwise_sources("conv_shortcut", f"{origin}.NIN_0")


def _resample_sources(module: Downsample | Upsample, origin: str) -> Iterator[tuple[str, Source]]:
    if module.conv is None:
        return
    if isinstance(module.conv, nn.ConvTranspose2d):
        # Kept there as the weight of a convolution, here as that of the transposed convolution which is run.
        weight = Source((f"{origin}.Conv2d_0.weight",), lambda w: w.flip(2, 3).transpose(0, 1))
        yield from (("conv.weight", weight), ("bias", Source((f"{origin}.Conv2d_0.bias",))))
    else:
        yield from plain("conv", f"{origin}.{'Conv_0' if module.filter is None else 'Conv2d_0'}")
