"""NCSN and NCSNv2: official configuration and parameter names to ours.

The official modules are `res1`, `res2`, ... and `refine1`, `refine2`, ...; the levels that were added for 256 pixels
carry the numbers 31.
"""

from collections.abc import Iterator

from ..models import NCSNModel, NCSNv2Model
from ..models.refinenet import RefineBlock, RefineNetResnetBlock
from .flax_names import ModuleCounter
from .layers import activation_name, norm_class, norm_name, norm_sources
from .parameter_map import Source, plain

_LEVELS = {
    "ncsn": ((1, 2, 2, 2), (1, 1, 2, 4), (1, 1, 2, 2)),
    "ncsnv2_64": ((1, 2, 2, 2), (1, 1, 2, 4), (1, 2, 2, 2)),
    "ncsnv2_128": ((1, 2, 2, 4, 4), (1, 1, 1, 2, 4), (1, 1, 2, 2, 4)),
    "ncsnv2_256": ((1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4), (1, 1, 2, 2, 2, 4)),
}
_RES_NAMES = {4: ("1", "2", "3", "4"), 5: ("1", "2", "3", "4", "5"), 6: ("1", "2", "3", "31", "4", "5")}
_REFINE_NAMES = {4: ("1", "2", "3", "4"), 5: ("1", "2", "3", "4", "5"), 6: ("1", "2", "31", "3", "4", "5")}


def build_model(config: dict) -> NCSNModel | NCSNv2Model:
    """The network, with new weights, of an official configuration."""
    cls = NCSNModel if config["model"]["name"] == "ncsn" else NCSNv2Model
    return cls(**model_config(config))


def model_config(config: dict) -> dict:
    """Arguments of `NCSNModel` or `NCSNv2Model` for an official configuration (nested dictionaries).

    Raises:
        ValueError: for settings that no official configuration has and the network does not express.
    """
    model, data = config["model"], config["data"]
    widths, dilations, refine_widths = _LEVELS[model["name"]]
    result = {
        "sample_size": data["image_size"],
        "in_channels": data["num_channels"],
        "out_channels": data["num_channels"],
        "center_input_sample": not data["centered"],
        "block_out_channels": tuple(model["nf"] * multiplier for multiplier in widths),
        "dilations": dilations,
        "refine_out_channels": tuple(model["nf"] * multiplier for multiplier in refine_widths),
        "scale_by_sigma": model["scale_by_sigma"],
        "sigma_min": model["sigma_min"],
        "sigma_max": model["sigma_max"],
        "num_train_timesteps": model["num_scales"],
        "act_fn": activation_name(model),
    }
    if model["name"] == "ncsn":
        norm_name(model, allowed=("InstanceNorm++",))
    else:
        result["norm_type"] = norm_name(model)
        names = {"bilinear": "bilinear", "nearest_neighbor": "nearest"}
        result["interpolation"] = names.get(model["interpolation"], model["interpolation"])
    return result


def parameter_map(model: NCSNModel | NCSNv2Model) -> dict[str, Source]:
    """Names of our parameters to their sources in the official PyTorch state dict."""
    return dict(_sources(model))


def ignored_names(model: NCSNModel | NCSNv2Model) -> list[str]:
    """Official names that carry nothing: the table of noise levels."""
    return ["sigmas"]


def _sources(model: NCSNModel | NCSNv2Model) -> Iterator[tuple[str, Source]]:
    yield from plain("conv_in", "begin_conv")
    yield from _norm(model, "norm_out", "normalizer")
    yield from plain("conv_out", "end_conv")
    for i, level in enumerate(_RES_NAMES[len(model.down_blocks)]):
        for j in range(2):
            yield from _resnet(model, f"down_blocks.{i}.resnets.{j}", f"res{level}.{j}")
    for i, level in enumerate(_REFINE_NAMES[len(model.refine_blocks)]):
        yield from _refine(model, f"refine_blocks.{i}", f"refine{level}")


def _norm(model, ours: str, official: str) -> Iterator[tuple[str, Source]]:
    return norm_sources(model.get_submodule(ours), ours, official)


