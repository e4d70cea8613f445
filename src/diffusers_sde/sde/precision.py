"""Where sums, times and integrals are taken in float64: on the device of the states, or on the host.

States and networks compute in the dtype they are given. What adds up over many numbers or steps (times, step sizes,
integrals, log-densities) is in float64, of one number per row, so that it costs next to nothing. Devices without
float64, as Apple's MPS, leave it to the host.
"""

import functools

import torch


@functools.lru_cache
def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 can be made on a device and computed with; tried once per device."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        return bool((torch.ones((), dtype=torch.float64, device=device) + 1 == 2).item())
    except (TypeError, RuntimeError):
        return False


def double_device(device: torch.device) -> torch.device:
    """The device itself where it has float64, else the host."""
    return device if has_float64(device) else torch.device("cpu")


def in_double(x: torch.Tensor) -> torch.Tensor:
    """`x` in float64 on `double_device`; differentiable, same shape."""
    return x.to(double_device(x.device)).double()
