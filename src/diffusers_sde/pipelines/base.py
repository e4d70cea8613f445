"""Common part of all pipelines: components, loading of older repositories, checks, runs, conversion to images."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from ..models import DDPMModel, NCSNModel, NCSNppModel, NCSNv2Model
from ..schedulers import (
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    accept_scheduler,
    from_diffusers_scheduler,
)
from ..schedulers.networks import check_labels, output_function
from ..sde.arguments import whole_number
from .callbacks import step_callback
from .networks import check_network
from .padding import size_factor
from .repository import check_index, checked_entry, finish_repository, read_index, repository_scheduler_config
from .run import RunState, copy_for_run

logger = logging.getLogger(__name__)

# `typing.Union` objects rather than `X | Y`: `from_pipe` of older diffusers reads these hints.
ScoreNetwork = Union[NCSNppModel, DDPMModel, NCSNv2Model, NCSNModel, UNet2DModel]  # noqa: UP007
AnyScheduler = Union[  # noqa: UP007
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    ScoreSdeSubVpScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class ScoreSdePipelineBase(DiffusionPipeline):
    """Base of the pipelines over a score network and a scheduler.

    Args:
        unet: network with the calling convention of `UNet2DModel`, `network(x, timestep).sample`, and `in_channels`
            and `out_channels` in its config; `sample_size`, `center_input_sample` and `block_out_channels` are read if
            the config has them. Neither class- nor text-conditional.
        scheduler: of the process that the network was trained for. Here and by assignment: one of this package's;
            diffusers' `ScoreSdeVeScheduler` or `ScoreSdeVpScheduler`, replaced by ours; or a solver of diffusers',
            which is given the chain of the network, or replaced by ours in pipelines of another task.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]
    _needs_own_scheduler = True  # whether the task runs by the conventions of this package's schedulers alone

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__()
        self._run_state = RunState()
        check_network(unet)
        self.register_modules(unet=unet, scheduler=scheduler)

    def register_modules(self, **kwargs) -> None:
        """Set components; a scheduler is accepted as by assignment, and the config names what it became."""
        if "scheduler" in kwargs:
            super().register_modules(**{name: part for name, part in kwargs.items() if name != "scheduler"})
            kwargs = {"scheduler": self._accepted(kwargs["scheduler"])}
        super().register_modules(**kwargs)

    def __setattr__(self, name: str, value) -> None:
        if name == "unet" and value is not None:  # None frees the memory; a call refuses it
            check_network(value)
        super().__setattr__(name, self._accepted(value) if name == "scheduler" else value)

    def _accepted(self, scheduler):
        """The scheduler to run when this one is asked for; see `accept_scheduler`."""
        before = self.__dict__.get("scheduler")
        if before is not None:
            return accept_scheduler(scheduler, before.config, ours=self._needs_own_scheduler)
        known = repository_scheduler_config(self.unet)
        # A network may have been trained on after it was loaded: a scheduler of ours has the last word.
        return accept_scheduler(scheduler, known, certain=False, ours=self._needs_own_scheduler)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "ScoreSdePipelineBase":
        r"""Build a pipeline from the components of another, without copying them.

        Args:
            pipeline (`DiffusionPipeline`): The other pipeline, of any class with components of these names.
            **kwargs: Components to take instead of its own, and `dtype` (or `torch_dtype`). Without a dtype networks
                keep theirs, unlike in diffusers, whose default of float32 converts them for both pipelines; with one
                they are converted, for both pipelines.

        Raises:
            ValueError: if a component is missing or an argument unknown.
        """
        dtypes = [kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs]
        components, options = cls._get_signature_keys(cls)
        available = {**pipeline.components, **{k: v for k, v in pipeline.config.items() if k in options}, **kwargs}
        unknown = sorted(set(kwargs) - set(components) - set(options))
        if unknown or len(dtypes) > 1:
            raise ValueError(
                f"`from_pipe` has {', '.join(unknown) or 'both `dtype` and `torch_dtype`'}; allowed are one dtype and "
                f"the components {', '.join(sorted(components))}."
            )
        missing = sorted(name for name in components if available.get(name) is None)
        if missing:
            raise ValueError(
                f"{cls.__name__} needs {', '.join(missing)}, which {type(pipeline).__name__} has not; give it, as by "
                f"from_pipe(pipe, {missing[0]}={missing[0]})."
            )
        new = cls(**{name: available[name] for name in (*components, *options) if name in available})
        if "_name_or_path" in pipeline.config:
            new.register_to_config(_name_or_path=pipeline.config["_name_or_path"])
        if dtypes and dtypes[0] is not None:
            new.to(dtype=dtypes[0])
        return new

    def _begin_run(self) -> "ScoreSdePipelineBase":
        """Copy of the pipeline for one call, with a scheduler and requests to stop of its own.

        Raises:
            ValueError: if the network cannot be called.
        """
        check_network(self.unet)
        run = copy_for_run(self)
        run.__dict__["_evaluate"] = output_function(self.unet)
        return run

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the call that began last, 0 before the first; within a callback that of its own call."""
        return self._run_state.num_timesteps

    _num_timesteps = num_timesteps.setter(lambda self, value: setattr(self._run_state, "num_timesteps", value))

    @property
    def interrupt(self) -> bool:
        """Whether the call is to stop, or was stopped, after its current step.

        `pipe._interrupt = True` asks for it, as in diffusers: of the pipeline that a callback is given for that call
        alone, of the pipeline itself for all its calls in progress, from any thread. The state of that moment is
        returned, and the next call is whole. Solvers of the probability flow make no such steps; they are limited by
        `max_nfe`.
        """
        return self._run_state.interrupt

    _interrupt = interrupt.setter(lambda self, value: setattr(self._run_state, "interrupt", value))

    def score(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        r"""The score of the data with noise, grad log p_t(x), by the network.

        Differentiable with respect to `x` and the network's parameters.

        Args:
            x (`torch.Tensor`): States in the data range plus noise, shape (B, C, H, W), floating point.
            t (`torch.Tensor` or `float`): Times above 0 and up to 1, one for all or one per state: shape () or (B,).

        Returns:
            `torch.Tensor`: Shape of `x`, in its dtype or float32, whichever is wider.

        Raises:
            ValueError: if shapes, dtype or times are not allowed.
        """
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"`x` has shape {tuple(x.shape)} and dtype {x.dtype}; floating-point states (batch, channels, height, "
                "width) are needed."
            )
        self._check_network()
        self._image_size(*x.shape[2:])
        wide = torch.promote_types(x.dtype, torch.float32)
        t = torch.as_tensor(t, device=x.device, dtype=wide)
        if tuple(t.shape) not in ((), (len(x),)):
            raise ValueError(f"`t` has shape {tuple(t.shape)}; () or ({len(x)},), one per state, is needed.")
        if not bool(((t > 0) & (t <= 1)).all()):
            raise ValueError(
                f"`t` has times from {float(t.min()):.4g} to {float(t.max()):.4g}; they must be above 0 and at most 1."
            )
        return from_diffusers_scheduler(self.scheduler).score_fn(self.unet)(x, t.expand(len(x)))

    @property
    def _centered(self) -> bool:
        """Whether the data range is [-1, 1] rather than [0, 1]."""
        return not getattr(self.unet.config, "center_input_sample", False)

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Maps between images in [0, 1] and the data range of the network."""
        return VaeImageProcessor(vae_scale_factor=1, do_normalize=self._centered)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """`load_config` reads `model_index.json` here."""
        return read_index(json_file)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs) -> tuple[dict, dict, dict]:
        """Settings and components of a repository, by name; called by `from_pretrained` of any pipeline class.

        Components of diffusers are replaced by the same under the checks of `loading`.

        Raises:
            ValueError: for a component that is no network or scheduler that these pipelines take.
        """
        check_index(config_dict, cls.config_name)
        init_dict, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        return {name: checked_entry(name, entry) for name, entry in init_dict.items()}, unused, hidden

    def save_pretrained(self, save_directory: str | os.PathLike, *args, remote_code: bool = False, **kwargs) -> None:
        r"""Save the pipeline; see `DiffusionPipeline.save_pretrained` for the other arguments.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write to.
            *args: Passed on.
            remote_code (`bool`, *optional*, defaults to `False`):
                Whether to add one-line stubs, with which `DiffusionPipeline.from_pretrained(repo,
                trust_remote_code=True)` works where this package is installed but not imported. Such a repository
                always asks for trust.
            **kwargs: Passed on.
        """
        self._remote_code = remote_code
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._remote_code = False

    def save_config(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Write `model_index.json`; the last step of `save_pretrained` before an upload."""
        super().save_config(save_directory, *args, **kwargs)
        finish_repository(Path(save_directory), self, getattr(self, "_remote_code", False))

    def _check_output_type(self, output_type: str) -> None:
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}; allowed are {', '.join(map(repr, OUTPUT_TYPES))}.")
        channels = self.unet.config.out_channels
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(
                f"the network makes images of {channels} channels, and PIL shows 1, 3 or 4; use output_type='np' or "
                "'pt'."
            )

    @staticmethod
    def _check_generator(generator, batch_size: int) -> None:
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` is a list of {len(generator)} for a batch of {batch_size}; give one per image, or a "
                "single generator."
            )
        for item in generator if isinstance(generator, list) else [generator]:
            if not isinstance(item, torch.Generator | None):
                raise ValueError(
                    f"`generator` is or has a {type(item).__name__}; give a `torch.Generator`, seeded by "
                    "`manual_seed`, a list of one per image, or `None`."
                )

    def _check_network(self) -> None:
        check_network(self.unet)
        check_labels(self.scheduler, self.unet)
        config = self.unet.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"the network takes images of {config.in_channels} channels and returns {config.out_channels}; a "
                "score has as many as the image. Use a network without learned variances or conditioning channels."
            )

    def _requested_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size asked for, by default the network's."""
        size = getattr(self.unet.config, "sample_size", None)
        default_height, default_width = (size, size) if size is None or isinstance(size, int) else size
        height = default_height if height is None else height
        width = default_width if width is None else width
        if height is None or width is None:
            raise ValueError("the network's config has no `sample_size`; give `height` and `width`.")
        return whole_number("height", height), whole_number("width", width)

    def _image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size asked for, which the network's strides must divide."""
        height, width = self._requested_size(height, width)
        factor = size_factor(self.unet)
        if height % factor or width % factor:
            raise ValueError(
                f"height and width are {height} x {width}; this network takes positive multiples of {factor}."
            )
        return height, width

    def _initial_state(self, latents, shape: tuple[int, ...], generator) -> torch.Tensor:
        """A draw from the prior, or the given state, in float32 or better on the execution device."""
        device = self._execution_device
        if latents is None:
            return randn_tensor(shape, generator, device, torch.float32) * self.scheduler.init_noise_sigma
        if not isinstance(latents, torch.Tensor) or latents.is_complex():
            raise ValueError(f"`latents` is a {type(latents).__name__}; give a tensor of real numbers.")
        if tuple(latents.shape) != shape:
            raise ValueError(
                f"`latents` has shape {tuple(latents.shape)}; {shape} is needed: batch_size, the network's channels, "
                "height, width."
            )
        latents = latents.to(device, torch.promote_types(latents.dtype, torch.float32))
        warn_of_scale(latents, float(self.scheduler.init_noise_sigma))
        return latents

    def _step_callback(self, callback: Callable | None, names: list[str]) -> Callable | None:
        return step_callback(self, callback, names)

    def _network_output(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self._evaluate(x, timestep)

    def _to_images(self, x: torch.Tensor, output_type: str):
        """The final state as `output_type`; images are clamped to [0, 1]."""
        if output_type == "latent":
            return x
        low, high = (-1, 1) if self._centered else (0, 1)
        return self.image_processor.postprocess(x.clamp(low, high), output_type=output_type)


def place(pipeline: ScoreSdePipelineBase, device: str | torch.device, dtype: torch.dtype) -> ScoreSdePipelineBase:
    """The pipeline on a device and in a dtype, its network in `channels_last`, the faster layout of convolutions."""
    pipeline.unet.to(memory_format=torch.channels_last)
    # diffusers warns of every change of dtype, to the same one too.
    return pipeline.to(device) if pipeline.unet.dtype == dtype else pipeline.to(device, dtype)


def warn_of_scale(latents: torch.Tensor, prior_std: float) -> None:
    """Warn of noise of another scale than the prior's: of unit variance where that has not, or ten times as large.

    Only what looks like independent noise is meant: latents of images have the scale that the flow gives them.

    Args:
        latents: given state at t = 1, shape (B, C, H, W).
        prior_std: standard deviation of noise there.
    """
    mean, std, chance = latents.mean(), latents.std(), 5 / latents.numel() ** 0.5
    x, unit = latents - mean, max(prior_std, 1 / prior_std) >= 2
    neighbours = [(x * x.roll(1, dims=dim)).mean().abs() / std.square() for dim in (-2, -1)]
    noise = (torch.stack([mean.abs() / std, *neighbours]) < chance).all()
    if bool(noise & ((std >= 10 * prior_std) | (((std - 1).abs() < chance) & unit))):
        logger.warning(
            f"`latents` has a standard deviation of {float(std):.4g}; noise at t = 1 has {prior_std:.4g} here. They "
            "are taken as they are: multiply a draw of torch.randn by `pipe.scheduler.init_noise_sigma`."
        )
