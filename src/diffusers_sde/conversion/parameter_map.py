"""Where each of our parameters comes from in an official PyTorch state dict, and the accounting for all of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch


def identity(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as it is."""
    return tensor


@dataclass(frozen=True)
class Source:
    """Origin of one parameter.

    Args:
        names: names of the official tensors.
        transform: makes our tensor from them.
    """

    names: tuple[str, ...]
    transform: Callable[..., torch.Tensor] = identity


ParameterMap = Mapping[str, Source]


def convert_state_dict(
    official: Mapping[str, torch.Tensor],
    parameter_map: ParameterMap,
    ours: Mapping[str, torch.Tensor],
    ignored: Iterable[str] = (),
) -> dict[str, torch.Tensor]:
    """Our state dict from an official one; every tensor on both sides is accounted for.

    Args:
        official: official names to tensors (on the meta device, shapes alone are checked).
        parameter_map: our names to their sources.
        ours: our names to tensors of the shapes wanted.
        ignored: official names that carry nothing.

    Raises:
        ValueError: listing all missing, left-over and mis-shaped tensors.
    """
    missing = [name for source in parameter_map.values() for name in source.names if name not in official]
    used = {name for source in parameter_map.values() for name in source.names}
    left_over = sorted(set(official) - used - set(ignored))
    unmapped = sorted(set(ours) ^ set(parameter_map))
    assert not unmapped, f"the parameter map does not cover the network: {unmapped}"

    converted, misshaped = {}, []
    for name, source in parameter_map.items():
        if any(origin in missing for origin in source.names):
            continue
        try:
            tensor = source.transform(*(official[origin] for origin in source.names))
        except (RuntimeError, IndexError):
            tensor = None
        if tensor is None or tensor.shape != ours[name].shape:
            shapes = ", ".join(f"{origin} {tuple(official[origin].shape)}" for origin in source.names)
            misshaped.append(f"{shapes} for {name} {tuple(ours[name].shape)}")
        else:
            converted[name] = tensor.contiguous()
    if missing or left_over or misshaped:
        raise ValueError(
            "the checkpoint does not fit the configuration."
            + _listing("missing", missing)
            + _listing("left over", left_over)
            + _listing("of another shape", misshaped)
            + "\nName the configuration that the checkpoint was trained with."
        )
    return converted


def _listing(title: str, names: list[str], most: int = 20) -> str:
    if not names:
        return ""
    more = f"\n  ... and {len(names) - most} more" if len(names) > most else ""
    return f"\n{len(names)} {title}:" + "".join(f"\n  {name}" for name in names[:most]) + more
