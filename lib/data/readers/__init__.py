"""Readers of raw data: the files of a format -> checked records, which `lib.data.prepare` makes a prepared split of."""

from lib.data.readers.challenge import check_record, read_challenge, read_info
from lib.data.readers.files import Images
from lib.data.readers.record import NoSplitError, Record
from lib.data.readers.registry import LAYOUTS, READERS

__all__ = [
    "LAYOUTS", "READERS", "Images", "NoSplitError", "Record", "check_record", "read_challenge",
    "read_info",
]  # fmt: skip
