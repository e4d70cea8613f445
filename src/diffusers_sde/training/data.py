"""Finding the images of a data set: by name on the Hub, or as local pictures, parquet, arrow or npz files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..data import picture_files

if TYPE_CHECKING:
    import datasets

_SAVED_TO_DISK = "saved_to_disk"
_HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")


def where_of(args: argparse.Namespace) -> dict:
    """Arguments of `load_images` that say where the data of a run are."""
    local = args.train_data_dir or (args.data if args.data is not None and Path(args.data).exists() else None)
    return {
        "dataset_name": None if local else args.dataset_name or args.data,
        "dataset_config_name": args.dataset_config_name,
        "train_data_dir": local,
        "cache_dir": args.cache_dir,
    }


def load_images(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> "datasets.Dataset | datasets.IterableDataset | ArrayImages":
    """Open the `train` split of a data set and keep its image column alone, renamed to "image".

    Args:
        dataset_name: name on the Hub, or whatever else `datasets.load_dataset` takes.
        dataset_config_name: its configuration, if it has several.
        train_data_dir: a folder of images, of parquet or of arrow files, one parquet file, or one npz file.
        image_column: name of the column (npz: of the array); by default the first that holds images.
        cache_dir: where `datasets` keeps its files.
        streaming: whether to read the data set as it comes.

    Raises:
        ValueError: unless exactly one source is given; if the path or the column does not exist, or no column holds
            images.
    """
    import datasets

    if (dataset_name is None) == (train_data_dir is None):
        seen = "neither" if dataset_name is None else "both"
        raise ValueError(f"{seen} of --dataset_name and --train_data_dir given; give exactly one of the two.")
    where = dataset_name or train_data_dir
    if train_data_dir is not None and Path(train_data_dir).suffix == ".npz":
        return load_npz(Path(train_data_dir), image_column)
    if dataset_name is not None:
        source = {"path": dataset_name, "name": dataset_config_name}
    else:
        source = local_files(Path(train_data_dir))
    try:
        dataset = _open(source, cache_dir, streaming)
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise ValueError(
            f"the train split of {where} cannot be read: {error} Give a folder or file that exists, or another data "
            "set, or look up its configurations and splits."
        ) from error
    if not streaming and len(dataset) == 0:
        raise ValueError(f"the train split of {where} is empty; give one with images.")
    column = find_image_column(_features(dataset, where), image_column)
    dataset = dataset.select_columns([column])
    if column != "image":
        dataset = dataset.rename_column(column, "image")
    return dataset.cast_column("image", datasets.Image())


def _open(source: dict, cache_dir: str | None, streaming: bool):
    import datasets

    if source["path"] != _SAVED_TO_DISK:
        return datasets.load_dataset(**source, split="train", cache_dir=cache_dir, streaming=streaming)
    dataset = datasets.load_from_disk(source["data_dir"])
    if isinstance(dataset, datasets.DatasetDict):
        if "train" not in dataset:
            raise ValueError(f"it has the splits {', '.join(dataset)}, but no train.")
        dataset = dataset["train"]
    return dataset.to_iterable_dataset(num_shards=min(len(dataset), 16)) if streaming else dataset


def _features(dataset, where):
    """The columns; a stream may tell them with its first row only."""
    features = dataset.features or getattr(dataset, "_resolve_features", lambda: dataset)().features
    if not features:
        raise ValueError(f"the train split of {where} is empty; give one with images.")
    return features


class ArrayImages:
    """Images of an array as rows of a data set.

    Args:
        array: uint8, shape (N, H, W, C).
    """

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> dict[str, Image.Image]:
        array = self.array[index]
        if array.shape[-1] > 4:
            raise ValueError(
                f"the images of the npz file have {array.shape[0]} x {array.shape[1]} pixels and {array.shape[2]} "
                "channels; only images of 1 to 4 channels are resized or converted. Bring the arrays to the network's "
                "size and channels first."
            )
        return {"image": Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)}


def load_npz(path: Path, name: str | None) -> ArrayImages:
    """The images of an npz file.

    Args:
        path: file with one array of shape (N, H, W) or (N, H, W, C), uint8, or with several arrays.
        name: of the array; by default the only one, or "images", "arr_0" or "x_train".

    Raises:
        ValueError: if the file or the array does not exist, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"--train_data_dir {path} does not exist; give an npz file, or a folder.")
    try:
        with np.load(path, allow_pickle=False) as file:
            usual = [key for key in ("images", "image", "arr_0", "x_train") if key in file.files]
            chosen = name or (file.files[0] if len(file.files) == 1 else next(iter(usual), None))
            if chosen not in file.files:
                raise ValueError(
                    f"it has the arrays {', '.join(file.files)}; name that of the images: --image_column."
                )
            array = file[chosen]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or len(array) == 0:
        raise ValueError(
            f"array {chosen!r} of {path} is {array.dtype} of shape {array.shape}; images are uint8 of shape "
            "(N, H, W) or (N, H, W, C), with N at least 1."
        )
    return ArrayImages(array if array.ndim == 4 else array[..., None])


