"""What all pipelines share: components, loading of older repositories, checks, conversion to images."""

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
from .padding import size_factor
from .repository import check_index, checked_entry, finish_repository, read_index, repository_scheduler_config

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
        unet: network with the calling convention of `UNet2DModel`.
        scheduler: of the process that the network was trained for. Here and by assignment: one of this package's;
            diffusers' `ScoreSdeVeScheduler` or `ScoreSdeVpScheduler`, replaced by ours; or a solver of diffusers',
            which is given the chain of the network, or replaced by ours in pipelines of another task.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]
    _needs_own_scheduler = True  # whether the task runs by the conventions of this package's schedulers alone

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def register_modules(self, **kwargs) -> None:
        """Set components; a scheduler is accepted as by assignment, and the config names what it became."""
        if "scheduler" in kwargs:
            super().register_modules(**{name: part for name, part in kwargs.items() if name != "scheduler"})
            kwargs = {"scheduler": self._accepted(kwargs["scheduler"])}
        super().register_modules(**kwargs)

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, self._accepted(value) if name == "scheduler" else value)

    def _accepted(self, scheduler):
        """The scheduler to run when this one is asked for; see `accept_scheduler`."""
        before = self.__dict__.get("scheduler")
        if before is not None:
            return accept_scheduler(scheduler, before.config, ours=self._needs_own_scheduler)
        known = repository_scheduler_config(self.unet)
        # A network may have been trained on after it was loaded: a scheduler of ours has the last word.
        return accept_scheduler(scheduler, known, certain=False, ours=self._needs_own_scheduler)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call, for callbacks."""
        return self._num_timesteps

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
    def _check_count(name: str, value: int) -> None:
        if type(value) is not int or value < 1:
            raise ValueError(f"`{name}` is {value!r}; it must be an integer of at least 1.")

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
        config = self.unet.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"the network takes images of {config.in_channels} channels and returns {config.out_channels}; a "
                "score has as many as the image. Use a network without learned variances or conditioning channels."
            )

    def _requested_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size asked for, by default the network's."""
        size = self.unet.config.sample_size
        default_height, default_width = (size, size) if size is None or isinstance(size, int) else size
        height = default_height if height is None else height
        width = default_width if width is None else width
        if height is None or width is None:
            raise ValueError("the network's config has no `sample_size`; give `height` and `width`.")
        self._check_count("height", height)
        self._check_count("width", width)
        return height, width

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
        if tuple(latents.shape) != shape:
            raise ValueError(
                f"`latents` has shape {tuple(latents.shape)}; {shape} is needed: batch_size, the network's channels, "
                "height, width."
            )
        return latents.to(device, torch.promote_types(latents.dtype, torch.float32))

    def _check_callback(self, names: list[str]) -> None:
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}; allowed are {self._callback_tensor_inputs}."
            )

    def _on_step_end(self, callback: Callable | None, names: list[str]) -> Callable | None:
        """A user's `callback_on_step_end` as `(step, timestep, x) -> x`."""
        if callback is None:
            return None

        def on_step_end(step: int, timestep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            tensors = {"latents": x}
            changed = callback(self, step, timestep, {name: tensors[name] for name in names})
            return (changed or {}).get("latents", x)

        return on_step_end

    def _network_output(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.unet(x.to(self.unet.dtype), timestep).sample

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
