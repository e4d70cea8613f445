"""Callbacks at the end of a step, by the conventions of diffusers."""

from collections.abc import Callable, Mapping

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

EndOfStep = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def step_callback(run, callback: Callable | None, names: list[str]) -> EndOfStep | None:
    """A user's `callback_on_step_end` as `(step, timestep, x) -> x`; `None` without one.

    Args:
        run: run of a pipeline, which the callback is given.
        callback: function `(pipeline, step, timestep, tensors) -> dict`, or one of diffusers' callback objects, whose
            `tensor_inputs` take the place of `names`.
        names: tensors that it is given.

    Raises:
        ValueError: if it cannot be called, or asks for tensors that there are not.
    """
    asked, allowed = "`callback_on_step_end_tensor_inputs`", run._callback_tensor_inputs
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names, asked = callback.tensor_inputs, f"`tensor_inputs` of {type(callback).__name__}"
    if not isinstance(names, list | tuple):
        raise ValueError(f"{asked} is {names!r}; give a list, allowed are {allowed}.")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(f"{asked} has {unknown}; allowed are {allowed}.")
    if callback is None:
        return None
    if not callable(callback):
        raise ValueError(
            f"`callback_on_step_end` is a {type(callback).__name__}; give a function (pipeline, step, timestep, "
            "tensors) that returns a dict."
        )

    def on_step_end(step: int, timestep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        tensors = {"latents": x}
        return _changed_state(callback(run, step, timestep, {name: tensors[name] for name in names}), x)

    return on_step_end


def _changed_state(changed: Mapping | None, x: torch.Tensor) -> torch.Tensor:
    """The state after a callback that returned `changed`, in the dtype of the state before.

    Raises:
        ValueError: if it returned something else than a state of that shape.
    """
    if changed is None:
        return x
    if not isinstance(changed, Mapping):
        raise ValueError(
            f"`callback_on_step_end` returned a {type(changed).__name__}; it must return a dict, with 'latents' for a "
            "new state, or None."
        )
    state = changed.get("latents", x)
    if not isinstance(state, torch.Tensor) or not state.is_floating_point() or state.shape != x.shape:
        tensor = isinstance(state, torch.Tensor)
        seen = f"{state.dtype} of shape {tuple(state.shape)}" if tensor else f"a {type(state).__name__}"
        raise ValueError(
            f"`callback_on_step_end` returned 'latents' that are {seen}; the state is floating point of shape "
            f"{tuple(x.shape)}."
        )
    return state.detach().to(x)
