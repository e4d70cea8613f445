"""Rows of data sets, whose images are files, bytes of files, or pictures."""

from typing import Any

from PIL import Image

from .pictures import PictureHeader, read_header, read_picture


def encoded_images(rows: Any, column: str = "image") -> Any:
    """The rows with a column of images left as `datasets` stores them, for `picture_of_row`; arrays as they are."""
    if not hasattr(rows, "cast_column"):
        return rows
    import datasets

    return rows.cast_column(column, datasets.Image(decode=False))


def picture_of_row(value: dict | Image.Image | None, index: int) -> Image.Image:
    """The upright picture of a row, in 8 bits.

    Args:
        value: of the column: path and bytes, as `datasets` has them, or a picture.
        index: number of the row, for messages.

    Raises:
        ValueError: if the row has none, or it cannot be read; the message has the number and the file.
        OSError: if there is no such file.
    """
    return value if isinstance(value, Image.Image) else read_picture(*_source(value, index))


def header_of_row(value: dict | Image.Image | None, index: int) -> PictureHeader:
    """Size and mode of the picture of a row; arguments and errors are those of `picture_of_row`."""
    if isinstance(value, Image.Image):
        return PictureHeader(value.height, value.width, value.mode)
    return read_header(*_source(value, index))


def _source(value: dict | None, index: int) -> tuple[str | bytes, str]:
    """File or bytes, and the name that messages have."""
    path, content = (None, None) if value is None else (value["path"], value["bytes"])
    name = f"image {index} of the data set" + (f", {path}" if path else "")
    if content is not None:
        return content, name
    if path is None:
        raise ValueError(f"{name} is missing: the row is empty. Leave such rows out.")
    if "://" not in path:
        return path, name
    from datasets.utils.file_utils import xopen  # of a data set that is streamed from elsewhere

    with xopen(path, "rb") as file:
        return file.read(), name
