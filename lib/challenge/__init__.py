"""The organisers' file formats and their command: `python -m lib.challenge INPUT_DIR OUTPUT_DIR`."""

from lib.challenge.submissions import import_submission, read_submission, write_submission

__all__ = ["import_submission", "read_submission", "write_submission"]
