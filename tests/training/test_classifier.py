"""Whole runs of a tiny classifier in this process, and its parts."""

import json
import math
import os
import shutil
import signal

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusers_sde import NoiseConditionalClassifier
from diffusers_sde.models.classifier import NoiseConditionalClassifierOutput
from diffusers_sde.training import build_parser, iterate_batches
from diffusers_sde.training.classifier import (
    NUM_LEVELS,
    ClassifierTrainer,
    accuracy_by_sigma,
    train_classifier,
)
from diffusers_sde.training.classifier_options import build_classifier_parser, parse_classifier_args
from tests.oracles import ks_critical, ks_distance

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSIFIER = {
    "_class_name": "NoiseConditionalClassifier",
    "sample_size": 8,
    "in_channels": 1,
    "num_classes": 10,
    "blocks_per_group": 1,
    "channel_multiplier": 1,
    "embedding_features": 8,
    "fourier_scale": 1.0,
    "image_mean": [0.5],
    "image_std": [0.25],
}


def write_labelled(path, images, labels, feature=None):
    features = datasets.Features({"label": feature or datasets.Value("int64"), "image": datasets.Image()})
    datasets.Dataset.from_dict({"label": labels, "image": images}, features=features).to_parquet(path)
    return path


@pytest.fixture
def make_args(data_dir, cache_dir, tmp_path):
    """Arguments of a run of a few seconds; keywords change them, `None` leaves one out, `True` is a bare flag."""

    def make(config=None, **changes):
        path = tmp_path / "classifier.json"
        path.write_text(json.dumps(CLASSIFIER | (config or {})))
        options = {
            "train_data_dir": data_dir,
            "cache_dir": cache_dir,
            "model_config_name_or_path": path,
            "output_dir": tmp_path / "run",
            "train_batch_size": 4,
            "max_train_steps": 4,
            "lr_warmup_steps": 2,
            "logging_steps": 2,
            "logger": "none",
        } | changes
        argv = []
        for name, value in options.items():
            if value is not None:
                argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return parse_classifier_args(argv)

    return make


def weights(folder):
    return load_file(folder / WEIGHTS)


def same(one, other):
    one, other = weights(one), weights(other)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_the_output_is_the_averaged_classifier(make_args, tmp_path):
    run = tmp_path / "run"
    assert train_classifier(make_args(checkpointing_steps=3, logger="tensorboard")) == 4
    assert {path.name for path in run.iterdir()} == {
        *(".files.jsonl", "checkpoint-3", "checkpoint-4", "config.json", "history.jsonl", "logs", WEIGHTS)
    }
    assert same(run, run / "checkpoint-4" / "unet_ema")
    assert not same(run, run / "checkpoint-4" / "unet")
    classifier = NoiseConditionalClassifier.from_pretrained(run)
    assert classifier(torch.zeros(2, 1, 8, 8), 1.0).logits.shape == (2, 10)


