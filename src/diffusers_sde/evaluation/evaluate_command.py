"""What `diffusers-sde evaluate` does: several metrics of a model or a set of images, in one resumable run.

Every process does its share of every part: rows of losses and likelihoods, shards of samples, blocks of features. Then
it looks whether all parts are complete, and puts the result together if they are. None waits for another.
"""

import json
from contextlib import ExitStack
from pathlib import Path

import click
import torch
from torch.utils.data import Subset

from ..pipelines import ScoreSdeLikelihoodPipeline, ScoreSdeOdePipeline, ScoreSdePipeline
from ..pipelines.base import place
from ..store import as_json, check_file, is_json_with, key_of, write_text
from .command import process
from .compare import show_result
from .extractors import load_extractor
from .likelihood import LikelihoodEvaluation
from .paper_table import beside_published
from .parts import Finding, Process, QualityPart, Reference, RowPart
from .provenance import averaging, device_name, git_commit, model_settings, versions
from .quality import NEED_REFERENCE, QUALITY_METRICS, CachedExtractor, FolderImages, check_reference
from .sample_shards import (
    OdeSampler,
    PredictorCorrectorSampler,
    SampleShards,
    ShardImages,
    is_shard_folder,
    open_shards,
)
from .score_loss import ScoreLossEvaluation
from .shards import working_in
from .splits import SplitImages
from .statistics import FeatureStatistics

METRICS = ("loss", "bpd", *QUALITY_METRICS)
OVERRIDES = ("predictor", "corrector", "snr", "correct_steps", "probability_flow")


def run_evaluate(options: dict, row: dict | None = None) -> dict | None:
    """Do this process's share of an evaluation, and say what came out.

    Args:
        options: of the command, by their names.
        row: of the paper's tables, whose published numbers are shown beside; see `paper_table`.

    Returns:
        The result if it is complete, else `None`.

    Raises:
        ValueError: if options are missing or do not go together.
    """
    check_options(options)
    check_file(Path(options["output"]), "a result of this command", is_json_with(metrics=dict, provenance=dict))
    with ExitStack() as locks:
        run = Evaluation(options, locks)
        parts = run.parts()
        for part in parts:
            part.work()
        findings = [part.collect() for part in parts]
    if None in findings:
        click.echo(f"process {run.process.index} of {run.process.count} has done its share; others have not yet.")
        return None
    findings.insert(0, run.finding())
    result = {
        "metrics": {name: value for finding in findings for name, value in finding.metrics.items()},
        "provenance": {name: value for finding in findings for name, value in finding.provenance.items()},
        "notes": [note for finding in findings for note in finding.notes],
    }
    if row is not None:
        result["paper_row"] = beside_published(row, options, result["provenance"])
    run.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(run.output, json.dumps(result, indent=2) + "\n")
    show_result(result)
    click.echo(f"result: {run.output}")
    return result


def check_options(options: dict) -> None:
    """Check, before anything is loaded, that what the metrics need is given.

    Raises:
        ValueError: if it is not, or an option has no meaning.
    """
    metrics = options["metrics"]
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"--metrics has {', '.join(unknown) or 'nothing'}; allowed are {', '.join(METRICS)}.")
    of_data = [name for name in metrics if name in ("loss", "bpd")]
    compared = [name for name in metrics if name in NEED_REFERENCE]
    if options["data"] is None and (of_data or (compared and options["statistics"] is None)):
        raise ValueError(
            f"{', '.join(of_data or compared)} needs {'--data' if of_data else '--data or --statistics'}: what to "
            f"{'measure on' if of_data else 'compare with'}."
        )
    drawing = [f"--{name.replace('_', '-')}" for name in ("steps", *OVERRIDES) if options[name] is not None]
    if options["sampler"] == "ode" and drawing:
        raise ValueError(f"{', '.join(drawing)} goes with --sampler pc only; leave it out.")


