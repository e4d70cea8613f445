"""Names and layouts of the JAX checkpoints, from those of the official PyTorch network.

Both number the same modules: PyTorch by their place in one list, flax by a counter per class. With the modules
matched, a leaf's name and layout follow from its module's class.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from .parameter_map import ParameterMap, Source


class ModuleCounter:
    """Numbers modules as flax does: `Conv_0`, `Dense_0`, `Conv_1`, ..."""

    def __init__(self):
        self._counts = Counter()

    def name(self, cls: str) -> str:
        """Name of the next module of class `cls`."""
        number = self._counts[cls]
        self._counts[cls] += 1
        return f"{cls}_{number}"

    def skip(self, cls: str) -> None:
        """Count a module that has no parameters."""
        self._counts[cls] += 1


def conv_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """(height, width, in, out) -> (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1)


def dense_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """(in, out) -> (out, in)."""
    return kernel.permute(1, 0)


def channels(vector: torch.Tensor) -> torch.Tensor:
    """(1, 1, 1, C), as flax up to 0.3.5 has it, or (C,) -> (C,)."""
    return vector.reshape(-1)


_LEAVES = {
    ("Conv", "weight"): ("kernel", conv_kernel),
    ("Conv2d", "weight"): ("weight", conv_kernel),
    ("Dense", "weight"): ("kernel", dense_kernel),
    ("GroupNorm", "weight"): ("scale", channels),
    ("GroupNorm", "bias"): ("bias", channels),
    ("InstanceNorm2d", "weight"): ("scale", channels),
    ("InstanceNorm2d", "bias"): ("bias", channels),
    ("VarianceNorm2d", "weight"): ("scale", channels),
    ("InstanceNorm2dPlus", "alpha"): ("alpha", channels),
    ("InstanceNorm2dPlus", "gamma"): ("gamma", channels),
    ("InstanceNorm2dPlus", "beta"): ("beta", channels),
}


def flax_source(name: str, modules: Mapping[str, str]) -> tuple[str, Callable[[torch.Tensor], torch.Tensor] | None]:
    """Name of a PyTorch tensor in the flax tree, and how its layout becomes that of PyTorch.

    Args:
        name: official PyTorch name, such as `all_modules.3.Conv_0.weight`.
        modules: modules of the PyTorch network to those of flax, such as `all_modules.3` to `ResnetBlockDDPM_0`.

    Returns:
        The path, such as `ResnetBlockDDPM_0/Conv_0/kernel`, and a function, `None` for no change.
    """
    module, _, leaf = name.rpartition(".")
    prefix = module
    while prefix not in modules:
        prefix = prefix.rpartition(".")[0]
        assert prefix, f"no flax module is known for {name}"
    path = modules[prefix] + module[len(prefix) :].replace(".", "/")
    cls = path.rpartition("/")[2].rpartition("_")[0]
    flax_leaf, transform = _LEAVES.get((cls, leaf), (leaf, None))
    return f"{path}/{flax_leaf}", transform


def flax_parameter_map(parameter_map: ParameterMap, modules: Mapping[str, str]) -> ParameterMap:
    """The same map from the names and layouts of a JAX checkpoint."""
    return {ours: _flax(source, modules) for ours, source in parameter_map.items()}


def _flax(source: Source, modules: Mapping[str, str]) -> Source:
    names, transforms = zip(*(flax_source(name, modules) for name in source.names), strict=True)

    def transform(*tensors: torch.Tensor) -> torch.Tensor:
        return source.transform(*(t if f is None else f(t) for f, t in zip(transforms, tensors, strict=True)))

    return Source(names, transform)
