"""Results on disk: complete or absent, of one set of settings, of one writer, and known from files of others."""

from .atomic import (
    naming,
    read_json,
    remove_partials,
    replace_folder,
    replacement,
    replacement_folder,
    restore_folder,
    write_bytes,
    write_json,
    write_text,
)
from .claim import SETTINGS_NAME, check_file, check_settings, claim, is_json_with, read_settings, shorten
from .digest import as_json, digest, file_digest, fingerprint, key_of
from .ledger import LEDGER_NAME, Ledger, foreign_entries, is_plain_file, record_folder
from .lock import LOCK_NAME, locked_file, locked_folder

__all__ = [
    "LEDGER_NAME",
    "LOCK_NAME",
    "SETTINGS_NAME",
    "Ledger",
    "as_json",
    "check_file",
    "check_settings",
    "claim",
    "digest",
    "file_digest",
    "fingerprint",
    "foreign_entries",
    "is_json_with",
    "is_plain_file",
    "key_of",
    "locked_file",
    "locked_folder",
    "naming",
    "read_json",
    "read_settings",
    "record_folder",
    "remove_partials",
    "replace_folder",
    "replacement",
    "replacement_folder",
    "restore_folder",
    "shorten",
    "write_bytes",
    "write_json",
    "write_text",
]
