"""Log-likelihood of a data set: one row per image, resumable, by any number of processes.

Image i gets its dequantization noise and probes from (seed, i), so its row does not depend on batch or process.
Process r of n takes the images i with i mod n = r and appends rows to its own file; none waits for another. Whoever
finds all rows written puts the result together.
"""

import csv
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch

from ..pipelines import ScoreSdeLikelihoodPipeline
from ..seeding import image_generators

SETTINGS_NAME = "settings.json"
METHODS = ("ode", "elbo")
_COLUMNS = ("index", "bits_per_dim", "log_likelihood", "standard_error", "error", "nfe", "success")


@dataclass
class LikelihoodEvaluation:
    """A data set's likelihood in the making.

    Args:
        pipeline: what measures.
        images: `images[i]` is uint8 of shape (C, H, W).
        output: JSON file of the result; rows are kept in the folder `output`.parts until then and after, and the
            rows of the result also go to a CSV file beside it.
        num_images: the first images of the set that are measured; all if `None`.
        method: "ode" for the likelihood, "elbo" for the bound.
        options: arguments of the pipeline's call or of `elbo`.
        provenance: what else fixes the rows: model, data set, split, preparation.
        seed: of dequantization noise, probes and times.
        batch_size: images per evaluation of the network; it does not change the rows.
        process_index: r.
        num_processes: n.

    Raises:
        ValueError: if an argument is not allowed, or the folder holds rows of other settings.
    """

    pipeline: ScoreSdeLikelihoodPipeline
    images: object
    output: Path
    num_images: int | None = None
    method: str = "ode"
    options: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 16
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; allowed are {', '.join(map(repr, METHODS))}.")
        if not 0 <= self.process_index < self.num_processes:
            raise ValueError(f"process {self.process_index} of {self.num_processes}: there is no such process.")
        if self.num_images is None:
            self.num_images = len(self.images)
        if not 1 <= self.num_images <= len(self.images):
            raise ValueError(f"num_images is {self.num_images}; the split has {len(self.images)} images.")
        self.output = Path(self.output)
        self.folder = self.output.with_name(f"{self.output.name}.parts")
        self._settings = self.settings()

    def settings(self) -> dict:
        """Everything that fixes a row, with versions, as JSON has it."""
        scheduler = self.pipeline.scheduler
        from diffusers_sde import __version__

        settings = {
            **self.provenance,
            "method": self.method,
            "options": self.options,
            "seed": self.seed,
            "network": type(self.pipeline.unet).__name__,
            "weights_sha256": fingerprint(self.pipeline.unet),
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "scheduler": type(scheduler).__name__,
            "scheduler_config": {k: v for k, v in scheduler.config.items() if not k.startswith("_")},
            "versions": {"diffusers_sde": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        }
        return json.loads(json.dumps(settings))

    def claim(self, overwrite: bool = False) -> None:
        """Make the folder of rows this evaluation's own.

        Raises:
            ValueError: if it holds rows of other settings, unless they may be overwritten; if several processes are
                to overwrite.
        """
        path = self.folder / SETTINGS_NAME
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else self._settings
        if found != self._settings:
            differing = [key for key in self._settings if found.get(key) != self._settings[key]]
            if not overwrite:
                raise ValueError(
                    f"{self.folder} holds rows of other settings ({', '.join(differing)} differ). Choose another "
                    "--output, or pass --overwrite to replace them."
                )
            if self.num_processes > 1:
                raise ValueError(f"--overwrite works in one process alone; or remove {self.folder} first.")
            for part in self.folder.glob("*.jsonl"):
                part.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(self._settings, indent=2, sort_keys=True) + "\n")

    def run(self, on_progress=lambda done: None) -> dict | None:
        """Measure this process's missing images.

        Args:
            on_progress: called with the number of images of each batch that is done.

        Returns:
            The result if all images of all processes are measured, else `None`.
        """
        done = self.rows()
        mine = range(self.process_index, self.num_images, self.num_processes)
        missing = [index for index in mine if index not in done]
        on_progress(len(mine) - len(missing))
        part = self.folder / f"rows-{self.process_index}-of-{self.num_processes}.jsonl"
        _mend(part)
        with part.open("a", encoding="utf-8") as file:
            for start in range(0, len(missing), self.batch_size):
                indices = missing[start : start + self.batch_size]
                file.write("".join(json.dumps(row) + "\n" for row in self._measure(indices)))
                file.flush()
                os.fsync(file.fileno())
                on_progress(len(indices))
        return self.finish()

    def rows(self) -> dict[int, dict]:
        """The rows that are written, by index; a line that was cut off by a crash does not count."""
        found = {}
        for part in sorted(self.folder.glob("*.jsonl")):
            for line in part.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    row = json.loads(line)
                    found.setdefault(row["index"], row)
        return found

    def finish(self) -> dict | None:
        """Write the result if all rows are there, and return it; else `None`."""
        found = self.rows()
        if any(index not in found for index in range(self.num_images)):
            return None
        rows = [found[index] for index in range(self.num_images)]
        result = {"num_images": self.num_images, **summary(rows), "settings": self._settings, "rows": rows}
        _write_csv(self.output.with_suffix(".csv"), rows)
        _write(self.output, json.dumps(result, indent=1) + "\n")
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
        columns = {name: [_plain(value) for value in values] for name, values in columns.items()}
        return [
            {"index": index, **{name: values[i] for name, values in columns.items()}}
            for i, index in enumerate(indices)
        ]


def summary(rows: list[dict]) -> dict:
    """Mean and standard error over the images, and what went wrong, of rows in the order of their index.

    Rows that are not finite are left out of the mean and counted.
    """
    result = {}
    for name in ("bits_per_dim", "log_likelihood"):
        values = [row[name] for row in rows if row[name] is not None]
        mean = math.fsum(values) / len(values) if values else None
        spread = math.fsum((v - mean) ** 2 for v in values) if values else 0.0
        count = len(values)
        error = math.sqrt(spread / (count * (count - 1))) if count > 1 else None
        result[name] = {"mean": mean, "standard_error": error}
    result["num_not_finite"] = sum(row["log_likelihood"] is None for row in rows)
    if "success" in rows[0]:
        result["num_not_converged"] = sum(not row["success"] for row in rows)
        result["mean_nfe"] = math.fsum(row["nfe"] for row in rows) / len(rows)
    return result


def fingerprint(network: torch.nn.Module) -> str:
    """SHA-256 of names and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value):
    """The value for JSON, which has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mend(part: Path) -> None:
    """Cut a last line that a crash left without an end."""
    if part.is_file():
        content = part.read_bytes()
        if content and not content.endswith(b"\n"):
            with part.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


def _write(path: Path, content: str) -> None:
    """Write a file that is complete or as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


def _write_csv(path: Path, rows: list[dict]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in _COLUMNS if name in rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
