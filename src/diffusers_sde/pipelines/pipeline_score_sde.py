"""Unconditional generation by Predictor-Corrector sampling."""

from collections.abc import Callable

import torch

from ..schedulers import epsilon_of_steps, takes_generator
from ..sde.arguments import whole_number
from .base import AnyScheduler, ScoreNetwork, ScoreSdePipelineBase
from .loop import FiniteGuard, sample_predictor_corrector
from .output import ScoreSdePipelineOutput
from .run import own_run


class ScoreSdePipeline(ScoreSdePipelineBase):
    r"""Predictor-Corrector sampling from a score network.

    Predictor, corrector and their settings are the scheduler's. A scheduler of diffusers' (DDPM, DDIM, DPM-Solver,
    DEIS, UniPC, ...) is run on the networks of all SDEs; see docs/samplers.md. The state is then that solver's own.

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network with the calling convention of `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for.

    Examples:
        ```py
        >>> import torch
        >>> from diffusers_sde import ScoreSdePipeline, embedded_model_path

        >>> pipe = ScoreSdePipeline.from_pretrained(embedded_model_path())
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = pipe(batch_size=4, num_inference_steps=200, generator=generator).images
        ```

    Reference: Song et al. 2021, arXiv:2011.13456, Algorithm 1.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    _needs_own_scheduler = False

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> ScoreSdePipelineOutput | tuple:
        r"""Draw images.

        Args:
            batch_size (`int`, *optional*, defaults to 1): Number of images.
            num_inference_steps (`int`, *optional*):
                Number of predictor steps; by default the scheduler's `num_train_timesteps`. Each costs
                1 + `correct_steps` network evaluations with a corrector, 1 without.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of all noise; one per image makes each image independent of the batch it is drawn in.
            latents (`torch.Tensor`, *optional*):
                State at t = 1 of shape (batch_size, C, H, W), of standard deviation `scheduler.init_noise_sigma`.
            height (`int`, *optional*): Height in pixels; by default the network's `sample_size`.
            width (`int`, *optional*): Width in pixels, likewise.
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
        """
        self._check_network()
        self._check_output_type(output_type)
        batch_size = whole_number("batch_size", batch_size)
        if num_inference_steps is None:
            num_inference_steps = self.scheduler.config.num_train_timesteps
        num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
        self._check_generator(generator, batch_size)
        on_step_end = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        height, width = self._image_size(height, width)

        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        shape = (batch_size, self.unet.config.in_channels, height, width)
        latents = self._initial_state(latents, shape, generator)

        self._num_timesteps = len(self.scheduler.timesteps)
        if hasattr(self.scheduler, "model_timestep"):
            latents = sample_predictor_corrector(self, latents, generator, on_step_end=on_step_end)
        else:
            latents = self._plain_loop(latents, generator, on_step_end)

        images = self._to_images(latents, output_type)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images=images) if return_dict else (images,)

    def _plain_loop(self, x: torch.Tensor, generator, on_step_end: Callable | None) -> torch.Tensor:
        """The loop of a scheduler of diffusers'."""
        timesteps = self.scheduler.timesteps
        kwargs, guard = {"generator": generator} if takes_generator(self.scheduler) else {}, FiniteGuard()
        epsilon = epsilon_of_steps(self.scheduler, self.unet, self._network_output)
        for i, t in enumerate(self.progress_bar(timesteps)):
            output = epsilon(self.scheduler.scale_model_input(x, t), i)
            x = self.scheduler.step(output.to(x.dtype), t, x, return_dict=False, **kwargs)[0]
            if on_step_end is not None:
                x = on_step_end(i, t, x)
            stop = self.interrupt
            guard.watch(x, i, last=stop or i == len(timesteps) - 1)
            if stop:
                break
        return x
