"""Pictures as users and data sets give them."""

from .folders import PICTURE_SUFFIXES, picture_files
from .pictures import FORMATS, MAX_PIXELS, PictureHeader, flatten, read_header, read_picture
from .rows import encoded_images, header_of_row, picture_of_row

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "PictureHeader",
    "encoded_images",
    "flatten",
    "header_of_row",
    "picture_files",
    "picture_of_row",
    "read_header",
    "read_picture",
]
