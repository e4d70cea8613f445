"""One split of a data set of images, image by image, in 8 bits and the size that a network takes."""

from pathlib import Path

import torch

from ..data import encoded_images, picture_of_row
from ..training.data import find_image_column
from ..training.images import ImageFormat


class SplitImages:
    """The images of a split, `images[i]` as uint8 of shape (C, H, W).

    Args:
        dataset: name on the Hub, a folder of images or parquet files, or one parquet file.
        split: its name, "test" for instance.
        size: (height, width) that the network takes; of the first image if `None`.
        channels: that the network takes; of the first image if `None`.
        config_name: configuration of the data set on the Hub.
        image_column: by default the first that holds images.
        pad: whether smaller images get a black border.
        resize: whether images of other sizes are resized and cropped at the centre, colours converted.

    Raises:
        ValueError: if there is no such data set, split or column.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        *,
        config_name: str | None = None,
        image_column: str | None = None,
        pad: bool = False,
        resize: bool = False,
    ):
        import datasets

        path = Path(dataset)
        source = _local_split(path, split) if path.exists() else {"path": dataset, "name": config_name, "split": split}
        try:
            self.rows = datasets.load_dataset(**source)
        except (datasets.exceptions.DatasetsError, ValueError, FileNotFoundError) as error:
            raise ValueError(f"split {split!r} of {dataset} cannot be read: {error}") from error
        column = find_image_column(self.rows.features, image_column)
        self.rows = encoded_images(self.rows.select_columns([column]), column)
        self.column, self.resize = column, resize
        self._who = "the first image has" if size is None else "the network takes"
        if size is None or channels is None:
            first = self._first_image(f"split {split!r} of {dataset}")
            size = (first.height, first.width) if size is None else size
            channels = len(first.getbands()) if channels is None else channels
        self.format = ImageFormat(size, channels, convert=resize, pad=pad, center_crop=True)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = picture_of_row(self.rows[index][self.column], index)
        height, width = self.format.size
        fits = image.size == (width, height) or (self.format.pad and image.width <= width and image.height <= height)
        if not (fits or self.resize):
            raise ValueError(
                f"image {index} has {image.height} x {image.width} pixels, {self._who} {height} x {width}. Pad "
                "small images with --pad, as in training, or resize with --resize; both change what is measured."
            )
        return torch.from_numpy(self.format.crop(self.format.prepare(image)))

    def _first_image(self, name: str):
        if len(self.rows) == 0:
            raise ValueError(f"{name} is empty; give one with images.")
        return picture_of_row(self.rows[0][self.column], 0)


def _local_split(path: Path, split: str) -> dict:
    """Arguments of `datasets.load_dataset` for the files of a split under `path`."""
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"--data is the file {path}; give a .parquet file, a folder, or a name on the Hub.")
        return {"path": "parquet", "data_files": {split: [str(path)]}, "split": split}
    files = sorted(path.rglob("*.parquet"))
    if files:
        chosen = [str(file) for file in files if _is_of(file.relative_to(path), split)]
        if not chosen:
            names = ", ".join(str(file.relative_to(path)) for file in files[:5])
            raise ValueError(f"{path} has no parquet file of split {split!r}, only {names}; give --split or the file.")
        return {"path": "parquet", "data_files": {split: chosen}, "split": split}
    folder = path / split
    if not folder.is_dir():
        raise ValueError(f"there is neither a parquet file nor a folder {folder}; give --split, or other --data.")
    return {"path": "imagefolder", "data_dir": str(folder), "split": "train"}  # `datasets` calls a lone folder so


def _is_of(relative: Path, split: str) -> bool:
    stem = relative.stem
    return stem == split or stem.startswith((f"{split}-", f"{split}_", f"{split}.")) or split in relative.parts[:-1]
