"""The parts of an evaluation: what is measured of each image of a data set, and what of a set of images as a whole.

A part does this process's share when it `work`s; it `collect`s what was found when all processes have done theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .command import progress_bar
from .extractors import FeatureExtractor
from .quality import CachedExtractor, blocks, extract_share, identity, measure_quality
from .rows import RowEvaluation
from .sample_shards import SampleShards, ShardImages
from .statistics import FeatureStatistics, compute_statistics


@dataclass(frozen=True)
class Process:
    """This process, `index` of `count`; the first one shows progress."""

    index: int = 0
    count: int = 1

    def progress(self, description: str, total: int):
        """A progress bar; see `command.progress_bar`."""
        return progress_bar(description, total, show=self.index == 0)


@dataclass
class Finding:
    """What a part found.

    Args:
        metrics: by name, each a dictionary with a `value`.
        provenance: where they come from.
        notes: what a reader of them should know.
    """

    metrics: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class RowPart:
    """A metric of a data set, image by image.

    Args:
        name: of the metric in the result.
        evaluation: what measures.
        data: what says which images they are.
        process: that works.
    """

    name: str
    evaluation: RowEvaluation
    data: dict
    process: Process

    def work(self) -> None:
        """Measure this process's images."""
        with self.process.progress(f"{self.name}, images", len(self.evaluation.share)) as advance:
            self.evaluation.run(advance)

    def collect(self) -> Finding | None:
        """The metric, if all images are measured."""
        result = self.evaluation.finish()
        if result is None:
            return None
        measured = {"value": result[self.name]["mean"], "standard_error": result[self.name]["standard_error"]}
        measured |= {"levels": result["levels"]} if "levels" in result else {}
        problems = {
            "num_not_finite": "gave no finite number and are left out of the mean",
            "num_not_converged": "did not reach the solver's tolerance",
        }
        notes = [f"{self.name}: {result[key]} images {text}." for key, text in problems.items() if result.get(key)]
        provenance = {**self.data, **self.evaluation.own_settings(), "num_images": self.evaluation.num_images}
        return Finding({self.name: measured}, {self.name: provenance}, notes)


@dataclass
class Reference:
    """Statistics of real images: given, or computed of a data set and kept.

    Args:
        source: what says which images they are.
        statistics: if they are given.
        images: if they are not.
        path: of the file in which computed statistics are kept.
    """

    source: dict
    statistics: FeatureStatistics | None = None
    images: Sequence[torch.Tensor] | None = None
    path: Path | None = None

    def work(self, extractor: CachedExtractor, block_size: int, process: Process) -> None:
        """Extract the features of this process's blocks."""
        if self.statistics is None and FeatureStatistics.wrote(self.path):
            self.statistics = FeatureStatistics.load(self.path)
        if self.statistics is None:
            extract_blocks(self.images, extractor, block_size, process, "reference, images")

    def collect(self, extractor: CachedExtractor, block_size: int, process: Process) -> FeatureStatistics | None:
        """The statistics, if all features are there."""
        if self.statistics is None and all_known(self.images, extractor, block_size, process):
            batches = blocks(self.images, block_size)
            self.statistics = compute_statistics(batches, extractor, provenance=self.source)
            self.statistics.save(self.path)
        return self.statistics


@dataclass
class QualityPart:
    """Metrics of a set of images.

    Args:
        metrics: of `quality.QUALITY_METRICS`.
        images: the set, each uint8 of shape (C, H, W).
        source: what says which images they are.
        drawn: what draws them, if they are not given.
        extractor: of the features.
        reference: that they are compared with; `None` if no metric needs one.
        block_size: images of a block of features.
        seed: of the metrics' subsets and splits.
        process: that works.
    """

    metrics: Sequence[str]
    images: Sequence[torch.Tensor]
    source: dict
    drawn: SampleShards | None
    extractor: CachedExtractor
    reference: Reference | None
    block_size: int
    seed: int
    process: Process

    def work(self) -> None:
        """Draw this process's shards, and extract the features of its blocks of both sets."""
        index, count = self.process.index, self.process.count
        if self.drawn is not None:
            total = self.drawn.shards.num_items(index, count)
            with self.process.progress("samples, images", total) as advance:
                self.drawn.draw(index, count, advance)
        extract_blocks(self.images, self.extractor, self.block_size, self.process, "features of samples, images")
        if self.reference is not None:
            self.reference.work(self.extractor, self.block_size, self.process)

    def collect(self) -> Finding | None:
        """The metrics, if all images are drawn and all features extracted."""
        provenance, notes = {"source": self.source, "num_images": len(self.images)}, []
        if isinstance(self.images, ShardImages):
            tensors = self.images.shards.load("nfe", "success")
            if tensors is None:
                return None
            failed = int((~tensors["success"]).sum())
            provenance |= {"mean_nfe": float(tensors["nfe"].double().mean()), "num_not_converged": failed}
            notes += [f"samples: {failed} images did not reach the solver's tolerance."] if failed else []
        reference = None
        if self.reference is not None:
            reference = self.reference.collect(self.extractor, self.block_size, self.process)
            if reference is None:
                return None
        if not all_known(self.images, self.extractor, self.block_size, self.process):
            return None
        samples = compute_statistics(blocks(self.images, self.block_size), self.extractor)
        metrics = measure_quality(self.metrics, samples, reference, self.seed)
        provenance["images_sha256"] = samples.provenance["images_sha256"]
        bias = samples.bias_note() if "fid" in metrics else None
        notes += [] if bias is None else [f"fid: {bias}"]
        if "precision" in metrics and reference.count != len(self.images):
            sizes = f"{len(self.images)} samples and {reference.count} real images"
            notes.append(f"precision, recall: of {sizes}; both depend on the numbers, which are best equal.")
        found = {"samples": provenance, "extractor": describe_extractor(self.extractor)}
        if reference is not None:
            own = {"num_images": reference.count, "sha256": identity(reference)}
            found["reference"] = {**self.reference.source, **own}
        return Finding(metrics, found, notes)


def extract_blocks(images, extractor: CachedExtractor, block_size: int, process: Process, description: str) -> None:
    """Extract and keep the features of this process's blocks, with a progress bar."""
    share = range(process.index * block_size, len(images), process.count * block_size)
    total = sum(min(block_size, len(images) - start) for start in share)
    with process.progress(description, total) as advance:
        extract_share(images, extractor, block_size, process.index, process.count, advance)


def all_known(images, extractor: CachedExtractor, block_size: int, process: Process) -> bool:
    """Whether the features of all blocks are kept; a process alone has extracted them."""
    return process.count == 1 or all(extractor.knows(block) for block in blocks(images, block_size))


def describe_extractor(extractor: FeatureExtractor) -> dict:
    """What tells an extractor from another."""
    return {"name": extractor.name, "sha256": extractor.fingerprint, "num_features": extractor.num_features}
