"""What was published about the official checkpoints: the table in the README of the official PyTorch code."""

from dataclasses import dataclass

SOURCE = "https://github.com/yang-song/score_sde_pytorch#pretrained-checkpoints"


@dataclass(frozen=True)
class PaperRow:
    """A row of the table; what it leaves open is `None`.

    Args:
        fid: FID of the official sampler, on the checkpoint with the smallest one during training (Table 3).
        inception_score: of the same images.
        fid_ode: FID of a black-box ODE solver on the probability flow, on the last checkpoint (Table 2).
        bits_per_dim: negative log-likelihood of the test images by that ODE, uniformly dequantised, same checkpoint.
        official_name: the checkpoint's name there, if it is not that of the configuration.
    """

    fid: float | None = None
    inception_score: float | None = None
    fid_ode: float | None = None
    bits_per_dim: float | None = None
    official_name: str | None = None


_ROWS = {
    "ve/cifar10_ncsnpp": PaperRow(2.45, 9.73),
    "ve/cifar10_ncsnpp_continuous": PaperRow(2.38, 9.83),
    "ve/cifar10_ncsnpp_deep_continuous": PaperRow(2.20, 9.89),
    "vp/ddpm/cifar10": PaperRow(3.24, None, 3.37, 3.28, "vp/cifar10_ddpm"),
    "vp/ddpm/cifar10_continuous": PaperRow(None, None, 3.69, 3.21, "vp/cifar10_ddpm_continuous"),
    "vp/cifar10_ddpmpp": PaperRow(2.78, 9.64),
    "vp/cifar10_ddpmpp_continuous": PaperRow(2.55, 9.58, 3.93, 3.16),
    "vp/cifar10_ddpmpp_deep_continuous": PaperRow(2.41, 9.68, 3.08, 3.13),
    "subvp/cifar10_ddpm_continuous": PaperRow(None, None, 3.56, 3.05),
    "subvp/cifar10_ddpmpp_continuous": PaperRow(2.61, 9.56, 3.16, 3.02),
    "subvp/cifar10_ddpmpp_deep_continuous": PaperRow(2.41, 9.57, 2.92, 2.99),
    # Published with pictures, not with numbers.
    "ve/bedroom_ncsnpp_continuous": PaperRow(),
    "ve/church_ncsnpp_continuous": PaperRow(),
    "ve/ffhq_ncsnpp_continuous": PaperRow(official_name="ve/ffhq_1024_ncsnpp_continuous"),
    "ve/ffhq_256_ncsnpp_continuous": PaperRow(),
    "ve/celebahq_256_ncsnpp_continuous": PaperRow(),
}


def paper_row(config_name: str | None) -> PaperRow | None:
    """The row of an official configuration, or `None` if no checkpoint of it was published in that table."""
    return _ROWS.get(config_name)
