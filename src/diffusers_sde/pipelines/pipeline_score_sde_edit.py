r"""Editing: a given image, a sketch or a damaged one, turned into the model's image next to it.

Both ways go to a noisier state, in which what is wrong with the image no longer shows, and come back:

- SDEdit: x_t = alpha(t) x_0 + sigma(t) noise, then Predictor-Corrector sampling from t;
- CODE: the latent x_t of the image under the probability flow, Langevin steps at t, then the probability flow back.

Reference: Meng et al. 2021, arXiv:2108.01073 (SDEdit); van Delft et al. 2024, arXiv:2408.12418 (CODE).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..sde import make_corrector, probability_flow
from ..sde.arguments import real_number, whole_number
from ..sde.probability_flow import FlowResult
from .base import AnyScheduler, ScoreNetwork
from .flow import FlowPipelineBase
from .image_input import ImageInput, read_images
from .loop import FiniteGuard, Generators, sample_predictor_corrector
from .output import ScoreSdePipelineOutput
from .padding import Padding, size_factor
from .run import own_run


@dataclass
class ScoreSdeCodeOutput(ScoreSdePipelineOutput):
    """Images of CODE, with one entry per image in all other fields.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): As in [`ScoreSdePipelineOutput`].
        latents (`torch.Tensor`): States at `time` after the Langevin steps, shape (B, C, H, W), with the border if
            the image was padded.
        nfe (`torch.Tensor`): Network evaluations, int64 of shape (B,).
        error (`torch.Tensor`): Estimate of the solver's error on the way back, root mean square over pixels, in units
            of the data range; shape (B,).
        success (`torch.Tensor`): Whether the solver reached its end and its tolerance, there and back; bool of shape
            (B,).
    """

    latents: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor


class ScoreSdeEditPipeline(FlowPipelineBase):
    r"""Editing by SDEdit (a call) and by CODE (`code`).

    Images of any size: sides that the network's strides do not divide get a border that repeats the outermost pixels,
    which is cropped from the result. On sizes far from the one that the network was trained for it composes what it
    knows at its own scale.

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network with the calling convention of `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for; see `from_diffusers_scheduler` for diffusers'.

    Examples:
        ```py
        >>> import torch
        >>> from PIL import Image
        >>> from diffusers_sde import ScoreSdeEditPipeline, embedded_model_path

        >>> pipe = ScoreSdeEditPipeline.from_pretrained(embedded_model_path())
        >>> generator = torch.Generator().manual_seed(0)
        >>> sketch = Image.open("sketch.png").convert("L")
        >>> images = pipe(sketch, strength=0.5, num_samples=4, generator=generator).images
        >>> images = pipe.code(sketch, time=0.5, num_langevin_steps=200, generator=generator).images
        ```

    Reference: Meng et al. 2021, arXiv:2108.01073; van Delft et al. 2024, arXiv:2408.12418.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        strength: float = 0.5,
        num_inference_steps: int | None = None,
        num_samples: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> ScoreSdePipelineOutput | tuple:
        r"""Edit by SDEdit: noise to the images, and Predictor-Corrector sampling from there.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                Images, uint8 or in [0, 1]; PIL and arrays have channels last, tensors first.
            strength (`float`, *optional*, defaults to 0.5):
                Fraction of the steps that are made, in (0, 1], as in diffusers' image-to-image pipelines: the last
                `round(strength * num_inference_steps)` of the grid. To one step it is the time t at which they begin.
                Near 0 the image stays as it is; with 1 hardly anything of it is left.
            num_inference_steps (`int`, *optional*):
                Number of steps of the whole grid; by default the scheduler's `num_train_timesteps`.
            num_samples (`int`, *optional*, defaults to 1): Results per image, those of one image side by side.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of all noise; one per result makes each independent of the batch it is drawn in.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdePipelineOutput`.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipeline, step, timestep, {"latents": state})`; may return a dict
                with a new state.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors given to it: `"latents"`.

        Returns:
            `ScoreSdePipelineOutput` or a tuple with the images.

        Raises:
            ValueError: if an argument is not allowed, or the state becomes NaN or infinite.

        Reference: Meng et al. 2021, arXiv:2108.01073, Algorithm 1.
        """
        if num_inference_steps is None:
            num_inference_steps = self.scheduler.config.num_train_timesteps
        num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
        first_step = num_inference_steps - _num_steps(strength, num_inference_steps)
        on_step_end = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._check_output_type(output_type)
        x_0, padding = self._read(image)
        num_samples = self._check_samples(len(x_0), num_samples, generator)
        x_0 = x_0.repeat_interleave(num_samples, dim=0)

        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        self._num_timesteps = num_inference_steps - first_step
        noise = randn_tensor(x_0.shape, generator, x_0.device, x_0.dtype)
        x = self.scheduler.sde.perturb(x_0, noise, self.scheduler.times[first_step])
        x = sample_predictor_corrector(self, x, generator, first_step=first_step, on_step_end=on_step_end)

        images = self._to_images(padding.crop(x), output_type)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images=images) if return_dict else (images,)

    @own_run
    @torch.no_grad()
    def code(
        self,
        image: ImageInput,
        time: float = 0.5,
        num_langevin_steps: int = 200,
        snr: float = 0.05,
        confidence: float | None = 2.0,
        num_samples: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        solver: str = "adams",
        rtol: float | None = None,
        atol: float | None = None,
        max_nfe: int = 10_000,
        sampling_eps: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ScoreSdeCodeOutput | tuple:
        r"""Edit by CODE: encode to time t, improve the latent by Langevin steps at that noise level, decode.

        The steps are those of the "ald" corrector, x + epsilon score + sqrt(2 epsilon) noise with epsilon =
        2 (snr sigma(t))^2. A few make the latent likelier and leave the image recognisable; many draw a new one from
        p_t. Its noise is too strong by a factor of about 1 + snr^2 / 2, which shows as specks from `snr` = 0.1 on.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): As for SDEdit.
            time (`float`, *optional*, defaults to 0.5):
                t of the latent, in (`sampling_eps`, 1]: the scale of what may change. The counterpart of `strength`.
            num_langevin_steps (`int`, *optional*, defaults to 200):
                How many. The latent is forgotten over about 1 / (2 snr^2) of them. With 0, and `confidence=None`, the
                image comes back.
            snr (`float`, *optional*, defaults to 0.05): Size of a Langevin step, as above.
            confidence (`float`, *optional*, defaults to 2.0):
                eta: the encoded latent is clipped to [alpha(t) low - eta sigma(t), alpha(t) high + eta sigma(t)], low
                and high the ends of the data range, since images hardly come to lie beyond. `None` for no clipping.
            num_samples (`int`, *optional*, defaults to 1): Results per image, those of one image side by side.
            generator (`torch.Generator` or a list of them, *optional*): As for SDEdit.
            solver (`str`, *optional*, defaults to `"adams"`): As for [`ScoreSdeOdePipeline`].
            rtol (`float`, *optional*): As for [`ScoreSdeOdePipeline`].
            atol (`float`, *optional*): As for [`ScoreSdeOdePipeline`].
            max_nfe (`int`, *optional*, defaults to 10000): Of either way, as for [`ScoreSdeOdePipeline`].
            sampling_eps (`float`, *optional*): Time at which the images lie; by default the scheduler's.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdeCodeOutput`.

        Returns:
            `ScoreSdeCodeOutput` or a tuple of its fields.

        Raises:
            ValueError: if an argument is not allowed, or the state becomes NaN or infinite.

        Reference: van Delft et al. 2024, arXiv:2408.12418. Deviations: the published code clips at every step of a
        fixed DDIM grid on the way to the latent, and follows the Langevin steps by one more without noise.

        `pipe._interrupt = True` ends the Langevin steps; the latent of that moment is decoded.
        """
        end = self._first_time(sampling_eps, self.scheduler.config.sampling_eps)
        time = real_number("time", time)
        if not end < time <= 1:
            raise ValueError(f"`time` is {time}; it must lie above {end:.3g}, where the images lie, and be at most 1.")
        num_langevin_steps = whole_number("num_langevin_steps", num_langevin_steps, at_least=0)
        confidence = None if confidence is None else real_number("confidence", confidence)
        if confidence is not None and not 0 <= confidence < math.inf:
            raise ValueError(f"`confidence` is {confidence}; it must be finite and at least 0, or `None`.")
        corrector = make_corrector("ald", self.scheduler.sde, real_number("snr", snr))
        self._check_output_type(output_type)
        x_0, padding = self._read(image)
        num_samples = self._check_samples(len(x_0), num_samples, generator)

        options = self._solver_options(solver, rtol, atol, max_nfe)
        there = self._flow(x_0, end, time, options)
        latents = self._clip(there.x, time, confidence).repeat_interleave(num_samples, dim=0)
        latents, steps_made = self._langevin(latents, time, corrector, num_langevin_steps, generator)
        back = self._flow(latents, time, end, options)

        images = self._to_images(padding.crop(back.x), output_type)
        self.maybe_free_model_hooks()
        nfe = there.nfe.repeat_interleave(num_samples) + steps_made + back.nfe
        success = there.success.repeat_interleave(num_samples) & back.success
        fields = (images, latents, nfe, back.error, success)
        return ScoreSdeCodeOutput(*fields) if return_dict else fields

    def _read(self, image: ImageInput) -> tuple[torch.Tensor, Padding]:
        """Images in the data range, with the border that the network needs, on the execution device."""
        self._check_network()
        images, _ = read_images(image, self.unet.config.in_channels)
        padding = Padding(*images.shape[2:], size_factor(self.unet))
        return padding.pad(self._to_data_range(images.to(self._execution_device))), padding

    def _check_samples(self, num_images: int, num_samples: int, generator: Generators) -> int:
        num_samples = whole_number("num_samples", num_samples)
        self._check_generator(generator, num_images * num_samples)
        return num_samples

    def _flow(self, x: torch.Tensor, t_start: float, t_end: float, options: dict) -> FlowResult:
        return probability_flow(self.scheduler.sde, self._score_function(), x, t_start, t_end, **options)

    def _clip(self, x: torch.Tensor, time: float, confidence: float | None) -> torch.Tensor:
        """Latents at `time` within the confidence interval of images of the data range."""
        if confidence is None:
            return x
        low, high = (-1, 1) if self._centered else (0, 1)
        t = torch.tensor(time, dtype=torch.float64)
        alpha, sigma = float(self.scheduler.sde.alpha(t)), float(self.scheduler.sde.sigma(t))
        return x.clamp(alpha * low - confidence * sigma, alpha * high + confidence * sigma)

    def _langevin(self, x: torch.Tensor, time: float, corrector, num_steps: int, generator: Generators):
        """State after steps of a corrector at one time, and their number, fewer if the run is stopped."""
        score_fn, guard, made = self._score_function(), FiniteGuard(), 0
        t, rows = torch.tensor(time, dtype=torch.float64), x.new_full((len(x),), time)
        for i in self.progress_bar(range(num_steps)):
            if self.interrupt:
                break
            noise = randn_tensor(x.shape, generator, x.device, x.dtype)
            x, _ = corrector.update(x, t, t, score_fn(x, rows), noise)
            guard.watch(x, i, last=self.interrupt or i == num_steps - 1)
            made = i + 1
        return x, made


def _num_steps(strength: float, num_inference_steps: int) -> int:
    """Steps that `strength` makes of a grid."""
    strength = real_number("strength", strength)
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` is {strength}; it must lie in (0, 1], 1 for all steps.")
    number = round(strength * num_inference_steps)
    if number == 0:
        raise ValueError(
            f"`strength` is {strength}, which makes none of {num_inference_steps} steps; give at least "
            f"{1 / num_inference_steps:.3g}, or more steps."
        )
    return number
