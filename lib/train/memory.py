"""Memory that ran out, in all the words in which torch and the GPU's libraries say so."""

import contextlib
from collections.abc import Iterator

import torch

# Only torch's own allocator raises OutOfMemoryError; the others raise RuntimeError with one of these.
SAID = (
    "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)  # fmt: skip


class TooLargeError(Exception):
    """A micro-batch did not fit into the memory."""


@contextlib.contextmanager
def scarce(instead: Exception) -> Iterator[None]:
    """Raise `instead` where memory runs out in the block; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(said in str(error) for said in SAID):
            raise
        raise instead from None
