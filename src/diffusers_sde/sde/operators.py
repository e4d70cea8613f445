r"""Linear operators of inverse problems y = A x + noise.

An operator is any object with the methods `A(x)`, linear from images of shape (B, C, H, W) to measurements of shape
(B, ...), and `A_adjoint(y)`, its adjoint: <A u, v> = <u, A* v> in the plain inner product. It may have `A_dagger(y)`,
the Moore-Penrose pseudo-inverse A^+; where it has none, it is computed by conjugate gradients. These are the names of
deepinv, whose linear physics are operators as they are.

A^+ A is the orthogonal projection on what A sees of an image. If the rows of A are orthonormal, A^+ = A*.

Operators bring their own tensors to the device and dtype of what they are given; none is bound to a batch size unless
its tensors are.
"""

import torch
import torch.nn.functional as F

from .linear_inverse import LinearOperator, check_adjoint, pseudo_inverse

__all__ = [
    "BlockAverage",
    "Blur",
    "Cropped",
    "GreyAxis",
    "LinearOperator",
    "Mask",
    "RandomProjection",
    "check_adjoint",
    "pseudo_inverse",
]


class Mask:
    """Known pixels: A x = mask x, of the shape of x.

    Args:
        mask: 1 or `True` where a pixel is known, else 0; broadcasts to (B, C, H, W).

    Raises:
        ValueError: for other values.
    """

    def __init__(self, mask: torch.Tensor):
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                f"`mask` has values in [{float(mask.min()):.4g}, {float(mask.max()):.4g}]; allowed are 1 where known, "
                "and 0."
            )
        self.mask = mask

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """mask x."""
        return self.mask.to(x) * x

    A_adjoint = A_dagger = A


class GreyAxis:
    """Grey images: the coordinate along (1, ..., 1) / sqrt(C), first direction of an orthonormal basis of colours.

    A x has shape (B, 1, H, W) and is sqrt(C) times the mean over the channels.

    Args:
        channels: number C of channels.
    """

    def __init__(self, channels: int = 3):
        self.channels = channels

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """sum over channels / sqrt(C); (B, C, H, W) -> (B, 1, H, W)."""
        return x.sum(dim=1, keepdim=True) / self.channels**0.5

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """y / sqrt(C) in every channel; (B, 1, H, W) -> (B, C, H, W)."""
        return (y / self.channels**0.5).expand(-1, self.channels, -1, -1)

    A_dagger = A_adjoint


class BlockAverage:
    """Super-resolution: means of blocks of `factor` x `factor` pixels, shape (B, C, H / factor, W / factor).

    Args:
        factor: side of a block; must divide H and W.
    """

    def __init__(self, factor: int):
        self.factor = factor

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Means of blocks; (B, C, H, W) -> (B, C, H / factor, W / factor)."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"images of {x.shape[-2]} x {x.shape[-1]} have no whole blocks of {self.factor} x {self.factor}; give "
                f"`height` and `width` that {self.factor} divides."
            )
        return F.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """y / factor^2 in every pixel of its block."""
        return self.A_dagger(y) / self.factor**2

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """y in every pixel of its block: A A* = 1 / factor^2."""
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


class Blur:
    """Circular convolution of every channel with one kernel, by FFT; A x has the shape of x.

    Args:
        kernel: shape (h, w), at most that of the images; its centre is (h // 2, w // 2).
        rtol: frequencies whose gain is below this fraction of the largest count as not measured in A^+; rounding
            errors would be divided by their gains.
    """

    def __init__(self, kernel: torch.Tensor, rtol: float = 1e-3):
        if kernel.ndim != 2:
            raise ValueError(f"`kernel` has shape {tuple(kernel.shape)}; give (height, width).")
        self.kernel, self.rtol = kernel, rtol

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """kernel * x."""
        return self._filter(x, self._gain(x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Convolution with the mirrored kernel."""
        return self._filter(y, self._gain(y).conj())

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """Division by the gains; frequencies without gain are set to zero."""
        gain = self._gain(y)
        seen = gain.abs() > self.rtol * gain.abs().max()
        return self._filter(y, torch.where(seen, 1 / torch.where(seen, gain, 1.0), 0.0))

    def _gain(self, x: torch.Tensor) -> torch.Tensor:
        """Fourier transform of the kernel on the grid of `x`."""
        (h, w), (height, width) = self.kernel.shape, x.shape[-2:]
        if h > height or w > width:
            raise ValueError(f"the kernel is {h} x {w} and the image {height} x {width}; the kernel must fit in it.")
        kernel = F.pad(self.kernel.to(x), (0, width - w, 0, height - h))
        return torch.fft.rfft2(kernel.roll((-(h // 2), -(w // 2)), dims=(0, 1)))

    @staticmethod
    def _filter(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[-2:])


class RandomProjection:
    """Compressed sensing: `num_measurements` random orthonormal rows, without a matrix; A x has shape (B, that).

    Random signs, an orthonormal Hartley transform over channels and pixels, and a random subset of its coefficients:
    n log n work and 2 n numbers for n pixels, any size.

    Args:
        shape: (C, H, W) of the images.
        num_measurements: number of rows, 1 to C H W.
        generator: decides signs and subset.
    """

    def __init__(self, shape: tuple[int, int, int], num_measurements: int, generator: torch.Generator | None = None):
        self.shape = tuple(shape)
        count = torch.Size(self.shape).numel()
        if not 1 <= num_measurements <= count:
            raise ValueError(
                f"`num_measurements` is {num_measurements}; images of shape {self.shape} have 1 to {count}."
            )
        device = None if generator is None else generator.device
        self.signs = 2.0 * torch.randint(0, 2, self.shape, generator=generator, device=device) - 1
        self.chosen = torch.randperm(count, generator=generator, device=device)[:num_measurements].sort().values

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, num_measurements)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"images have shape {tuple(x.shape[1:])}; this projection is of shape {self.shape}.")
        return hartley(self.signs.to(x) * x).flatten(1)[:, self.chosen.to(x.device)]

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """(B, num_measurements) -> (B, C, H, W)."""
        coefficients = y.new_zeros(len(y), self.signs.numel()).index_copy(1, self.chosen.to(y.device), y)
        return self.signs.to(y) * hartley(coefficients.reshape(-1, *self.shape))

    A_dagger = A_adjoint


class Cropped:
    """An operator on the inside of a larger image: A crop(x); the border is not measured.

    Networks take sides that their strides divide. An image of other sides is the inside of a larger one.

    Args:
        operator: acts on what is inside the border.
        border: pixels on the left, right, top and bottom, at least 0.
    """

    def __init__(self, operator: LinearOperator, border: tuple[int, int, int, int]):
        self.operator, self.border = operator, border

    def crop(self, x: torch.Tensor) -> torch.Tensor:
        """`x` without the border."""
        return F.pad(x, [-width for width in self.border])

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """The operator on the inside; the operator's shape."""
        return self.operator.A(self.crop(x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The operator's adjoint in a border of zeros."""
        return F.pad(self.operator.A_adjoint(y), self.border)

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """The operator's pseudo-inverse in a border of zeros."""
        return F.pad(pseudo_inverse(self.operator)(y), self.border)


def hartley(x: torch.Tensor) -> torch.Tensor:
    """Orthonormal Hartley transform over all dimensions but the first: real, symmetric, its own inverse."""
    spectrum = torch.fft.fftn(x, dim=tuple(range(1, x.ndim)), norm="ortho")
    return spectrum.real - spectrum.imag
