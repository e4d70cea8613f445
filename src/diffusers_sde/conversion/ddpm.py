"""DDPM: official configuration and parameter names to ours."""

from collections.abc import Iterator

from torch import nn

from ..models import DDPMModel
from ..models.attention import AttentionBlock
from ..models.ddpm import DDPMResnetBlock
from ..models.resampling import Downsample, Upsample
from .flax_names import ModuleCounter
from .layers import activation_name, attention_sources, norm_class, norm_name, norm_sources
from .parameter_map import Source, plain, pointwise_sources


def build_model(config: dict) -> DDPMModel:
    """The network, with new weights, of an official configuration."""
    return DDPMModel(**model_config(config))


def model_config(config: dict) -> dict:
    """Arguments of `DDPMModel` for an official configuration (nested dictionaries).

    `embedding_type` is not looked at: this network always has the positional embedding.

    Raises:
        ValueError: for settings that no official configuration has and the network does not express.
    """
    model, data = config["model"], config["data"]
    if model["ch_mult"][0] != 1:
        raise ValueError(f"`model.ch_mult` is {model['ch_mult']}; it must start with 1, as in all official configs.")
    channels = data["num_channels"]
    return {
        "sample_size": data["image_size"],
        "in_channels": channels,
        "out_channels": channels,
        "center_input_sample": not data["centered"],
        "block_out_channels": tuple(model["nf"] * multiplier for multiplier in model["ch_mult"]),
        "layers_per_block": model["num_res_blocks"],
        "attn_resolutions": tuple(model["attn_resolutions"]),
        "resample_with_conv": model["resamp_with_conv"],
        "conditional": model["conditional"],
        "scale_by_sigma": model["scale_by_sigma"],
        "sigma_min": model["sigma_min"],
        "sigma_max": model["sigma_max"],
        "num_train_timesteps": model["num_scales"],
        "act_fn": activation_name(model),
        "dropout": model["dropout"],
        "norm_type": norm_name(model),
    }


def parameter_map(model: DDPMModel) -> dict[str, Source]:
    """Names of our parameters to their sources in the official PyTorch state dict."""
    sources = {}
    for index, path in enumerate(_modules_in_official_order(model)):
        for name, source in _sources(model.get_submodule(path), f"all_modules.{index}"):
            sources[f"{path}.{name}"] = source
    return sources


def ignored_names(model: DDPMModel) -> list[str]:
    """Official names that carry nothing: the table of noise levels."""
    return ["sigmas"]


def flax_modules(model: DDPMModel) -> dict[str, str]:
    """Modules of the official PyTorch network to those of the JAX one, where each class is numbered for itself."""
    classes = {
        DDPMResnetBlock: "ResnetBlockDDPM",
        AttentionBlock: "AttnBlock",
        nn.Linear: "Dense",
        nn.Conv2d: "Conv",
    }
    counter, names = ModuleCounter(), {}
    for index, path in enumerate(_modules_in_official_order(model)):
        module = model.get_submodule(path)
        cls = classes.get(type(module)) or type(module).__name__
        names[f"all_modules.{index}"] = counter.name(norm_class(module) if path == "conv_norm_out" else cls)
    return names


def _modules_in_official_order(model: DDPMModel) -> Iterator[str]:
    """Paths of our modules as the official list `all_modules` numbers them."""
    if model.config.conditional:
        yield from ("time_embedding.linear_1", "time_embedding.linear_2")
    yield "conv_in"
    for i, block in enumerate(model.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}"
            if block.attentions:
                yield f"down_blocks.{i}.attentions.{j}"
        if block.downsampler is not None:
            yield f"down_blocks.{i}.downsampler"
    yield from ("mid_block.resnets.0", "mid_block.attention", "mid_block.resnets.1")
    for i, block in enumerate(model.up_blocks):
        yield from (f"up_blocks.{i}.resnets.{j}" for j in range(len(block.resnets)))
        if block.attention is not None:
            yield f"up_blocks.{i}.attention"
        if block.upsampler is not None:
            yield f"up_blocks.{i}.upsampler"
    yield from ("conv_norm_out", "conv_out")


def _sources(module: nn.Module, origin: str) -> Iterator[tuple[str, Source]]:
    """Parameter names of one module and their sources."""
    if isinstance(module, DDPMResnetBlock):
        norm = norm_class(module.norm1)
        yield from norm_sources(module.norm1, "norm1", f"{origin}.{norm}_0")
        yield from plain("conv1", f"{origin}.Conv_0")
        if module.time_emb_proj is not None:
            yield from plain("time_emb_proj", f"{origin}.Dense_0")
        yield from norm_sources(module.norm2, "norm2", f"{origin}.{norm}_1")
        yield from plain("conv2", f"{origin}.Conv_1")
        if module.conv_shortcut is not None:
            yield from pointwise_sources("conv_shortcut", f"{origin}.NIN_0")
    elif isinstance(module, AttentionBlock):
        yield from attention_sources(module, origin)
    elif isinstance(module, (Downsample, Upsample)):
        if module.conv is not None:
            yield from plain("conv", f"{origin}.Conv_0")
    elif isinstance(module, (nn.Linear, nn.Conv2d)):
        yield "weight", Source((f"{origin}.weight",))
        yield "bias", Source((f"{origin}.bias",))
    else:
        yield from ((name.removeprefix("."), source) for name, source in norm_sources(module, "", origin))
