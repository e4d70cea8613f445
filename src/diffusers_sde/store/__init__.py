"""Results on disk: files and folders that are complete or absent, and one writer at a time in a folder."""

from .atomic import (
    read_json,
    replace_folder,
    replacement,
    replacement_folder,
    write_bytes,
    write_json,
    write_text,
)
from .lock import LOCK_NAME, locked_folder

__all__ = [
    "LOCK_NAME",
    "locked_folder",
    "read_json",
    "replace_folder",
    "replacement",
    "replacement_folder",
    "write_bytes",
    "write_json",
    "write_text",
]
