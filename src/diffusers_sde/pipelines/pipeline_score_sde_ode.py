"""Deterministic sampling, encoding and interpolation along the probability flow."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from ..sde import probability_flow, score_to_denoised
from ..sde.arguments import real_number, whole_number
from ..sde.precision import in_double
from .base import AnyScheduler, ScoreNetwork
from .flow import FlowPipelineBase
from .image_input import ImageInput
from .output import ScoreSdePipelineOutput
from .run import own_run


@dataclass
class ScoreSdeOdePipelineOutput(ScoreSdePipelineOutput):
    """Images of the probability flow, with one entry per image in all other fields.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): As in [`ScoreSdePipelineOutput`].
        latents (`torch.Tensor`): States at t = 1 from which the images come, shape (B, C, H, W).
        nfe (`torch.Tensor`): Network evaluations, int64 of shape (B,).
        error (`torch.Tensor`): Estimate of the solver's error, root mean square over pixels, in units of the data
            range; shape (B,).
        success (`torch.Tensor`): Whether the solver reached the end in steps within its tolerance; bool of shape (B,).
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latents: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor


@dataclass
class ScoreSdeEncodeOutput(BaseOutput):
    """Latents of images, one entry per image.

    Args:
        latents (`torch.Tensor`): States at t = 1, shape (B, C, H, W).
        nfe (`torch.Tensor`): Network evaluations, int64 of shape (B,).
        error (`torch.Tensor`): Estimate of the solver's error, root mean square over pixels, in units of the latents;
            shape (B,).
        success (`torch.Tensor`): Whether the solver reached t = 1 in steps within its tolerance; bool of shape (B,).
    """

    latents: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor


