"""Log-likelihood of images: exactly by the probability flow, or bounded by denoising."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..sde import draw_probes, log_likelihood
from ..sde.arguments import whole_number
from ..sde.elbo import denoising_elbo, elbo_times
from ..sde.precision import double_device, has_float64
from .base import AnyScheduler, ScoreNetwork
from .dequantization import DequantizationFunction, bits_per_dim, choose_bin_width, dequantize, draw_per_image
from .flow import FlowPipelineBase
from .image_input import ImageInput
from .run import own_run


@dataclass
class ScoreSdeLikelihoodPipelineOutput(BaseOutput):
    """Log-likelihood of images, one entry per image.

    Args:
        log_likelihood (`torch.Tensor`):
            Log-density in nats of the dequantized image as the network sees it, in units of its data range: [0, 1] if
            the network says `center_input_sample`, else [-1, 1], where adding D log 2 for D numbers of an image gives
            the density in units of [0, 1]. With several dequantizations the logarithm of the mean density. float64,
            shape (B,).
        bits_per_dim (`torch.Tensor`, *optional*):
            Bits per number of the image, of the shape (B,): minus its log-probability. `None` for continuous data.
        latents (`torch.Tensor`): States at t = 1 of the first dequantization, shape (B, C, H, W).
        nfe (`torch.Tensor`): Evaluations, each a forward pass and a vector-Jacobian product per probe, over all
            dequantizations; int64 of shape (B,).
        standard_error (`torch.Tensor`): Of `log_likelihood` over the probes, in nats: 0 with the exact trace, NaN for
            a single probe; shape (B,).
        bits_per_dim_standard_error (`torch.Tensor`): The same in bits per dimension.
        error (`torch.Tensor`): Estimate of the solver's error of `log_likelihood`, in nats; shape (B,).
        success (`torch.Tensor`): Whether the solver reached t = 1 in steps within its tolerance; bool of shape (B,).
    """

    log_likelihood: torch.Tensor
    bits_per_dim: torch.Tensor | None
    latents: torch.Tensor
    nfe: torch.Tensor
    standard_error: torch.Tensor
    bits_per_dim_standard_error: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor


@dataclass
class ScoreSdeElboOutput(BaseOutput):
    """Bound on the log-likelihood of images, one entry per image; nats, float64 of shape (B,).

    Args:
        log_likelihood_bound (`torch.Tensor`): Sum of the three terms; a log-density as in
            [`ScoreSdeLikelihoodPipelineOutput`], and in expectation not above it for the same generative process.
        bits_per_dim (`torch.Tensor`, *optional*): The bound in bits per number of the image; not below those of the
            process. `None` for continuous data.
        standard_error (`torch.Tensor`): Of the bound, over times and noise.
        bits_per_dim_standard_error (`torch.Tensor`): The same in bits per dimension.
        prior (`torch.Tensor`): Minus the divergence of p(x_1 | x_0) from the prior.
        diffusion (`torch.Tensor`): Minus the integral of the denoising error.
        reconstruction (`torch.Tensor`): Expected log-density of the image given the least noisy state.
    """

    log_likelihood_bound: torch.Tensor
    bits_per_dim: torch.Tensor | None
    standard_error: torch.Tensor
    bits_per_dim_standard_error: torch.Tensor
    prior: torch.Tensor
    diffusion: torch.Tensor
    reconstruction: torch.Tensor


class ScoreSdeLikelihoodPipeline(FlowPipelineBase):
    r"""Log-likelihood of images under a score network.

    Works for any unconditional network: of this package, `UNet2DModel` with the VE SDE, and epsilon-predicting ones
    with a `DDPMScheduler`, through its betas. `docs/likelihood.md` says which number is which.

    Args:
        unet ([`NCSNppModel`] or [`UNet2DModel`]): Network with the calling convention of `UNet2DModel`.
        scheduler ([`ScoreSdeVeScheduler`], [`ScoreSdeVpScheduler`], [`ScoreSdeSubVpScheduler`] or one of diffusers'):
            Scheduler of the SDE that the network was trained for; see `from_diffusers_scheduler` for diffusers'.

    Examples:
        ```py
        >>> from PIL import Image
        >>> from diffusers_sde import ScoreSdeLikelihoodPipeline, embedded_model_path

        >>> pipe = ScoreSdeLikelihoodPipeline.from_pretrained(embedded_model_path())
        >>> output = pipe(Image.open("image.png"), num_probes=4)
        >>> print(output.bits_per_dim, output.bits_per_dim_standard_error)
        ```

    Reference: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and App. D.2.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    @own_run
    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        dequantization: str | DequantizationFunction = "uniform",
        num_dequantizations: int = 1,
        num_probes: int = 1,
        probes: torch.Tensor | None = None,
        probe_kind: str = "rademacher",
        exact_trace: bool = False,
        bin_width: float | None = None,
        solver: str = "adams",
        rtol: float | None = None,
        atol: float | None = None,
        max_nfe: int = 10_000,
        check: bool | None = None,
        sampling_eps: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> ScoreSdeLikelihoodPipelineOutput | tuple:
        r"""Log-likelihood by the probability flow.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                Images, uint8 or in [0, 1]; PIL and arrays have channels last, tensors first. The arithmetic is in
                float32, in float64 if they are given so.
            dequantization (`str` or `Callable`, *optional*, defaults to `"uniform"`):
                `"uniform"`: y = (255 x + u) / 256 with u ~ U[0, 1), for 8-bit images (in general, of 1 / `bin_width`
                levels); `"none"`: the image as it is; or a function `(images, generator) -> images`, all in [0, 1].
            num_dequantizations (`int`, *optional*, defaults to 1):
                Draws K of the dequantization noise, whose densities are averaged; the probes are the same for all.
            num_probes (`int`, *optional*, defaults to 1): Random vectors by which the divergence is estimated.
            probes (`torch.Tensor`, *optional*): These vectors, shape (num_probes, B, C, H, W), instead of drawn ones.
            probe_kind (`str`, *optional*, defaults to `"rademacher"`): `"rademacher"` or `"gaussian"`.
            exact_trace (`bool`, *optional*, defaults to `False`):
                Whether to take the divergence exactly, by as many products as an image has numbers.
            bin_width (`float`, *optional*):
                Width of a level of the data in units of the image range [0, 1]; by default 1/65536 for images given
                in 16 bits, 1/256 for those given in 8 bits and for uniform dequantization. Without one there are no
                bits per dimension.
            solver (`str`, *optional*, defaults to `"adams"`):
                `"adams"` (multistep, few evaluations) or `"dopri5"` (Runge-Kutta 5(4)), both with a step size per
                image.
            rtol (`float`, *optional*):
                Tolerance of a step relative to the state; by default 1e-2 for "adams", 1e-5 for "dopri5".
            atol (`float`, *optional*): Tolerance of a step in nats per dimension, for "dopri5" in units of the state,
                too; by default 5e-4 for "adams", 1e-5 for "dopri5".
            max_nfe (`int`, *optional*, defaults to 10000): Most evaluations per image and dequantization.
            check (`bool`, *optional*):
                Whether to solve once more with tolerances 8 times smaller, to return that solution, and the difference
                as its `error`; by default for the images whose path the solver cannot vouch for.
            sampling_eps (`float`, *optional*): Time at which the images are taken to lie; by default 1e-5, or that of
                the lowest label.
            generator (`torch.Generator` or a list of them, *optional*): Source of dequantization noise, then probes;
                one per image makes each image independent of its batch.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return the output class.

        Returns:
            `ScoreSdeLikelihoodPipelineOutput` or a tuple of its fields.

        Raises:
            ValueError: if an argument is not allowed.
        """
        num_dequantizations = whole_number("num_dequantizations", num_dequantizations)
        if num_dequantizations > 1 and dequantization == "none":
            raise ValueError("`num_dequantizations` is above 1 with dequantization='none', which draws nothing.")
        images, bin_width = self._prepare(image, dequantization, bin_width, generator)
        start = self._first_time(sampling_eps, 0.0)
        states = [self._dequantized(images, dequantization, bin_width, generator) for _ in range(num_dequantizations)]
        if not exact_trace and probes is None:
            num_probes = whole_number("num_probes", num_probes)
            probes = _draw_probes(probe_kind, num_probes, states[0], generator)
        settings = self._solver_options(solver, rtol, atol, max_nfe, check)
        settings |= {"t_start": start, "probes": probes, "exact_trace": exact_trace}
        score_fn = self._score_function()
        results = [log_likelihood(self.scheduler.sde, score_fn, x_0, **settings) for x_0 in states]
        self.maybe_free_model_hooks()

        nats, standard_error, error = _log_mean_density(results)
        nfe = torch.stack([result.nfe for result in results]).sum(dim=0)
        success = torch.stack([result.success for result in results]).all(dim=0)
        bits, bits_error = self._bits(nats, standard_error, images, bin_width)
        latents = results[0].latents
        output = ScoreSdeLikelihoodPipelineOutput(nats, bits, latents, nfe, standard_error, bits_error, error, success)
        return output if return_dict else _fields(output)

    @own_run
    @torch.no_grad()
    def elbo(
        self,
        image: ImageInput,
        num_times: int = 64,
        time_sampling: str = "importance",
        dequantization: str | DequantizationFunction = "uniform",
        bin_width: float | None = None,
        sampling_eps: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> ScoreSdeElboOutput | tuple:
        r"""A bound on the log-likelihood by denoising, in `num_times` + 4 forward passes.

        The generative process whose log-density is bounded is the reverse-time SDE, not the probability flow; with a
        perfect network both have the density of the data.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): As for the likelihood.
            num_times (`int`, *optional*, defaults to 64): Times at which the denoising error is measured; at least 2.
            time_sampling (`str`, *optional*, defaults to `"importance"`):
                `"importance"`: uniform in the log signal-to-noise ratio, where all times weigh the same; `"uniform"`:
                uniform in time.
            dequantization (`str` or `Callable`, *optional*, defaults to `"uniform"`): As for the likelihood.
            bin_width (`float`, *optional*): As for the likelihood.
            sampling_eps (`float`, *optional*): Smallest time, likewise.
            generator (`torch.Generator` or a list of them, *optional*): Source of dequantization, times and noise.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdeElboOutput`.

        Returns:
            `ScoreSdeElboOutput` or a tuple of its fields.

        Raises:
            ValueError: if an argument is not allowed.

        Reference: Song et al. 2021, arXiv:2101.09258, Thm. 3 and App. B.
        """
        num_times = whole_number("num_times", num_times)
        images, bin_width = self._prepare(image, dequantization, bin_width, generator)
        x_0 = self._dequantized(images, dequantization, bin_width, generator)
        start = self._first_time(sampling_eps, 0.0)

        def draw_uniform(one, count):
            where = double_device(x_0.device) if one is None else one.device
            dtype = torch.float64 if has_float64(where) else torch.float32
            drawn = torch.rand((num_times, count), generator=one, device=where, dtype=dtype)
            return drawn.to(double_device(x_0.device))

        uniform = draw_per_image(draw_uniform, generator, len(x_0), dim=1)
        t = elbo_times(self.scheduler.sde, uniform, start, time_sampling)
        result = denoising_elbo(
            self.scheduler.sde,
            self._score_function(),
            x_0,
            t,
            lambda: randn_tensor(x_0.shape, generator, x_0.device, x_0.dtype),
            t_min=start,
            time_sampling=time_sampling,
        )
        self.maybe_free_model_hooks()
        nats, standard_error = result.log_likelihood_bound, result.standard_error
        bits, bits_error = self._bits(nats, standard_error, images, bin_width)
        terms = (result.prior, result.diffusion, result.reconstruction)
        output = ScoreSdeElboOutput(nats, bits, standard_error, bits_error, *terms)
        return output if return_dict else _fields(output)

    def _prepare(self, image, dequantization, bin_width, generator) -> tuple[torch.Tensor, float | None]:
        """Images in [0, 1] and the bin width of the data; checks what both calls share."""
        self._check_network()
        images, levels = self._read_images(image)
        self._check_generator(generator, len(images))
        return images, choose_bin_width(bin_width, dequantization, levels)

    def _dequantized(self, images, dequantization, bin_width, generator) -> torch.Tensor:
        return self._to_data_range(dequantize(images, dequantization, bin_width, generator))

    def _bits(self, nats, standard_error, images, bin_width) -> tuple[torch.Tensor | None, torch.Tensor]:
        dims = images[0].numel()
        width = None if bin_width is None else bin_width * (2 if self._centered else 1)
        bits = None if width is None else bits_per_dim(nats, dims, width)
        return bits, standard_error / (dims * math.log(2))


def _draw_probes(kind: str, num_probes: int, x_0: torch.Tensor, generator) -> torch.Tensor:
    def draw(one, count):
        return draw_probes(kind, (num_probes, count, *x_0.shape[1:]), one, x_0.device, x_0.dtype)

    return draw_per_image(draw, generator, len(x_0), dim=1)


def _log_mean_density(results) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log of the mean density over dequantizations; errors weighed by the share of each in it.

    The dequantizations have their probes in common, so errors are added as if they were the same: an upper bound.
    """
    nats = torch.stack([result.log_likelihood for result in results])
    share = nats.softmax(dim=0)
    standard_error, error = (
        (share * torch.stack([getattr(result, name) for result in results])).sum(dim=0)
        for name in ("standard_error", "error")
    )
    return nats.logsumexp(dim=0) - math.log(len(results)), standard_error, error


def _fields(output) -> tuple:
    return tuple(getattr(output, field.name) for field in dataclasses.fields(output))
