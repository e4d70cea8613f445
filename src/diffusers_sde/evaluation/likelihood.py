"""Log-likelihood of a data set, image by image; see `rows` for how it resumes and is shared by processes."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..pipelines import ScoreSdeLikelihoodPipeline
from ..seeding import image_generators
from ..store import check_file, replacement, write_text
from .rows import RowEvaluation, mean_and_error, plain

METHODS = ("ode", "elbo")
_COLUMNS = ("index", "bits_per_dim", "log_likelihood", "standard_error", "error", "nfe", "success")


@dataclass
class LikelihoodEvaluation(RowEvaluation):
    """A data set's likelihood in the making.

    Args:
        pipeline: what measures; the other arguments of `RowEvaluation` likewise. The rows of the result also go to a
            CSV file beside it.
        method: "ode" for the likelihood, "elbo" for the bound.
        options: arguments of the pipeline's call or of `elbo`.

    Raises:
        ValueError: if an argument is not allowed.
    """

    pipeline: ScoreSdeLikelihoodPipeline
    method: str = "ode"
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; allowed are {', '.join(map(repr, METHODS))}.")
        super().__post_init__()

    def own_settings(self) -> dict:
        """What else fixes a row of this kind."""
        return {"method": self.method, "options": self.options}

    def _check_results(self, overwrite: bool) -> None:
        if self.output.suffix == ".csv":
            raise ValueError(f"--output is {self.output}; the result is JSON, with its rows in a CSV file beside it.")
        super()._check_results(overwrite)
        check_file(self.output.with_suffix(".csv"), "the rows of such a result", _is_csv_of_rows)

    def _write_result(self, rows: list[dict]) -> dict:
        result = {"num_images": self.num_images, **summary(rows), "settings": self._settings, "rows": rows}
        _write_csv(self.output.with_suffix(".csv"), rows)
        write_text(self.output, json.dumps(result, indent=1) + "\n")
        return result

    def _measure(self, indices: list[int]) -> list[dict]:
        images = torch.stack([self.images[index] for index in indices])
        generator = image_generators(self.seed, indices)
        if self.method == "ode":
            output = self.pipeline(images, generator=generator, **self.options)
            columns = {name: getattr(output, name).tolist() for name in _COLUMNS[2:]}
        else:
            output = self.pipeline.elbo(images, generator=generator, **self.options)
            columns = {"log_likelihood": output.log_likelihood_bound.tolist()}
            columns["standard_error"] = output.standard_error.tolist()
        columns["bits_per_dim"] = output.bits_per_dim.tolist()
        columns = {name: [plain(value) for value in values] for name, values in columns.items()}
        return [
            {"index": index, **{name: values[i] for name, values in columns.items()}}
            for i, index in enumerate(indices)
        ]


def summary(rows: list[dict]) -> dict:
    """Mean and standard error over the images, and what went wrong, of rows in the order of their index.

    Rows that are not finite are left out of the mean and counted.
    """
    result = {name: mean_and_error([row[name] for row in rows]) for name in ("bits_per_dim", "log_likelihood")}
    result["num_not_finite"] = sum(row["log_likelihood"] is None for row in rows)
    if "success" in rows[0]:
        result["num_not_converged"] = sum(not row["success"] for row in rows)
        result["mean_nfe"] = math.fsum(row["nfe"] for row in rows) / len(rows)
    return result


def _write_csv(path: Path, rows: list[dict]) -> None:
    with replacement(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in _COLUMNS if name in rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def _is_csv_of_rows(path: Path) -> bool:
    with path.open("rb") as file:
        names = file.readline(1000).decode("utf-8", "replace").strip().split(",")
    return names[0] == "index" and set(names) <= set(_COLUMNS)
