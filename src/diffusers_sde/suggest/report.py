"""Suggestions as tables and sentences for a terminal."""

import math

import click

from .corrector import WITHIN, CorrectorTuning
from .schedule import BETA_MAX

_NAMES = {"VE": "ve", "VP": "vp", "sub-VP": "subvp"}


def describe_noise(report: dict) -> None:
    """Print what `suggest noise` found."""
    from rich.console import Console

    console = Console()
    console.print(_noise_table(report))
    console.print(_prior_table(report))
    data_flags = report["data_flags"]
    click.echo("\nFlags of training/train_sde.py, one line for each SDE:")
    for sde, name in _NAMES.items():
        click.echo(f"\n{sde}:\n{data_flags} {report[name]['flags']}")
    click.echo(f"\nVE, to be sampled by annealed Langevin dynamics:\n{data_flags} {report['ve']['ald_flags']}")


def _noise_table(report: dict):
    from rich.table import Table

    ve, data = report["ve"], report["data"]
    low, high = ve["data_range"]
    levels, decibel = 255 * ve["sigma_min"] / (high - low), 20 * math.log10((high - low) / ve["sigma_min"])
    dimension = data["height"] * data["width"] * data["channels"]
    table = Table("", "value", "why")
    table.add_row("images", f"{data['num_images']:,}", _describe_images(data))
    table.add_row(
        "sample_size, in_channels", f"{data['height']} x {data['width']}, {data['channels']}", f"D = {dimension:,}"
    )
    table.add_row("nearest official", "", f"{ve['official_config']}, {report['vp']['official_config']}")
    table.add_row(*_describe_distance(report["largest_distance"], ve["data_range"]))
    table.add_row("VE sigma_max", f"{ve['sigma_max']:g}", "the largest distance (Technique 1)")
    table.add_row(
        "VE sigma_min", f"{ve['sigma_min']:g}", f"{levels:.3g} of 255 grey levels, {decibel:.0f} dB below white"
    )
    table.add_row(
        "VE noise levels",
        f"{ve['num_noise_levels']}",
        f"ratio {ve['ratio']:.4f}, neighbours overlap by {ve['overlap']:g} (Technique 2)",
    )
    table.add_row(
        "VE ald epsilon, snr",
        f"{ve['ald_step_size']:.3g}, {ve['ald_snr']:.3g}",
        f"{ve['ald_steps']} steps per level leave {ve['ald_variance']:.3f} of its variance (Technique 4)",
    )
    table.add_row("VP, sub-VP beta_max", f"{report['vp']['beta_max']:g}", _describe_beta(report["vp"]))
    return table


def _prior_table(report: dict):
    from rich.table import Table

    columns = ("at t = 1", "alpha", "farthest images, in std of noise", "KL to prior, nats", "W2 to prior, data units")
    table = Table(*columns, caption="KL and W2 per image, its pixels taken as independent Gaussians")
    for sde, name in _NAMES.items():
        prior = report[name]["prior"]
        table.add_row(sde, *(f"{prior[key]:.3g}" for key in ("alpha", "separation", "kl", "wasserstein")))
    return table


def _describe_images(data: dict) -> str:
    sizes = [f"{height} x {width}" for height, width, _ in data["sizes"][:3]]
    more = f" and {len(data['sizes']) - 3} more sizes" if len(data["sizes"]) > 3 else ""
    padded = f", padded to {data['height']} x {data['width']}" if data["pad"] else ""
    return f"{', '.join(sizes)}{more}; mode {', '.join(data['modes'])}{padded}"


def _describe_distance(largest: dict, data_range: list[int]) -> tuple[str, str, str]:
    width = data_range[1] - data_range[0]
    first, second = largest["pair"]
    value, name = f"{width * largest['distance']:.4f}", "largest distance"
    between = f"between images {first} and {second}"
    if largest["exact"]:
        return name, value, f"{between}: exact over all pairs of {largest['num_images']:,} images"
    if largest["upper_bound"] is None:
        return (
            name,
            f">= {value}",
            f"{between}: searched {largest['num_images']:,} images at random, then swept over all. A lower bound",
        )
    return (
        name,
        f">= {value}",
        f"{between}, and at most {width * largest['upper_bound']:.4f}; --max-pairs ended the search",
    )


def _describe_beta(suggestion: dict) -> str:
    needed = f"{suggestion['needed_beta_max']:.1f} brings the farthest images to 1 standard deviation"
    if suggestion["beta_max"] == BETA_MAX:
        return f"the official value; {needed}"
    return f"{needed}, the official {BETA_MAX:g} to {suggestion['official_prior']['separation']:.2f}"


def describe_snr(tuning: CorrectorTuning) -> None:
    """Print what `suggest snr` measured, and what can be said of it."""
    from rich.console import Console
    from rich.table import Table

    comparison = tuning.comparison()
    table = Table("snr", "distance", "more than the best", "")
    for point, row in zip(tuning.points, comparison):
        best = row["difference"] == 0
        table.add_row(
            f"{point['snr']:g}" if point["snr"] else "no corrector",
            _with_error(point["distance"], point["standard_error"]),
            "" if best else _with_error(row["difference"], row["standard_error"]),
            "best" if best else "level" if row["level"] else "",
        )
    if tuning.floor is not None:
        table.add_row("data", f"{tuning.floor:.3g}", "", "as many held-back images")
    Console().print(table)
    click.echo(conclusion(comparison))
    click.echo(f"values: {tuning.output}")


def conclusion(comparison: list[dict]) -> str:
    """What the comparison allows to say."""
    values = [row["snr"] for row in comparison]
    best = next(row["snr"] for row in comparison if row["difference"] == 0)
    level = [row["snr"] for row in comparison if row["level"]]
    if len(values) > 1 and len(level) == len(values):
        return f"All values are level within {WITHIN:g} standard errors: these samples do not tell. Take more of them."
    lines = [f"Best: {_name(best)}."]
    if len(level) > 1:
        others = ", ".join(_name(snr) for snr in level if snr != best)
        lines.append(f"Within {WITHIN:g} standard errors of it, so not known to be worse: {others}.")
    if len(values) > 1 and best == max(values):
        lines.append("It lies at the upper end of the grid; try larger ones.")
    return " ".join(lines)


def _with_error(value: float, error: float) -> str:
    return f"{value:.3g} +- {error:.1g}"


def _name(snr: float) -> str:
    return f"--snr {snr:g}" if snr else "--corrector none"
