"""Images from linear measurements."""

import math
from collections.abc import Callable

import torch

from ..sde.arguments import real_number, whole_number
from ..sde.linear_inverse import LinearOperator, check_adjoint
from ..sde.operators import Cropped
from .base import AnyScheduler, ScoreNetwork
from .flow import FlowPipelineBase
from .inverse import DPS, LinearCondition, PiGDM, Replacement
from .loop import sample_predictor_corrector
from .output import ScoreSdePipelineOutput
from .padding import size_factor
from .run import own_run

METHODS = ("pigdm", "dps", "replacement")


class ScoreSdeInverseProblemPipeline(FlowPipelineBase):
    r"""Samples of images x given y = A x + noise, from an unconditional network and any linear operator A.

    Super-resolution, deblurring, compressed sensing; inpainting and colorization have pipelines of their own, which
    are this one with their operators. Images of sides that the network does not take are sampled as the corner of a
    larger one and cropped; sides larger than those of training are allowed, and as good as the network is on them.

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network with the calling convention of `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for; see `from_diffusers_scheduler` for diffusers'.

    Examples:
        ```py
        >>> import torch
        >>> from diffusers_sde import ScoreSdeInverseProblemPipeline, embedded_model_path
        >>> from diffusers_sde.sde.operators import BlockAverage

        >>> pipe = ScoreSdeInverseProblemPipeline.from_pretrained(embedded_model_path())
        >>> small = torch.rand(1, 1, 7, 7)  # means of blocks of 4 x 4 pixels, in [0, 1]
        >>> images = pipe(small, BlockAverage(4), num_samples=4, num_inference_steps=200).images
        ```

    Reference: Song et al. 2021, arXiv:2011.13456, App. I; Chung et al. 2023, arXiv:2209.14687; Song et al. 2023,
    "Pseudoinverse-guided diffusion models for inverse problems", ICLR.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        measurement: torch.Tensor,
        operator: LinearOperator,
        noise_std: float = 0.0,
        method: str = "pigdm",
        guidance_scale: float = 1.0,
        data_std: float = 0.25,
        num_samples: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> ScoreSdePipelineOutput | tuple:
        r"""Draw images given their measurements.

        Args:
            measurement (`torch.Tensor`):
                y = A x + noise of images x in [0, 1], one row per image to restore; the shape of `operator.A(x)`.
            operator (`LinearOperator`):
                Object with `A(x)` and `A_adjoint(y)`, and `A_dagger(y)` if there is one; see
                `diffusers_sde.sde.operators`. It is given batches of `num_samples` rows per measurement.
            noise_std (`float`, *optional*, defaults to 0.0): Standard deviation of the noise of `measurement`.
            method (`str`, *optional*, defaults to `"pigdm"`):
                `"pigdm"` (pseudo-inverse guidance), `"dps"` (a gradient step on the residual) or `"replacement"`.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Factor on the guidance of "pigdm"; length factor of the steps of "dps". "replacement" has none.
            data_std (`float`, *optional*, defaults to 0.25):
                Standard deviation of pixels of the data, images in [0, 1]; for "pigdm".
            num_samples (`int`, *optional*, defaults to 1):
                Samples per measurement; those of the first measurement come first.
            height (`int`, *optional*): Height of the images in pixels, any; by default the network's `sample_size`.
            width (`int`, *optional*): Width in pixels, likewise.
            num_inference_steps (`int`, *optional*):
                Number of predictor steps; by default the scheduler's `num_train_timesteps`.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of all noise; one per sample makes each independent of the batch it is drawn in.
            latents (`torch.Tensor`, *optional*):
                Draw from the prior of shape (samples, C, H, W), sides padded to what the network takes.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdePipelineOutput`.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipeline, step, timestep, {"latents": state})`; may return a dict
                with a new state.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors given to it: `"latents"`.

        Returns:
            `ScoreSdePipelineOutput` or a tuple with the images.

        Raises:
            ValueError: if an argument is not allowed, `A_adjoint` is not the adjoint of `A`, the measurement has not
                the shape of the operator's, or the state becomes NaN or infinite.
        """
        self._check_output_type(output_type)
        state = self._restore(
            measurement,
            operator,
            self._requested_size(height, width),
            noise_std=noise_std,
            method=method,
            guidance_scale=guidance_scale,
            data_std=data_std,
            num_samples=num_samples,
            num_inference_steps=num_inference_steps,
            generator=generator,
            latents=latents,
            callback=callback_on_step_end,
            callback_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        images = self._to_images(state, output_type)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images=images) if return_dict else (images,)

    def _restore(
        self,
        measurement: torch.Tensor,
        operator: LinearOperator,
        size: tuple[int, int],
        *,
        noise_std: float = 0.0,
        method: str,
        guidance_scale: float,
        data_std: float,
        num_samples: int,
        num_inference_steps: int | None,
        generator,
        latents: torch.Tensor | None,
        callback: Callable | None,
        callback_tensor_inputs: list[str],
    ) -> torch.Tensor:
        """Final states of images of `size`, in the data range; arguments as in the call."""
        self._check_network()
        num_samples = whole_number("num_samples", num_samples)
        if num_inference_steps is None:
            num_inference_steps = self.scheduler.config.num_train_timesteps
        num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
        on_step_end = self._step_callback(callback, callback_tensor_inputs)
        noise_std, guidance_scale, data_std = (
            real_number(name, value)
            for name, value in (("noise_std", noise_std), ("guidance_scale", guidance_scale), ("data_std", data_std))
        )
        self._check_method(method, noise_std, guidance_scale, data_std)

        measurement = self._check_measurement(measurement, operator, size, num_samples)
        self._check_generator(generator, len(measurement))
        left, right, top, bottom = border = self._border(size)
        inside = Cropped(operator, border)
        shape = (len(measurement), self.unet.config.in_channels, size[0] + top + bottom, size[1] + left + right)
        condition = self._condition(measurement, inside, shape, noise_std, method, guidance_scale, data_std)

        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        self._num_timesteps = num_inference_steps
        x = condition.start(self._initial_state(latents, shape, generator))
        x = sample_predictor_corrector(self, x, generator, condition=condition, on_step_end=on_step_end)
        return inside.crop(x)

    def _condition(
        self, measurement, operator: Cropped, shape, noise_std, method, guidance_scale, data_std
    ) -> LinearCondition:
        """The method's condition, with everything in units of the data range."""
        unit = 2.0 if self._centered else 1.0  # data range per image range
        if self._centered:  # A (2 x - 1) = 2 A x - A 1
            measurement = 2 * measurement - operator.A(torch.ones(shape).to(measurement))
        problem = (self.scheduler.sde, operator, measurement, unit * noise_std)
        if method == "replacement":
            return Replacement(*problem)
        if method == "dps":
            return DPS(*problem, scale=guidance_scale * unit / 2)  # published for [-1, 1]
        return PiGDM(*problem, data_std=unit * data_std, scale=guidance_scale)

    def _check_measurement(self, measurement, operator, size: tuple[int, int], num_samples: int) -> torch.Tensor:
        """The measurement, `num_samples` times each, in float32 or better on the execution device."""
        if not isinstance(measurement, torch.Tensor) or not measurement.is_floating_point():
            raise ValueError(
                f"`measurement` is a {getattr(measurement, 'dtype', type(measurement).__name__)}; give a tensor of "
                "floating point, what the operator measures of images in [0, 1], one row per image."
            )
        if measurement.ndim < 2 or len(measurement) == 0:
            raise ValueError(
                f"`measurement` has shape {tuple(measurement.shape)}; (batch, ...) is needed, one row per image to "
                "restore."
            )
        dtype = torch.promote_types(measurement.dtype, torch.float32)
        measurement = measurement.to(self._execution_device, dtype).repeat_interleave(num_samples, dim=0)
        shape = (len(measurement), self.unet.config.in_channels, *size)
        check_adjoint(operator, shape, measurement.device, dtype)
        expected = operator.A(measurement.new_zeros(shape)).shape[1:]
        if measurement.shape[1:] != expected:
            raise ValueError(
                f"`measurement` has rows of shape {tuple(measurement.shape[1:])}; this operator measures "
                f"{tuple(expected)} of an image of shape {shape[1:]}. Give `height` and `width` if they differ from "
                "the network's `sample_size`."
            )
        bad = int((~measurement.isfinite()).sum())
        if bad:
            raise ValueError(
                f"`measurement` has {bad} NaN or infinite values of {measurement.numel()}; give finite ones."
            )
        return measurement

    def _border(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Pixels on the left, right, top and bottom that make both sides what the network takes."""
        top, left = (-length % size_factor(self.unet) for length in size)
        return left // 2, left - left // 2, top // 2, top - top // 2

    def _check_method(self, method: str, noise_std: float, guidance_scale: float, data_std: float) -> None:
        if method not in METHODS:
            raise ValueError(f"`method` is {method!r}; allowed are {', '.join(map(repr, METHODS))}.")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"`noise_std` is {noise_std}; it must be finite and at least 0.")
        for name, value in (("guidance_scale", guidance_scale), ("data_std", data_std)):
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` is {value}; it must be finite and above 0.")
        if method == "replacement" and guidance_scale != 1:
            raise ValueError(f"`guidance_scale` is {guidance_scale}; 'replacement' has no guidance: leave it at 1.")
        if method == "replacement" and noise_std and self.scheduler.num_correct_steps:
            raise ValueError(
                f"method 'replacement' with `noise_std` {noise_std} does not go with corrector "
                f"{self.scheduler.config.corrector!r}: below the noise of the measurement the state is left to the "
                "score, and a corrector draws it away from there. Use method 'pigdm', or a scheduler made by "
                "from_config(pipe.scheduler.config, corrector='none')."
            )
        if method != "replacement" and torch.is_inference_mode_enabled():
            raise ValueError(
                f"method {method!r} differentiates the network, which torch.inference_mode() forbids; leave it out "
                "(the pipeline keeps no graph), or use method 'replacement'."
            )
