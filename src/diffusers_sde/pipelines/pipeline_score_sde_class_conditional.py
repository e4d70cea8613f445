"""Class-conditional generation from an unconditional score network and a classifier of noisy images."""

import math
from collections.abc import Callable

import torch

from ..models import NoiseConditionalClassifier
from ..sde.arguments import real_number, whole_number
from .base import AnyScheduler, ScoreNetwork, ScoreSdePipelineBase
from .guidance import ClassifierGuidance
from .loop import sample_predictor_corrector
from .output import ScoreSdePipelineOutput
from .run import own_run


class ScoreSdeClassConditionalPipeline(ScoreSdePipelineBase):
    r"""Predictor-Corrector sampling of the classes of one's choice.

    Predictor and corrector see the score of the network plus `guidance_scale` times the gradient of the classifier's
    log-probability. The classifier takes images in [0, 1] plus noise, whatever the network's data range, and is told
    sigma(t) / alpha(t) in those units; so one classifier serves the networks of all SDEs and both data ranges, as long
    as it was trained up to the largest of these levels: `sigma_max` for VE, 76 for VP and sub-VP with beta from 0.1 to
    20 and data in [-1, 1].

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network with the calling convention of `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for; see `from_diffusers_scheduler` for diffusers'.
        classifier ([`NoiseConditionalClassifier`]): Knows the classes; trained by `training/train_classifier.py`.

    Examples:
        ```py
        >>> from diffusers_sde import (
        ...     NoiseConditionalClassifier,
        ...     ScoreSdeClassConditionalPipeline,
        ...     embedded_classifier_path,
        ...     embedded_model_path,
        ... )

        >>> classifier = NoiseConditionalClassifier.from_pretrained(embedded_classifier_path())
        >>> pipe = ScoreSdeClassConditionalPipeline.from_pretrained(embedded_model_path(), classifier=classifier)
        >>> ankle_boots = pipe([9, 9, 9], num_inference_steps=200).images
        ```

    Reference: Song et al. 2021, arXiv:2011.13456, Sec. 5 and App. I.
    """

    # The classifier is called in turn with the network; outside the sequence it stays on the device, too.
    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler, classifier: NoiseConditionalClassifier):
        super().__init__(unet, scheduler)
        self.register_modules(classifier=classifier)

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | torch.Tensor,
        guidance_scale: float = 1.0,
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
        r"""Draw one image per label.

        Args:
            class_labels (`int`, `list[int]` or `torch.Tensor`): Wanted classes, from 0 to `num_classes` - 1.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Factor on the gradient of the classifier, at least 0. At 1 images follow the distribution of their
                class as network and classifier know it; above, they are more typical and less diverse. At 0 the
                images are those of [`ScoreSdePipeline`], and the classifier is not run.
            num_inference_steps (`int`, *optional*):
                Number of predictor steps; by default the scheduler's `num_train_timesteps`. Each costs
                1 + `correct_steps` evaluations of network and classifier with a corrector, 1 without.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of all noise; one per image makes each image independent of the batch it is drawn in.
            latents (`torch.Tensor`, *optional*):
                State at t = 1 of shape (number of labels, C, H, W), of standard deviation
                `scheduler.init_noise_sigma`.
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
        labels = self._read_labels(class_labels)
        guidance_scale = real_number("guidance_scale", guidance_scale)
        if not 0 <= guidance_scale < math.inf:
            raise ValueError(f"`guidance_scale` is {guidance_scale}; it must be finite and at least 0.")
        if num_inference_steps is None:
            num_inference_steps = self.scheduler.config.num_train_timesteps
        num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
        self._check_generator(generator, len(labels))
        on_step_end = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        height, width = self._image_size(height, width)
        self._check_classifier(height, width)

        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        shape = (len(labels), self.unet.config.in_channels, height, width)
        latents = self._initial_state(latents, shape, generator)
        condition = None
        if guidance_scale > 0:
            condition = ClassifierGuidance(self._classify, labels, guidance_scale, self.scheduler.sde)

        self._num_timesteps = len(self.scheduler.timesteps)
        latents = sample_predictor_corrector(self, latents, generator, condition=condition, on_step_end=on_step_end)

        images = self._to_images(latents, output_type)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images=images) if return_dict else (images,)

    def _classify(self, y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Logits of noisy images in the network's data range, at their noise level in its units."""
        if self._centered:
            y, s = (y + 1) / 2, s / 2
        return self.classifier(y, s).logits

    def _read_labels(self, class_labels) -> torch.Tensor:
        """int64 of shape (B,) on the execution device."""
        try:
            labels = torch.as_tensor(class_labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`class_labels` is {class_labels!r}; give whole numbers, one per image.") from error
        if labels.numel() == 0:
            raise ValueError(f"`class_labels` is {class_labels!r}; give at least one whole number.")
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype is torch.bool:
            raise ValueError(f"`class_labels` are of type {labels.dtype}; give whole numbers, one per image.")
        if labels.ndim > 1:
            raise ValueError(
                f"`class_labels` has shape {tuple(labels.shape)}; give a number, or a list or vector of at least one."
            )
        labels, num_classes = labels.reshape(-1).long(), self.classifier.config.num_classes
        unknown = labels[(labels < 0) | (labels >= num_classes)].tolist()
        if unknown:
            raise ValueError(
                f"`class_labels` has {unknown}; the classifier knows {num_classes} classes, 0 to {num_classes - 1}."
            )
        return labels.to(self._execution_device)

    def _check_classifier(self, height: int, width: int) -> None:
        channels, seen = self.unet.config.in_channels, self.classifier.config.in_channels
        if channels != seen:
            raise ValueError(
                f"the network makes images of {channels} channels and the classifier takes {seen}; both must be "
                "trained on the same images."
            )
        factor = self.classifier.downsample_factor
        if height % factor or width % factor:
            raise ValueError(f"height and width are {height} x {width}; the classifier takes multiples of {factor}.")
