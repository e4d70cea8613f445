"""Rows of the CIFAR-10 tables of the paper: the settings that reproduce them, and the numbers that were published.

Table 1 compares samplers on a VE and a VP network of the DDPM architecture, Table 4 the same with rounded labels,
Table 2 has likelihoods and FIDs by the probability flow, Table 3 FIDs and Inception scores of the best samplers.
Settings of samplers are those of the paper's text and its Table 5, else of the official configuration.

Reference: Song et al. 2021, arXiv:2011.13456, Tables 1 to 5, App. G and App. H.
"""

import copy
import json
from collections.abc import Set
from functools import cache
from pathlib import Path

_SCHEDULERS = {"ve": "ScoreSdeVeScheduler", "vp": "ScoreSdeVpScheduler", "subvp": "ScoreSdeSubVpScheduler"}
_TORCH_FIDELITY = (
    "published FIDs and Inception scores were computed by tensorflow_gan, ours are by the extractor above."
)


def paper_rows() -> dict[str, dict]:
    """All rows by name.

    Each has its `table` and `label` there, the official `config`, `settings` (options of `evaluate`), what was
    `published` (as the metrics of a result), and at times a `note`.
    """
    data = copy.deepcopy(_read())
    return {row["name"]: {**row, "settings": {**data["settings"], **row["settings"]}} for row in data["rows"]}


def paper_row(name: str) -> dict:
    """One of `paper_rows`.

    Raises:
        ValueError: if there is none of that name.
    """
    rows = paper_rows()
    if name not in rows:
        raise ValueError(f"there is no row {name!r}; --paper-row list shows all {len(rows)}.")
    return rows[name]


def with_row(options: dict, row: dict, given: Set[str]) -> dict:
    """Options of `evaluate` with a row's settings wherever the user `given` none."""
    return {**options, **{key: value for key, value in row["settings"].items() if key not in given}}


def beside_published(row: dict, options: dict, provenance: dict) -> dict:
    """What was published, and how the settings depart from it.

    Args:
        row: of `paper_rows`.
        options: of this run.
        provenance: of its result.

    Returns:
        `name`, `label`, `config`, `published` and `notes`.
    """
    departures = [
        f"{key} is {options[key]}, and {value} in the row: the numbers do not reproduce it."
        for key, value in row["settings"].items()
        if options[key] != value
    ]
    scheduler = provenance.get("model", {}).get("scheduler")
    expected = _SCHEDULERS[row["config"].split("/")[0]]
    if scheduler is None:
        departures.append("the images were given: how they were drawn is not checked.")
    elif scheduler != expected:
        departures.append(f"the model has a {scheduler}; the row is one of {row['config']}, with a {expected}.")
    notes = [*departures, *([row["note"]] if "note" in row else []), _TORCH_FIDELITY]
    kept = {key: row[key] for key in ("name", "label", "config", "published")}
    return {**kept, "departures": departures, "notes": [f"{row['name']}: {note}" for note in notes]}


def show_rows() -> None:
    """List all rows on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_read()["source"])
    table.add_column("row", no_wrap=True)
    table.add_column("of the paper")
    table.add_column("published")
    for name, row in paper_rows().items():
        published = ", ".join(f"{key} {_number(entry)}" for key, entry in row["published"].items())
        table.add_row(name, f"{row['label']}: {row['config']}", published)
    Console().print(table)


def _number(entry: dict) -> str:
    return f"{entry['value']:.2f}" + (f" +- {entry['std']:.2f}" if "std" in entry else "")


@cache
def _read() -> dict:
    return json.loads((Path(__file__).parent / "paper_rows.json").read_text(encoding="utf-8"))