class Evaluation:
    """One command's options, the model if it needs one, and the parts of the evaluation.

    Args:
        options: of the command.
        locks: what keeps other runs out of the folders of the parts until it is closed.
    """

    def __init__(self, options: dict, locks: ExitStack):
        self.options, self.locks = options, locks
        index, count, local = process()
        self.process = Process(index, count)
        self.output = Path(options["output"])
        self.folder = Path(options["work_dir"] or self.output.with_name(f"{self.output.name}.parts"))
        self.device = torch.device(options["device"] or (f"cuda:{local}" if torch.cuda.is_available() else "cpu"))
        self.pipeline = None
        if options["samples"] is None or {"loss", "bpd"} & set(options["metrics"]):
            from ..assets import embedded_model_path

            path = embedded_model_path() if options["model"] is None else options["model"]
            self.pipeline = place(ScoreSdePipeline.from_pretrained(path), self.device, options["torch_dtype"])
            self.model = {"name": str(options["model"] or "embedded"), "averaging": averaging(path)}

    def parts(self) -> list[RowPart | QualityPart]:
        """What is to be measured; the cheaper first."""
        metrics = self.options["metrics"]
        parts = []
        if "loss" in metrics:
            settings = {"num_levels": self.options["noise_levels"]}
            parts.append(self._rows("loss", ScoreLossEvaluation, self.pipeline, **settings))
        if "bpd" in metrics:
            pipeline = ScoreSdeLikelihoodPipeline(self.pipeline.unet, self.pipeline.scheduler)
            method = self.options["bpd_method"]
            settings = {"solver": self.options["solver"]} if method == "ode" else {}
            parts.append(self._rows("bits_per_dim", LikelihoodEvaluation, pipeline, method=method, options=settings))
        if set(QUALITY_METRICS) & set(metrics):
            parts.append(self._quality())
        return parts

    def finding(self) -> Finding:
        """Provenance of the run as a whole."""
        common = {"seed": self.options["seed"], "device": device_name(self.device), "versions": versions()}
        common["git"] = git_commit()
        if self.pipeline is not None:
            common["model"] = {**self.model, **as_json(model_settings(self.pipeline))}
        return Finding(provenance=common)

    def _split(self, split: str, shape: tuple[int, ...], limit: int | None) -> tuple[object, dict]:
        """The first `limit` images of a split of --data in a shape (C, H, W), and what says which they are."""
        options = self.options
        preparation = {key: options[key] for key in ("image_column", "pad", "resize")}
        config = options["data_config"]
        images = SplitImages(options["data"], split, shape[1:], shape[0], config_name=config, **preparation)
        if limit is not None and not 1 <= limit <= len(images):
            raise ValueError(f"{limit} images of split {split!r} are asked for; it has {len(images)}.")
        images = images if limit is None else Subset(images, range(limit))
        return images, {"data": options["data"], "data_config": config, "split": split, **preparation}

    def _shape(self) -> tuple[int, ...]:
        """Of the model's images."""
        return (self.pipeline.unet.config.in_channels, *self.pipeline._image_size(None, None))

    def _rows(self, name: str, kind: type, pipeline, **settings) -> RowPart:
        options = self.options
        images, data = self._split(options["split"], self._shape(), options["num_images"])
        self.folder.mkdir(parents=True, exist_ok=True)
        evaluation = kind(
            pipeline,
            images,
            self.folder / f"{name}.json",
            provenance={"model": self.model["name"], **data},
            seed=options["seed"],
            batch_size=options["batch_size"],
            process_index=self.process.index,
            num_processes=self.process.count,
            **settings,
        )
        self._lock(evaluation.folder)
        evaluation.claim(options["overwrite"])
        return RowPart(name, evaluation, data, self.process)

    def _lock(self, folder: Path) -> None:
        self.locks.enter_context(working_in(folder, self.process.index, self.process.count))

    def _quality(self) -> QualityPart:
        options = self.options
        metrics = [name for name in options["metrics"] if name in QUALITY_METRICS]
        embedded = options["model"] is None and options["samples"] is None
        extractor = load_extractor(options["extractor"] or ("classifier" if embedded else "inception"), self.device)
        images, source, drawn = self._images()
        reference = None
        if set(NEED_REFERENCE) & set(metrics):
            reference = self._reference(metrics, extractor, images)
        return QualityPart(
            metrics,
            images,
            source,
            drawn,
            CachedExtractor(extractor, self.folder, options["batch_size"]),
            reference,
            options["shard_size"],
            options["seed"],
            self.process,
        )

    def _images(self) -> tuple[object, dict, SampleShards | None]:
        """The images to measure, what says which they are, and what draws them."""
        given = self.options["samples"]
        if given is None:
            drawn = self._sampling()
            return ShardImages(drawn.shards), {"sampler": drawn.sampler.settings(), "seed": drawn.seed}, drawn
        if is_shard_folder(given):
            shards = open_shards(given)
            return ShardImages(shards), {"folder": str(given), **shards.settings}, None
        return FolderImages(given), {"folder": str(given)}, None

    def _sampling(self) -> SampleShards:
        options, pipeline = self.options, self.pipeline
        if options["sampler"] == "ode":
            ode = ScoreSdeOdePipeline(pipeline.unet, pipeline.scheduler)
            sampler = OdeSampler(ode, options["solver"], bool(options["denoise"]))
        else:
            overrides = {name: options[name] for name in OVERRIDES} | {"denoise_final": options["denoise"]}
            sampler = PredictorCorrectorSampler(with_scheduler(pipeline, overrides), options["steps"])
        drawn = SampleShards(
            sampler,
            self.folder / "samples",
            num_samples=options["num_samples"],
            seed=options["seed"],
            provenance={"model": self.model["name"]},
            batch_size=options["batch_size"],
            shard_size=options["shard_size"],
        )
        self._lock(drawn.shards.folder)
        drawn.shards.claim(options["overwrite"], self.process.count)
        return drawn

    def _reference(self, metrics: list[str], extractor, images) -> Reference:
        options = self.options
        if options["statistics"] is not None:
            statistics = FeatureStatistics.load(options["statistics"])
            check_reference(metrics, statistics, extractor)
            return Reference({"statistics": str(options["statistics"]), **statistics.provenance}, statistics)
        shape = self._shape() if self.pipeline is not None else tuple(images[0].shape)
        real, source = self._split(options["reference_split"], shape, options["num_reference"])
        key = key_of({**source, "shape": shape, "num_images": len(real), "extractor": extractor.fingerprint})
        return Reference(source, images=real, path=self.folder / f"reference-{key}.npz")


def with_scheduler(pipeline: ScoreSdePipeline, overrides: dict) -> ScoreSdePipeline:
    """The same network with some settings of the scheduler replaced; those that are `None` are left alone.

    Raises:
        ValueError: if the scheduler has no such setting, or does not allow it.
    """
    scheduler = pipeline.scheduler
    overrides = {name: value for name, value in overrides.items() if value is not None}
    unknown = [name for name in overrides if name not in scheduler.config]
    if unknown:
        raise ValueError(
            f"{type(scheduler).__name__} has no setting {', '.join(unknown)}; leave it out for this model."
        )
    return ScoreSdePipeline(pipeline.unet, type(scheduler).from_config(scheduler.config, **overrides))