class ScoreSdeOdePipeline(FlowPipelineBase):
    r"""Sampling by the probability-flow ODE, whose every image has one latent and the other way round.

    The solver adapts to each image; an image does not depend on those drawn with it.

    `success` and `error` are about the solver, not about the images: the flow of a VE network leads to noise wherever
    the network is poor at high noise levels, since nothing on its way corrects what was wrong there. Of the embedded
    VE model nearly every second image is noise at any tolerance, and so are `decode` and `interpolate` of drawn
    latents. Draw from such networks by [`ScoreSdePipeline`], whose steps add noise anew; networks of VP and sub-VP
    hardly have the fault.

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network with the calling convention of `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for; see `from_diffusers_scheduler` for diffusers'.

    Examples:
        ```py
        >>> from diffusers_sde import ScoreSdeOdePipeline, embedded_model_path

        >>> pipe = ScoreSdeOdePipeline.from_pretrained(embedded_model_path())
        >>> output = pipe(batch_size=2)
        >>> latents = pipe.encode(output.images).latents
        >>> path = pipe.interpolate(output.images[0], output.images[1], n=5).images
        ```

    Reference: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and App. D.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        solver: str = "adams",
        rtol: float | None = None,
        atol: float | None = None,
        max_nfe: int = 10_000,
        check: bool | None = None,
        temperature: float = 1.0,
        denoise: bool = False,
        sampling_eps: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ScoreSdeOdePipelineOutput | tuple:
        r"""Draw images.

        Args:
            batch_size (`int`, *optional*, defaults to 1): Number of images.
            generator (`torch.Generator` or a list of them, *optional*): Source of the latents; one per image makes
                each image independent of the batch it is drawn in.
            latents (`torch.Tensor`, *optional*):
                State at t = 1 of shape (batch_size, C, H, W), of standard deviation `scheduler.init_noise_sigma`; the
                arithmetic is in its dtype, at least float32.
            height (`int`, *optional*): Height in pixels; by default the network's `sample_size`.
            width (`int`, *optional*): Width in pixels, likewise.
            solver (`str`, *optional*, defaults to `"adams"`):
                `"adams"` (multistep, few evaluations) or `"dopri5"` (Runge-Kutta 5(4)), both with a step size per
                image.
            rtol (`float`, *optional*): Relative tolerance of a step; by default 5e-4 for "adams", 1e-5 for "dopri5".
            atol (`float`, *optional*): Absolute tolerance of a step in units of the data range (of the latents for
                `encode`); by default 0 and 1e-5.
            max_nfe (`int`, *optional*, defaults to 10000): Most network evaluations per image.
            check (`bool`, *optional*):
                Whether to solve once more with tolerances 8 times smaller, to return that solution, and the difference
                as its `error`; by default for the images whose path the solver cannot vouch for.
            temperature (`float`, *optional*, defaults to 1.0):
                Factor on the state at t = 1, drawn or given; below 1 for more likely and less diverse images.
            denoise (`bool`, *optional*, defaults to `False`):
                Whether to end with the mean of the clean image given the state, by one more evaluation. `encode` is
                the inverse of sampling without it.
            sampling_eps (`float`, *optional*): Time at which sampling ends; by default the scheduler's.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdeOdePipelineOutput`.

        Returns:
            `ScoreSdeOdePipelineOutput` or a tuple of its fields.

        Raises:
            ValueError: if an argument is not allowed.
        """
        self._check_network()
        self._check_output_type(output_type)
        batch_size = whole_number("batch_size", batch_size)
        self._check_generator(generator, batch_size)
        temperature = real_number("temperature", temperature)
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"`temperature` is {temperature}; it must be finite and at least 0.")
        height, width = self._image_size(height, width)
        shape = (batch_size, self.unet.config.in_channels, height, width)
        latents = temperature * self._initial_state(latents, shape, generator)
        end = self._end_time(sampling_eps)
        flow = self._flow(latents, 1.0, end, solver, rtol, atol, max_nfe, check)
        x, nfe = flow.x, flow.nfe
        if denoise:
            time = x.new_full((batch_size,), end)
            x, nfe = score_to_denoised(self.scheduler.sde, self._score_function()(x, time), x, time), nfe + 1
        images = self._to_images(x, output_type)
        self.maybe_free_model_hooks()
        fields = (images, latents, nfe, flow.error, flow.success)
        return ScoreSdeOdePipelineOutput(*fields) if return_dict else fields

    @own_run
    @torch.no_grad()
    def encode(
        self,
        image: ImageInput,
        solver: str = "adams",
        rtol: float | None = None,
        atol: float | None = None,
        max_nfe: int = 10_000,
        check: bool | None = None,
        sampling_eps: float | None = None,
        return_dict: bool = True,
    ) -> ScoreSdeEncodeOutput | tuple:
        r"""Latents of images: the state at t = 1 from which `decode` makes them again.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                Images, uint8 or in [0, 1]; PIL and arrays have channels last, tensors first.
            solver (`str`, *optional*, defaults to `"adams"`): As for sampling.
            rtol (`float`, *optional*): As for sampling.
            atol (`float`, *optional*): As for sampling.
            max_nfe (`int`, *optional*, defaults to 10000): As for sampling.
            check (`bool`, *optional*): As for sampling.
            sampling_eps (`float`, *optional*): Time at which the images are taken to lie; by default the scheduler's.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdeEncodeOutput`.

        Raises:
            ValueError: if an argument is not allowed.
        """
        self._check_network()
        images, _ = self._read_images(image)
        start = self._end_time(sampling_eps)
        flow = self._flow(self._to_data_range(images), start, 1.0, solver, rtol, atol, max_nfe, check)
        self.maybe_free_model_hooks()
        fields = (flow.x, flow.nfe, flow.error, flow.success)
        return ScoreSdeEncodeOutput(*fields) if return_dict else fields

    def decode(self, latents: torch.Tensor, **options) -> ScoreSdeOdePipelineOutput | tuple:
        r"""Images of latents.

        Args:
            latents (`torch.Tensor`): State at t = 1, shape (B, C, H, W).
            **options: `solver`, `rtol`, `atol`, `max_nfe`, `check`, `temperature`, `denoise`, `sampling_eps`,
                `output_type` and `return_dict` of sampling.

        Raises:
            ValueError: if an argument is not allowed.
        """
        if not isinstance(latents, torch.Tensor) or latents.ndim != 4 or len(latents) == 0:
            seen = f"shape {tuple(latents.shape)}" if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise ValueError(f"`latents` has {seen}; a tensor (batch, channels, height, width) is needed.")
        height, width = latents.shape[2:]
        return self(batch_size=len(latents), latents=latents, height=height, width=width, **options)

    def interpolate(
        self, a: ImageInput, b: ImageInput, n: int = 8, *, batch_size: int = 16, return_dict: bool = True, **options
    ) -> ScoreSdeOdePipelineOutput | tuple:
        r"""Images between two, along the great circle between their latents.

        Args:
            a (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of one): The first image.
            b (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of one): The last one, of the same size.
            n (`int`, *optional*, defaults to 8): Number of images, `a` and `b` themselves included; at least 2.
            batch_size (`int`, *optional*, defaults to 16): Images decoded at once; it does not change them.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdeOdePipelineOutput`.
            **options: As for `decode`; those of the solver hold for `encode`, too.

        Returns:
            `ScoreSdeOdePipelineOutput` of n images, whose `nfe` are those of decoding, or a tuple of its fields.

        Raises:
            ValueError: if an argument is not allowed.
        """
        batch_size = whole_number("batch_size", batch_size)
        n = whole_number("n", n, at_least=2)  # the two ends included
        self._check_output_type(options.get("output_type", "pil"))
        encoding = {
            k: options[k] for k in ("solver", "rtol", "atol", "max_nfe", "check", "sampling_eps") if k in options
        }
        ends = [self.encode(image, **encoding).latents for image in (a, b)]
        if ends[0].shape != ends[1].shape or len(ends[0]) != 1:
            raise ValueError(
                f"`a` and `b` have shapes {tuple(ends[0].shape)} and {tuple(ends[1].shape)}; give one image each, of "
                "one size."
            )
        latents = slerp(*ends, torch.linspace(0, 1, n, dtype=torch.float64))
        outputs = [self.decode(part, return_dict=False, **options) for part in latents.split(batch_size)]
        images, *tensors = zip(*outputs, strict=True)
        fields = (_join(images), *(torch.cat(parts) for parts in tensors))
        return ScoreSdeOdePipelineOutput(*fields) if return_dict else fields

    def _end_time(self, sampling_eps: float | None) -> float:
        return self._first_time(sampling_eps, self.scheduler.config.sampling_eps)

    def _flow(self, x, t_start, t_end, solver, rtol, atol, max_nfe, check):
        options = self._solver_options(solver, rtol, atol, max_nfe, check)
        return probability_flow(self.scheduler.sde, self._score_function(), x, t_start, t_end, **options)


def slerp(a: torch.Tensor, b: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    r"""Spherical interpolation: (sin((1 - f) w) a + sin(f w) b) / sin(w), w the angle between a and b.

    Args:
        a: shape (1, ...).
        b: same shape.
        fraction: f from 0 (a) to 1 (b), shape (n,).

    Returns:
        Shape (n, ...); on a straight line where a and b are parallel to 1e-6, since no great circle is singled out.
    """
    u, v = in_double(a).flatten(), in_double(b).flatten()
    lengths = u.norm() * v.norm()
    cosine = (u @ v / lengths).clamp(-1, 1) if lengths > 0 else u.new_ones(())
    fraction = fraction.to(u)[:, None]
    angle, sine = cosine.acos(), (1 - cosine.square()).clamp(min=0).sqrt()
    if sine < 1e-6:
        path = (1 - fraction) * u + fraction * v
    else:
        path = (((1 - fraction) * angle).sin() * u + (fraction * angle).sin() * v) / sine
    return path.reshape(-1, *a.shape[1:]).to(a)


def _join(parts: tuple):
    if isinstance(parts[0], list):
        return [image for part in parts for image in part]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts)