def local_files(path: Path) -> dict:
    """Arguments for `datasets.load_dataset` that open `path`: a folder of images, or parquet files.

    Raises:
        ValueError: if `path` does not exist, or holds neither.
    """
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    if not path.exists():
        raise ValueError(f"--train_data_dir {path} does not exist; give a folder of images, or parquet files.")
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return {"path": _SAVED_TO_DISK, "data_dir": str(path)}
    for kind in ("parquet", "arrow"):
        files = train_files(path, kind)
        if files:
            return {"path": kind, "data_files": {"train": files}}
    if path.is_file():
        raise ValueError(f"--train_data_dir is the file {path}; allowed are a .parquet or .npz file, or a folder.")
    others = (file for file in path.rglob("*") if file.suffix.lower() in ImageFolder.EXTENSIONS)
    if not picture_files(path) and not any(file.is_file() for file in others):
        seen = sorted(entry.name for entry in path.iterdir())[:10]
        raise ValueError(
            f"no image and no parquet file under --train_data_dir {path} (it holds {seen or 'nothing'}); give a "
            "folder of images, a folder of parquet or arrow files, one parquet file, or one npz file."
        )
    return {"path": "imagefolder", "data_dir": str(path)}


def train_files(path: Path, kind: str) -> list[str]:
    """The files of the train split under `path` that end in `.kind`, sorted; empty if there is no such file at all.

    Files or folders named train* are taken if there are any; else all but those named like a held-out split.

    Raises:
        ValueError: if only held-out splits are there.
    """
    if path.is_file():
        return [str(path)] if path.suffix == f".{kind}" else []
    files = sorted(path.rglob(f"*.{kind}"))
    train = [file for file in files if _split_of(file, path) == "train"]
    chosen = train or [file for file in files if _split_of(file, path) is None]
    if files and not chosen:
        raise ValueError(
            f"{path} holds only {', '.join(file.name for file in files[:5])}; a train split is needed "
            f"(train.{kind} or train-*.{kind}). To train on another one, give that file itself."
        )
    return [str(file) for file in chosen]


def _split_of(file: Path, root: Path) -> str | None:
    relative = file.relative_to(root)
    for name in (relative.stem, *(folder.name for folder in relative.parents)):
        word = name.replace("_", "-").split("-")[0].split(".")[0].lower()
        if word == "train" or word in _HELD_OUT:
            return word
    return None


def find_image_column(features, name: str | None = None) -> str:
    """Name of the image column.

    Args:
        features: of a `datasets.Dataset`.
        name: the column that the user asked for, if any.

    Raises:
        ValueError: if it does not exist or cannot hold images; the message lists the columns.
    """
    listing = ", ".join(f"{column} ({_describe(feature)})" for column, feature in features.items())
    if name is not None and name not in features:
        raise ValueError(f"the data set has no column {name!r}; it has: {listing}.")
    if name is not None and not _may_hold_images(features[name], named=True):
        raise ValueError(f"column {name!r} holds no images; the data set has: {listing}.")
    for column in features if name is None else (name,):
        if _may_hold_images(features[column], named=name is not None):
            return column
    raise ValueError(
        f"the data set has no column of images; it has: {listing}. Give a data set with one, or name the column that "
        "holds encoded images or paths by --image_column."
    )


def _may_hold_images(feature, named: bool) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return named and getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")


def _describe(feature) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)
