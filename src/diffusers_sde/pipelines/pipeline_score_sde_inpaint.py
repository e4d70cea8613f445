"""Inpainting: the rest of an image, given some of its pixels."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from ..sde.arguments import whole_number
from ..sde.operators import Mask
from .base import AnyScheduler, ScoreNetwork
from .image_input import ImageInput, check_pil_mode, read_images
from .output import ScoreSdePipelineOutput
from .pipeline_score_sde_inverse_problem import ScoreSdeInverseProblemPipeline
from .run import own_run


class ScoreSdeInpaintPipeline(ScoreSdeInverseProblemPipeline):
    r"""Inpainting with an unconditional network: `ScoreSdeInverseProblemPipeline` with known pixels as measurement.

    Images of any size; sides that the network does not take get a border that is inpainted, too, and cropped.

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network with the calling convention of `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for; see `from_diffusers_scheduler` for diffusers'.

    Examples:
        ```py
        >>> from PIL import Image
        >>> from diffusers_sde import ScoreSdeInpaintPipeline, embedded_model_path

        >>> pipe = ScoreSdeInpaintPipeline.from_pretrained(embedded_model_path())
        >>> image, mask = Image.open("garment.png").convert("L"), Image.open("mask.png")  # white = repaint
        >>> images = pipe(image, mask, num_samples=4, num_inference_steps=200).images
        ```

    Reference: Song et al. 2021, arXiv:2011.13456, App. I.2. Deviation from the official code: the last step leaves no
    noise in the unknown region; with a scheduler of `denoise_final=False` and `corrector_norm="batch"` the final
    states equal the official ones seed for seed.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        mask_image: ImageInput,
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
        r"""Draw what is behind the white of the mask.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                Images, uint8 or in [0, 1]; PIL and arrays have channels last, tensors first. Known pixels come back
                as they are: the same bits of a tensor, the same 8-bit values of a PIL image.
            mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                White where to repaint, black where known: one mask for all images or one per image, of their size.
                PIL of any mode of 8 or 16 bits; arrays and tensors of shape (H, W) or (B, H, W), or with their one
                channel, bool, whole numbers of 0 and 1, uint8, uint16 or in [0, 1]. Values of at least 0.5 are white,
                as in diffusers' `VaeImageProcessor(do_binarize=True)`.
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
                `"pil"`, `"np"`, `"pt"` or `"latent"`; the last is the final state, known pixels included, as it is.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdePipelineOutput`.
            callback_on_step_end (`Callable`, *optional*): As for [`ScoreSdeInverseProblemPipeline`].
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors given to it: `"latents"`.

        Returns:
            `ScoreSdePipelineOutput` or a tuple with the images.

        Raises:
            ValueError: if an argument is not allowed, image and mask differ in size, a mask leaves nothing to repaint
                or nothing known, or the state becomes NaN or infinite.
        """
        self._check_output_type(output_type)
        num_samples = whole_number("num_samples", num_samples)
        images = read_images(image, self.unet.config.in_channels)[0].to(self._execution_device)
        known = ~read_mask(mask_image, images).repeat_interleave(num_samples, dim=0)
        state = self._restore(
            torch.where(known[::num_samples], images, 0.0),
            Mask(known),
            tuple(images.shape[2:]),
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
            painted = self._to_images(state, "pt")
            given = images.repeat_interleave(num_samples, dim=0)
            state = torch.where(known, given, painted.to(given.dtype))
            state = VaeImageProcessor(vae_scale_factor=1, do_normalize=False).postprocess(state, output_type)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images=state) if return_dict else (state,)


def read_mask(mask_image: ImageInput, images: torch.Tensor) -> torch.Tensor:
    """Where to repaint; bool of shape (B, 1, H, W).

    Args:
        mask_image: as for the pipeline.
        images: those to inpaint, shape (B, C, H, W).

    Raises:
        ValueError: for another type, size or number of masks, values outside [0, 1], or a mask that leaves nothing
            to repaint or nothing known.
    """
    items = mask_image if isinstance(mask_image, list | tuple) else [mask_image]
    masks = read_images([_one_channel(item) for item in items], channels=1, name="mask_image")[0]
    batch, _, height, width = images.shape
    if masks.shape[2:] != images.shape[2:] or len(masks) not in (1, batch):
        raise ValueError(
            f"`mask_image` has {len(masks)} masks of {masks.shape[2]} x {masks.shape[3]}, `image` {batch} images of "
            f"{height} x {width} (height x width); give one mask, or one per image, of the size of the images."
        )
    repaint = (masks >= 0.5).to(images.device).expand(batch, 1, height, width)
    counts = repaint.flatten(1).sum(dim=1)
    for word, found in (("nothing to repaint", counts == 0), ("nothing known", counts == height * width)):
        if bool(found.any()):
            raise ValueError(
                f"mask {int(found.nonzero()[0])} of `mask_image` leaves {word}: its values are in "
                f"[{float(masks.min()):.4g}, {float(masks.max()):.4g}] of 1, and 0.5 and above is repainted. "
                "Use ScoreSdePipeline to draw whole images."
            )
    return repaint


def _one_channel(mask):
    """A mask as `read_images` takes it: one channel, in front for tensors; whole numbers 0 and 1 as levels."""
    if isinstance(mask, Image.Image):
        if mask.mode in ("I", "F") or mask.mode.startswith("I;16"):
            check_pil_mode(mask, 1, "mask_image")
        else:
            mask = mask.convert("L")
        mask = np.array(mask)
    if isinstance(mask, np.ndarray):
        switches = mask.dtype.kind in "biu" and mask.size and mask.min() >= 0 and mask.max() <= 1
        return mask.astype(np.uint8) * 255 if switches else mask
    if isinstance(mask, torch.Tensor):
        if not (mask.is_floating_point() or mask.is_complex()) and mask.numel():
            values = mask.to(torch.int64)
            mask = values.to(torch.uint8) * 255 if 0 <= int(values.min()) and int(values.max()) <= 1 else mask
        return mask[..., None, :, :] if mask.ndim in (2, 3) else mask
    return mask
