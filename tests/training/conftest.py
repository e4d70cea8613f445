import json

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from diffusers_sde.training import parse_args

TINY_NETWORK = {
    "_class_name": "NCSNppModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "attn_resolutions": [],
    "dropout": 0.1,
}


@pytest.fixture(autouse=True)
def fresh_accelerate_on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def no_pause_at_the_end_of_a_stream(monkeypatch):
    """`datasets` sleeps for seconds whenever the reading threads of a stream end: here after every 10 images."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def random_image(seed, size=(8, 8), mode="L"):
    """An image of random values; `size` is (width, height)."""
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(array.squeeze(-1) if channels == 1 else array, mode=None)


@pytest.fixture(scope="session")
def write_parquet():
    """Write images and labels to a parquet file."""

    def write(path, images, column="image"):
        columns = {"label": list(range(len(images))), column: images}
        features = datasets.Features({"label": datasets.Value("int64"), column: datasets.Image()})
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
        return path

    return write


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, write_parquet):
    """A folder with a train split of 10 grey images of 8 x 8 pixels and a test split of RGB images."""
    folder = tmp_path_factory.mktemp("data")
    write_parquet(folder / "train.parquet", [random_image(i) for i in range(10)])
    write_parquet(folder / "test.parquet", [random_image(i, mode="RGB") for i in range(3)])
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def write_network(tmp_path):
    """Write a tiny network configuration; keywords change it."""

    def write(**changes):
        path = tmp_path / "network.json"
        path.write_text(json.dumps(TINY_NETWORK | changes))
        return str(path)

    return write


@pytest.fixture
def make_argv(data_dir, cache_dir, write_network, tmp_path):
    """Arguments of a run of a few seconds; keywords change them, `None` leaves one out, `True` is a bare flag."""

    def make(**changes):
        options = {
            "train_data_dir": data_dir,
            "cache_dir": cache_dir,
            "model_config_name_or_path": None,
            "output_dir": tmp_path / "run",
            "train_batch_size": 4,
            "max_train_steps": 4,
            "lr_warmup_steps": 3,
            "logging_steps": 2,
            "save_images_steps": 0,
            "num_inference_steps": 3,
            "eval_batch_size": 3,
            "save_images_time_share": 1,
            "logger": "none",
        } | changes
        if options["model_config_name_or_path"] is None:
            options["model_config_name_or_path"] = write_network()
        argv = []
        for name, value in options.items():
            if value is not None:
                argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return argv

    return make


@pytest.fixture
def make_args(make_argv):
    return lambda **changes: parse_args(make_argv(**changes))
