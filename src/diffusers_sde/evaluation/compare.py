"""Results of `diffusers-sde evaluate` on the terminal, alone or side by side, with what makes them incomparable."""

import json
from pathlib import Path

import click

# Provenance that two numbers must share to be compared, by metric; what is not named may differ for a reason.
_SETS = ("extractor.sha256", "reference.sha256", "samples.num_images")
MUST_AGREE = {
    "fid": _SETS,
    "inception_score": ("extractor.sha256", "samples.num_images"),
    "kid": ("extractor.sha256", "reference.sha256"),
    "precision": (*_SETS, "reference.num_images"),
    "recall": (*_SETS, "reference.num_images"),
    "loss": tuple(f"loss.{key}" for key in ("data", "split", "pad", "resize", "num_levels", "t_min")),
    "bits_per_dim": tuple(f"bits_per_dim.{key}" for key in ("data", "split", "pad", "resize", "method", "options")),
}
_UNTOLD = ("samples.images_sha256",)  # differs between any two sets of samples


def run_compare(paths: list[Path]) -> list[str]:
    """Show results side by side, and say where their provenance differs.

    Args:
        paths: of at least two results.

    Returns:
        The warnings.

    Raises:
        ValueError: if there are fewer than two, or one is not a result.
    """
    if len(paths) < 2:
        raise ValueError(f"--compare needs two results or more; {len(paths)} given.")
    results = [read_result(path) for path in paths]
    _print_table([str(path) for path in paths], [result["metrics"] for result in results])
    warnings = compare_provenance(results)
    for warning in warnings:
        click.echo(warning)
    if not warnings:
        click.echo("provenance is the same throughout.")
    return warnings


def read_result(path: Path) -> dict:
    """A result as `evaluate` wrote it.

    Raises:
        ValueError: if the file is something else.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or not {"metrics", "provenance"} <= set(result):
        raise ValueError(f"{path} is not a result of `diffusers-sde evaluate`, which has metrics and provenance.")
    return result


def compare_provenance(results: list[dict]) -> list[str]:
    """One line for each entry of the provenance that differs; those that spoil a common metric come first, and say so.

    Args:
        results: at least two.
    """
    common = set.intersection(*(set(result["metrics"]) for result in results))
    flat = [flatten(result["provenance"]) for result in results]
    differing = [
        key
        for key in dict.fromkeys(key for entries in flat for key in entries)
        if key not in _UNTOLD and any(entries.get(key) != flat[0].get(key) for entries in flat[1:])
    ]
    spoiled = {key: [m for m in MUST_AGREE if m in common and _concerns(key, MUST_AGREE[m])] for key in differing}
    lines = []
    for key in sorted(differing, key=lambda key: not spoiled[key]):
        values = ", ".join(_short(entries.get(key)) for entries in flat)
        if spoiled[key]:
            lines.append(f"warning: {key} differs ({values}): {', '.join(spoiled[key])} cannot be compared.")
        else:
            lines.append(f"note: {key} differs ({values}).")
    return lines


def flatten(entries: dict, prefix: str = "") -> dict:
    """Nested dictionaries as one with dotted keys."""
    flat = {}
    for key, value in entries.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def show_result(result: dict) -> None:
    """Show metrics, what was published, and notes."""
    paper = result.get("paper_row")
    columns, names = [result["metrics"]], ["value"]
    if paper is not None:
        columns.append(paper["published"])
        names.append(f"published: {paper['name']}")
    _print_table(names, columns)
    for note in [*result["notes"], *(paper["notes"] if paper else [])]:
        click.echo(f"note: {note}")


def _concerns(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def _print_table(names: list[str], columns: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric")
    for name in names:
        table.add_column(name, overflow="fold")
    for metric in dict.fromkeys(metric for column in columns for metric in column):
        table.add_row(metric, *(_number(column.get(metric)) for column in columns))
    Console().print(table)


def _number(entry: dict | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    spread = entry.get("std", entry.get("standard_error"))
    return f"{entry['value']:.4f}" + ("" if spread is None else f" +- {spread:.4f}")


def _short(value) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