def _resnet(model, ours: str, official: str) -> Iterator[tuple[str, Source]]:
    block: RefineNetResnetBlock = model.get_submodule(ours)
    pooled = ".conv" if block.halves else ""
    yield from _norm(model, f"{ours}.norm1", f"{official}.normalize1")
    yield from plain(f"{ours}.conv1", f"{official}.conv1")
    yield from _norm(model, f"{ours}.norm2", f"{official}.normalize2")
    yield from plain(f"{ours}.conv2", f"{official}.conv2{pooled}")
    if block.conv_shortcut is not None:
        yield from plain(f"{ours}.conv_shortcut", f"{official}.shortcut{pooled}")


def _units(model, ours: str, official: str) -> Iterator[tuple[str, Source]]:
    for i in range(len(model.get_submodule(ours).resnets)):
        for k in (1, 2):
            yield from plain(f"{ours}.resnets.{i}.conv{k}", f"{official}.{i + 1}_{k}_conv", bias=False)
            if isinstance(model, NCSNModel):
                yield from _norm(model, f"{ours}.resnets.{i}.norm{k}", f"{official}.{i + 1}_{k}_norm")


def _refine(model, ours: str, official: str) -> Iterator[tuple[str, Source]]:
    block: RefineBlock = model.get_submodule(ours)
    for q in range(len(block.adapters)):
        yield from _units(model, f"{ours}.adapters.{q}", f"{official}.adapt_convs.{q}")
    stages = [("pooling", "crp", block.pooling, False)]
    if block.fusion is not None:
        stages.append(("fusion", "msf", block.fusion, True))
    for name, theirs, module, bias in stages:
        for k in range(len(module.convs)):
            yield from plain(f"{ours}.{name}.convs.{k}", f"{official}.{theirs}.convs.{k}", bias)
        for k in range(len(module.norms)):
            yield from _norm(model, f"{ours}.{name}.norms.{k}", f"{official}.{theirs}.norms.{k}")
    yield from _units(model, f"{ours}.output", f"{official}.output_convs")


def flax_modules(model: NCSNModel | NCSNv2Model) -> dict[str, str]:
    """Modules of the official PyTorch NCSNv2 to those of the JAX one.

    Raises:
        ValueError: for NCSN, of which no JAX checkpoint can exist: the official code cannot build it.
    """
    if isinstance(model, NCSNModel):
        raise ValueError("the official JAX code cannot build NCSN, so no checkpoint of it is known.")
    names = {"begin_conv": "Conv_0", "end_conv": "Conv_1", "normalizer": f"{norm_class(model.norm_out)}_0"}
    counter = ModuleCounter()
    for i, level in enumerate(_RES_NAMES[len(model.down_blocks)]):
        for j, resnet in enumerate(model.down_blocks[i].resnets):
            names |= _flax_resnet(resnet, f"res{level}.{j}", counter.name("ResidualBlock"))
    for i, level in enumerate(_REFINE_NAMES[len(model.refine_blocks)]):
        names |= _flax_refine(model.refine_blocks[i], f"refine{level}", counter.name("RefineBlock"))
    return names


def _flax_resnet(block: RefineNetResnetBlock, official: str, flax: str) -> dict[str, str]:
    names = {f"{official}.normalize{k + 1}": f"{flax}/{norm_class(block.norm1)}_{k}" for k in range(2)}
    names[f"{official}.conv1"] = f"{flax}/Conv_0"
    if block.halves:
        names[f"{official}.conv2.conv"] = f"{flax}/ConvMeanPool_0/Conv_0"
        names[f"{official}.shortcut.conv"] = f"{flax}/ConvMeanPool_1/Conv_0"
        return names
    names[f"{official}.conv2"] = f"{flax}/Conv_1"
    names[f"{official}.shortcut"] = f"{flax}/Conv_2"
    return names


def _flax_refine(block: RefineBlock, official: str, flax: str) -> dict[str, str]:
    names = {}
    units = [*enumerate(block.adapters), (len(block.adapters), block.output)]
    for q, group in units:
        theirs = f"{official}.output_convs" if group is block.output else f"{official}.adapt_convs.{q}"
        for i in range(len(group.resnets)):
            for k in range(2):
                names[f"{theirs}.{i + 1}_{k + 1}_conv"] = f"{flax}/RCUBlock_{q}/Conv_{2 * i + k}"
    for k in range(2):
        names[f"{official}.crp.convs.{k}"] = f"{flax}/CRPBlock_0/Conv_{k}"
        names[f"{official}.msf.convs.{k}"] = f"{flax}/MSFBlock_0/Conv_{k}"
    return names
