"""Evaluation of a network under the calling convention `network(x, timestep).sample`."""

from collections.abc import Callable

import torch

from ..sde.broadcasting import expand_to

Evaluate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def network_dtype(network: torch.nn.Module) -> torch.dtype | None:
    """Dtype in which a network computes: its `dtype`, which may differ from that of stored weights."""
    dtype = getattr(network, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), None)


def takes_whole_labels(network: torch.nn.Module) -> bool:
    """Whether a network looks its time label up in a table, so that a fraction of a label means nothing to it.

    It is so if it has an `nn.Embedding`, as `UNet2DModel(time_embedding_type="learned")` has; an attribute
    `takes_whole_labels` of the network goes before that.
    """
    stated = getattr(network, "takes_whole_labels", None)
    if stated is not None:
        return bool(stated)
    return any(isinstance(module, torch.nn.Embedding) for module in network.modules())


def output_function(network: torch.nn.Module) -> Evaluate:
    """Output of a network as a function of state and time label.

    Between two labels of a network that takes whole ones, its output is interpolated linearly; both are evaluated in
    one batch.

    Args:
        network: called as `network(x, timestep).sample`, with `x` in its own dtype.

    Returns:
        `(x, timestep) -> output` for x of shape (B, ...) and a timestep of shape () or (B,).
    """
    dtype = network_dtype(network)

    def evaluate(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        output = network(x.to(dtype), timestep)
        sample = getattr(output, "sample", None)
        if not isinstance(sample, torch.Tensor) or sample.shape != x.shape:
            seen = f"`sample` of shape {tuple(sample.shape)}" if isinstance(sample, torch.Tensor) else "no `sample`"
            raise ValueError(
                f"the network, a {type(network).__name__}, returned a {type(output).__name__} with {seen} for a state "
                f"of shape {tuple(x.shape)}; it must return an object whose `sample` has the shape of the state, such "
                "as diffusers' UNet2DOutput."
            )
        return sample

    def between_labels(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if not timestep.is_floating_point():
            return evaluate(x, timestep)
        label = timestep.expand(len(x))
        below = label.floor()
        output = evaluate(torch.cat([x, x]), torch.cat([below, label.ceil()]).long())
        low, high = output.to(torch.promote_types(output.dtype, torch.float32)).chunk(2)
        return torch.lerp(low, high, expand_to((label - below).to(low.dtype), low))

    return between_labels if takes_whole_labels(network) else evaluate


def check_labels(scheduler, network: torch.nn.Module) -> None:
    """Refuse a network that takes whole labels under a scheduler that conditions on continuous times or noise levels.

    Raises:
        ValueError: naming the setting that goes with such a network.
    """
    if getattr(scheduler.config, "continuous", False) and takes_whole_labels(network):
        raise ValueError(
            f"the network, a {type(network).__name__}, looks its time label up in a table (an nn.Embedding) and takes "
            f"whole labels, but {type(scheduler).__name__} with continuous = True gives it fractions. Use "
            "continuous=False with the `num_train_timesteps` of the training, or set `takes_whole_labels = False` on "
            "a network whose table is not for the time."
        )
