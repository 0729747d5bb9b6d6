"""Small files that unpack to much: with the limits as they stand, reading one takes little memory and time."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy._core.numeric import _frombuffer

SECONDS = 15  # of a processor, on a slow one
# Reads each file in a process of its own, and prints how that went and what memory it took beside Python and NumPy.
READER = """
import json, os, resource, sys, time
from lib.challenge.submissions import read_submission
from lib.errors import InputError

def read(path):
    base, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        told = f"read {len(read_submission(path)[0].ids)}"
    except InputError as error:
        told = str(error)
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    print(json.dumps({"told": told, "seconds": seconds, "mib": peak / (1024 if sys.platform == "linux" else 2**20)}))

for path in sys.argv[1:]:
    if os.fork() == 0:
        read(path)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
MASK, LARGE = np.ones((512, 512), np.uint8), np.eye(8192, dtype=np.uint8)


def zipped(pickled: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("output.pkl", pickled)
    return buffer.getvalue()


def submission(ids=("a",), score=0.5, mask=MASK, protocol: int = 4) -> bytes:
    return pickle.dumps({id: {"score": score, "pred_area": mask} for id in ids}, protocol)


class SameBytes:
    """Pickles as an array of its own, whose bytes are those of all others."""

    data = LARGE.tobytes()

    def __reduce__(self):
        return _frombuffer, (self.data, LARGE.dtype, LARGE.shape, "C")


def padded(instructions: bytes, size: int) -> bytes:
    """Enough bytes that as many instructions as ever are allowed."""
    return b"\x80\x04B" + struct.pack("<I", size) + b"\0" * size + instructions


def zip_with_a_long_directory(entries: int) -> bytes:
    directory = (b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x") * entries
    return directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)


# name: (file, what is said of it, MiB)
FILES = {
    "a text as an id": (lambda: zipped(submission(["a" * 2**26])), "a dict key that is not text of up to 1000", 20),
    "a text as a score": (lambda: zipped(submission(score="a" * 2**26)), "score is a StoredBytes", 20),
    "many texts": (lambda: zipped(submission(f"{k:1000}" for k in range(65_000))), "bytes beside its masks", 40),
    "many short bytes": (lambda: zipped(b"\x80\x04" + (b"C\xff" + bytes(255)) * 200_000), "bytes beside its masks", 40),
    "instructions": (lambda: zipped(b"\x80\x04" + b"}" * 3_999_999 + b"."), "more than 140", 60),
    "instructions beside bytes": (lambda: zipped(padded(b"}\x94" * 2_000_000, 10**8)), "more than 700000", 250),
    "parts beside bytes": (lambda: zipped(padded(b"B\0\0\0\0" * 2_000_000, 10**8)), "more than 700000", 250),
    "a huge mask": (lambda: zipped(submission(mask=np.ones((4096, 4096), "i8"))), "takes 134217728 bytes, more", 20),
    "a huge mask of text": (lambda: zipped(submission(mask=np.ones((8192, 8200), "?"), protocol=2)), "bytes, more", 20),
    "a long directory": (lambda: zip_with_a_long_directory(200_000), "has a long directory", 20),
    "a zip of another method": (lambda: zipped(submission(), zipfile.ZIP_LZMA), "output.pkl by another method", 20),
    # Large but honest.
    "a large mask": (lambda: zipped(submission(mask=LARGE)), "read 1", 250),
    "a large mask of text": (lambda: zipped(submission(mask=np.eye(8192, dtype="?"), protocol=2)), "read 1", 250),
    "a large mask many times": (lambda: zipped(submission(map(str, range(63)), mask=LARGE)), "read 63", 250),
    "its bytes many times": (
        lambda: zipped(pickle.dumps({f"{k}": {"score": 0.5, "pred_area": SameBytes()} for k in range(63)}, 4)),
        "read 63",
        250,
    ),
    "a mask many times": (lambda: zipped(submission(map(str, range(10_000)))), "read 10000", 60),
}


@pytest.fixture(scope="module")
def readings(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{name}.zip" for name in FILES]
    for path, (make, _, _) in zip(paths, FILES.values(), strict=True):
        path.write_bytes(make())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", READER, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=600)
    return dict(zip(FILES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", FILES)
def test_a_small_file_takes_little_memory_and_time(readings, name):
    _, words, most = FILES[name]
    found = readings[name]
    print(name, found)
    assert words in found["told"] and "\n" not in found["told"]
    assert found["mib"] < most and found["seconds"] < SECONDS