@pytest.mark.parametrize(
    "options", [{"random_flip": True, "gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}]
)
def test_a_resumed_run_ends_with_the_same_bits(make_args, tmp_path, options):
    """In the middle of an epoch: 10 images, batches of 4."""
    options = options | {"max_train_steps": 8, "checkpointing_steps": 5}
    train_classifier(make_args(output_dir=tmp_path / "whole", **options))
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", broken / "checkpoint-5")
    assert train_classifier(make_args(output_dir=broken, resume_from_checkpoint="latest", **options)) == 8
    for part in (".", "checkpoint-8/unet", "checkpoint-8/unet_ema"):
        assert same(tmp_path / "whole" / part, broken / part)
    assert not same(broken / "checkpoint-8" / "unet", broken / "checkpoint-5" / "unet")


def test_sigterm_saves(make_args, tmp_path, monkeypatch):
    loss = ClassifierTrainer._loss

    def killed_in_its_third_step(self, *args):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *args)

    monkeypatch.setattr(ClassifierTrainer, "_loss", killed_in_its_third_step)
    assert train_classifier(make_args(max_train_steps=50)) == 3
    assert same(tmp_path / "run", tmp_path / "run" / "checkpoint-3" / "unet_ema")


class Reader:
    """In place of a classifier: tells the label that is written in the image as its brightness, notes what it gets."""

    device = torch.device("cpu")

    def __init__(self, num_classes=10):
        self.num_classes, self.seen = num_classes, []

    def __call__(self, sample, sigma):
        self.seen.append((sample, torch.as_tensor(sigma).expand(len(sample))))
        labels = (sample.mean(dim=(1, 2, 3)) * 255 / 20).round().long().clamp(0, self.num_classes - 1)
        logits = 50.0 * torch.nn.functional.one_hot(labels, self.num_classes)
        return NoiseConditionalClassifierOutput(logits=logits)


@pytest.fixture
def bright(tmp_path):
    """40 images of 8 x 8 pixels whose brightness is 20 times their label."""
    folder = tmp_path / "bright"
    folder.mkdir()
    labels = [i * 7 % 10 for i in range(40)]
    write_labelled(folder / "train.parquet", [Image.new("L", (8, 8), 20 * label) for label in labels], labels)
    return folder


def run_passes(trainer, count, **options):
    trainer.forward = Reader()
    batches = iterate_batches(trainer.source, batch_size=trainer.args.train_batch_size, **options)
    return [trainer._loss(*trainer._batch(next(batches), i)) for i in range(count)]


def test_labels_go_with_their_images(make_args, bright):
    """At little noise every label can be read; over epochs, and in each of two processes."""
    trainer = ClassifierTrainer(make_args(train_data_dir=bright, sigma_max=0.02, train_batch_size=6), start=0.0)
    assert max(run_passes(trainer, 20)) < 1e-6
    trainer.accelerator = type("TwoProcesses", (), {"num_processes": 2, "process_index": 1, "device": "cpu"})()
    trainer.accelerator.device = torch.device("cpu")
    assert max(run_passes(trainer, 20, process_index=1, num_processes=2)) < 1e-6


def test_the_law_of_the_noise(make_args, bright):
    """log sigma uniform, and noise of that standard deviation on images in [0, 1]."""
    trainer = ClassifierTrainer(
        make_args(train_data_dir=bright, sigma_min=0.05, sigma_max=20, train_batch_size=40), 0.0
    )
    run_passes(trainer, 50)
    y, sigma = (torch.cat(parts) for parts in zip(*trainer.forward.seen, strict=True))
    place = (sigma / 0.05).log() / math.log(400)
    assert ks_distance(place, lambda u: u) < ks_critical(len(place))
    ratio = y.double().var(dim=(1, 2, 3)) / sigma.double() ** 2  # of 64 pixels: the images themselves are constant
    assert abs(ratio.mean() - 1) < 5 * (2 / 63 / len(ratio)) ** 0.5


def test_training_learns_classes(make_args, tmp_path, caplog):
    """Bars at eight places; told apart at little noise, not at much."""
    images, labels = [], []
    for label in range(8):
        array = np.zeros((8, 8), dtype=np.uint8)
        array[:, label] = 255
        images.append(Image.fromarray(array))
        labels.append(label)
    folder = tmp_path / "bars"
    folder.mkdir()
    file = write_labelled(folder / "train.parquet", images, labels)
    caplog.set_level("INFO", "diffusers_sde")
    options = {"train_data_dir": folder, "validation_data_dir": file, "ema_decay": 0.9, "learning_rate": 1e-2}
    train_classifier(make_args(max_train_steps=80, train_batch_size=32, logging_steps=40, **options))
    rows = [line.split() for line in caplog.messages if line.startswith("held out")]
    assert len(rows) == 2 * NUM_LEVELS - 1
    accuracy = [float(row[-1]) for row in rows]
    assert accuracy[0] == accuracy[1] == 1.0 and accuracy[-1] < 0.8
    assert [float(rows[i][3].rstrip(",")) for i in (0, -1)] == [0.01, 50]
    told = [line for line in caplog.messages if line.startswith("step 80, loss and accuracy by sigma: 0.01-0.055: ")]
    assert len(told) == 1 and told[0].count(":") == NUM_LEVELS + 1


def test_accuracy_by_noise_level():
    """The mean of 64 pixels misses the label at sigma 4 as often as a normal number of deviation 1/2 misses 20/255."""
    labels = torch.arange(2000) % 10
    images = (20 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    reader = Reader()
    (low, loss, exact), (high, _, accuracy) = accuracy_by_sigma(reader, images, labels, torch.tensor([0.01, 0.4]))
    assert (low, exact) == (pytest.approx(0.01), 1.0) and loss < 1e-6
    within = math.erf(10 / 255 / 0.05 / 2**0.5)
    expected = 0.8 * within + 0.2 * (1 + within) / 2  # the first and last label are missed on one side only
    assert abs(accuracy - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5
    assert accuracy_by_sigma(reader, images, labels, torch.tensor([0.4]), seed=0)[0][2] == accuracy
    assert high == pytest.approx(0.4)


@pytest.mark.parametrize(
    "config, options, message",
    [
        ({}, {"label_column": "klass"}, "--label_column is 'klass'; the data set has label, image"),
        ({}, {"label_column": "image"}, "--label_column 'image' holds Image"),
        ({"num_classes": 5}, {}, "holds 0 to 9; the classifier has num_classes = 5, so labels are 0 to 4"),
        ({}, {"channels": 3}, "--channels is 3, the network's in_channels 1; they must agree"),
        ({}, {"resolution": 16}, "--resolution is 16, the network's sample_size 8; they must agree"),
        ({"in_channels": 3, "image_mean": [0.5], "image_std": [0.5]}, {}, "they need one per channel, 3"),
        ({}, {"validation_data_dir": "nowhere"}, "nowhere does not exist"),
        ({}, {"sigma_min": 3.0, "sigma_max": 2.0}, "0 < sigma_min < sigma_max"),
    ],
)
def test_options_data_and_classifier_must_fit(make_args, config, options, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(make_args(config, **options))


@pytest.mark.parametrize(
    "labels, feature, message",
    [
        ([0.5, 1.0], datasets.Value("float32"), "labels are whole numbers from 0 on"),
        (["a", "b"], datasets.Value("string"), "labels are whole numbers from 0 on"),
        ([-1, 3], None, "holds -1 to 3"),
    ],
)
def test_labels_that_are_refused(make_args, tmp_path, labels, feature, message):
    file = write_labelled(tmp_path / "odd.parquet", [Image.new("L", (8, 8))] * 2, labels, feature)
    with pytest.raises(ValueError, match=message):
        train_classifier(make_args(train_data_dir=file))


def test_class_labels_of_datasets_are_numbers(make_args, tmp_path):
    feature = datasets.ClassLabel(names=["cat", "dog"])
    file = write_labelled(tmp_path / "named.parquet", [Image.new("L", (8, 8))] * 2, ["dog", "cat"], feature)
    assert ClassifierTrainer(make_args(train_data_dir=file), start=0.0).labels.tolist() == [1, 0]


def test_a_score_network_is_no_classifier(make_args, tmp_path):
    args = make_args()
    (tmp_path / "classifier.json").write_text(json.dumps({"_class_name": "NCSNppModel", "sample_size": 8}))
    with pytest.raises(
        ValueError, match="is of a NCSNppModel; give the configuration of a NoiseConditionalClassifier"
    ):
        train_classifier(args)


def test_wrong_options_end_the_program(capsys, make_args):
    with pytest.raises(SystemExit):
        make_args(ema_decay=1)
    assert "--ema_decay is 1.0; it must be at least 0 and below 1" in capsys.readouterr().err


def test_flags_are_those_of_training_score_networks():
    """Same defaults too, but for the output folder; nothing is asked that has no meaning."""
    ours = {action.dest: action for action in build_classifier_parser()._actions}
    theirs = {action.dest: action for action in build_parser()._actions}
    assert set(ours) - set(theirs) == {"label_column", "validation_data_dir"}
    assert not {"sde", "beta_min", "loss_reduction", "save_images_steps", "sampling_eps"} & set(ours)
    assert all(action.help for action in ours.values())
