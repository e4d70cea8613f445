"""Where each of our parameters comes from in an official checkpoint, and the accounting for all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
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


class MismatchError(ValueError):
    """A checkpoint's tensors are not those of the configuration."""


def plain(ours: str, official: str, bias: bool = True) -> Iterator[tuple[str, Source]]:
    """The weight, and the bias, of a layer that both sides store alike."""
    yield f"{ours}.weight", Source((f"{official}.weight",))
    if bias:
        yield f"{ours}.bias", Source((f"{official}.bias",))


def pointwise_sources(ours: str, official: str) -> Iterator[tuple[str, Source]]:
    """A matrix (in, out) over the channels as a 1 x 1 convolution."""
    yield f"{ours}.weight", Source((f"{official}.W",), lambda w: w.T[:, :, None, None])
    yield f"{ours}.bias", Source((f"{official}.b",))


def convert_state_dict(
    official: MutableMapping[str, torch.Tensor],
    parameter_map: ParameterMap,
    ours: Mapping[str, torch.Tensor],
    ignored: Iterable[str] = (),
) -> dict[str, torch.Tensor]:
    """Our state dict from an official one; every tensor on both sides is accounted for.

    Args:
        official: official names to tensors (on the meta device, shapes alone are checked). Tensors are taken out of
            it as they are converted, so that memory does not hold all of them twice.
        parameter_map: our names to their sources.
        ours: our names to tensors of the shapes wanted.
        ignored: official names that carry nothing.

    Raises:
        MismatchError: listing all missing, left-over and mis-shaped tensors.
    """
    unmapped = sorted(set(ours) ^ set(parameter_map))
    assert not unmapped, f"the parameter map does not cover the network: {unmapped}"
    used = {name for source in parameter_map.values() for name in source.names}
    missing = sorted(used - set(official))
    left_over = sorted(set(official) - used - set(ignored))

    converted, misshaped = {}, []
    for name, source in parameter_map.items():
        if any(origin not in official for origin in source.names):
            continue
        tensors = [official.pop(origin) for origin in source.names]
        try:
            tensor = source.transform(*tensors)
        except (RuntimeError, IndexError):
            tensor = None
        if tensor is None or tensor.shape != ours[name].shape:
            pairs = zip(source.names, tensors, strict=True)
            shapes = ", ".join(f"{origin} {tuple(t.shape)}" for origin, t in pairs)
            misshaped.append(f"{shapes} for {name} {tuple(ours[name].shape)}")
        else:
            # The target's dtype, and memory of its own: neither strides nor a larger storage behind it.
            converted[name] = tensor.to(ours[name].dtype).clone(memory_format=torch.contiguous_format)
    if missing or left_over or misshaped:
        raise MismatchError(
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
