"""Colorization: colours for grey images."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from ..sde.operators import GreyAxis
from .base import AnyScheduler, ScoreNetwork
from .image_input import ImageInput, read_images
from .output import ScoreSdePipelineOutput
from .pipeline_score_sde_inverse_problem import ScoreSdeInverseProblemPipeline
from .run import own_run


class ScoreSdeColorizationPipeline(ScoreSdeInverseProblemPipeline):
    r"""Colorization with an unconditional network: `ScoreSdeInverseProblemPipeline` along the grey axis of colours.

    Grey is the mean of the channels, the first direction of an orthonormal basis of colours; the grey image of the
    result is the given one. (PIL's "L" weighs the channels differently; given one, its values become the mean.) Images
    of any size; sides that the network does not take get a border that is drawn freely and cropped.

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network of at least 2 channels, called like `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for; see `from_diffusers_scheduler` for diffusers'.

    Examples:
        ```py
        >>> import numpy as np
        >>> from PIL import Image
        >>> from diffusers_sde import ScoreSdeColorizationPipeline

        >>> pipe = ScoreSdeColorizationPipeline.from_pretrained("path/to/a/colour/model")
        >>> grey = np.asarray(Image.open("photo.png").convert("RGB")).mean(axis=-1) / 255
        >>> images = pipe(grey, num_samples=4, num_inference_steps=200).images
        ```

    Reference: Song et al. 2021, arXiv:2011.13456, App. I.3. Deviation from the official code: its initial state has
    noise in the grey channel that belongs to other channels, ours has the grey image there; and the last step is
    without noise.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        num_samples: int = 1,
        method: str = "replacement",
        guidance_scale: float = 1.0,
        data_std: float = 0.25,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> ScoreSdePipelineOutput | tuple:
        r"""Draw colour images whose mean over channels is the given image.

        A colour that leaves [0, 1] is moved towards grey until it fits, which keeps its mean; clamping each channel
        would not. 8-bit images are rounded per channel, so their means are within half a level.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                Grey images of one channel, uint8 or in [0, 1]: PIL of mode "L", arrays (H, W), tensors (1, H, W) or
                (B, 1, H, W).
            num_samples (`int`, *optional*, defaults to 1):
                Samples per image; those of the first image come first.
            method (`str`, *optional*, defaults to `"replacement"`): `"replacement"`, `"pigdm"` or `"dps"`.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                As for [`ScoreSdeInverseProblemPipeline`]; "replacement" has none.
            data_std (`float`, *optional*, defaults to 0.25): As for [`ScoreSdeInverseProblemPipeline`].
            num_inference_steps (`int`, *optional*):
                Number of predictor steps; by default the scheduler's `num_train_timesteps`.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of all noise; one per sample makes each independent of the batch it is drawn in.
            latents (`torch.Tensor`, *optional*):
                Draw from the prior of shape (samples, C, H, W), sides padded to what the network takes.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"` or `"latent"`; the last is the final state as it is.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdePipelineOutput`.
            callback_on_step_end (`Callable`, *optional*): As for [`ScoreSdeInverseProblemPipeline`].
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors given to it: `"latents"`.

        Returns:
            `ScoreSdePipelineOutput` or a tuple with the images.

        Raises:
            ValueError: if an argument is not allowed, the image has colours or the network has none, or the state
                becomes NaN or infinite.
        """
        self._check_output_type(output_type)
        channels = self.unet.config.in_channels
        if channels < 2:
            raise ValueError("the network makes images of 1 channel; colorization needs one that makes colour images.")
        grey = _read_grey(image).to(self._execution_device)
        state = self._restore(
            grey * channels**0.5,
            GreyAxis(channels),
            tuple(grey.shape[2:]),
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
        if output_type != "latent":
            colour = state / 2 + 0.5 if self._centered else state
            state = with_grey(colour, grey.repeat_interleave(num_samples, dim=0))
            state = VaeImageProcessor(vae_scale_factor=1, do_normalize=False).postprocess(state, output_type)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images=state) if return_dict else (state,)


def with_grey(colour: torch.Tensor, grey: torch.Tensor) -> torch.Tensor:
    """The colours' offsets from their own grey on the given grey, scaled down per pixel until all is in [0, 1].

    Args:
        colour: shape (B, C, H, W).
        grey: in [0, 1], shape (B, 1, H, W).

    Returns:
        Shape (B, C, H, W), in [0, 1], whose mean over channels is `grey`.
    """
    chroma = colour - colour.mean(dim=1, keepdim=True)
    room = torch.where(chroma > 0, 1 - grey, grey)
    fraction = (room / chroma.abs().clamp(min=1e-12)).amin(dim=1, keepdim=True).clamp(0, 1)
    return (grey + fraction * chroma).clamp(0, 1)  # clamps rounding errors


def _read_grey(image: ImageInput) -> torch.Tensor:
    """Grey images in [0, 1], shape (B, 1, H, W)."""
    for item in image if isinstance(image, list | tuple) else [image]:
        if isinstance(item, Image.Image):
            grey = item.mode in ("L", "I", "F") or item.mode.startswith("I;16")
            colours, found = not grey, f"a PIL image of mode {item.mode!r}"
        elif isinstance(item, np.ndarray):
            colours, found = item.ndim > 2 and item.shape[-1] in (3, 4), f"an array of shape {item.shape}"
        else:
            colours = isinstance(item, torch.Tensor) and item.ndim > 2 and item.shape[-3] > 1
            found = f"a tensor of shape {tuple(getattr(item, 'shape', ()))}"
        if colours:
            raise ValueError(
                f"`image` has {found}; colorization takes grey images of one channel. Take the mean of the channels, "
                "or of a PIL image image.convert('L')."
            )
    return read_images(image, channels=1)[0]
