"""Hostile pickles and zips: refused in one sentence, bounded in time and memory, and nothing is executed."""

import io
import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.challenge.submissions import read_submission, stream_pickle
from lib.errors import InputError
from lib.pickles import MAX_REST, MAX_STEPS, REMEDY, load_pickle

TRAP = []  # whatever runs leaves a trace here or as a file


def spring(*_):
    TRAP.append("executed")
    return {}


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Stateful:
    def __setstate__(self, state):
        spring()

    def __getstate__(self):
        return {"a": 1}


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def ask(module: str, name: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93"


def array_of(shape: bytes, data: bytes, dtype: bytes = b"\x8c\x02u1") -> bytes:
    """A pickled array put together by hand; `shape` and `dtype` are instructions that push them."""
    made = ask("numpy._core.multiarray", "_reconstruct") + ask("numpy", "ndarray")[2:] + b"K\x00\x85C\x01b\x87R"
    kind = ask("numpy", "dtype")[2:] + dtype + b"\x89\x88\x87R"
    return made + b"(K\x01" + shape + kind + b"\x89" + data + b"tb."


def nested_tuple(levels: int) -> bytes:
    """t = (t, t) again and again: hashing or printing it takes 2 to the power of `levels` steps."""
    return b")" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(levels))


NESTED = nested_tuple(26)  # a minute and 600 MiB
LONG = b"B" + struct.pack("<I", 300) + b"a" * 300  # bytes that stay in the file
U1 = ask("numpy", "dtype")[2:] + b"\x8c\x02u1\x89\x88\x87R"

HOSTILE = {
    "os.system inside a submission": pickle.dumps({"a": {"score": 1.0, "pred_area": Call(os.system, "touch it")}}),
    "own function": pickle.dumps(Call(spring, 1)),
    "numpy runstring": ask("numpy.testing._private.utils", "runstring") + text("spring()") + b"}\x86R.",
    "state of an object": pickle.dumps(Stateful()),
    "structured array": pickle.dumps(np.zeros(2, [("x", "u1"), ("y", "O")])),
    "exponential hash": b"\x80\x02}" + nested_tuple(60) + b"K\x01s.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "short bytes for a huge array": array_of(b"J\xff\xff\xff\x7fK\x02\x86", LONG),
    "bytes that are called": b"\x80\x04" + LONG + b")R.",
    "bytes as a key": b"\x80\x04}" + LONG + b"K\x01s.",
    "bytes for masks": b"\x80\x04}" + text("a") + b"}(" + text("score") + LONG + text("pred_area") + LONG + b"us.",
    "two pickles": pickle.dumps({}) + pickle.dumps(Call(os.system, "touch executed")),
    "cut short": pickle.dumps({"a": np.zeros((9, 9))})[:-20],
}


@pytest.fixture
def loaded(tmp_path):
    """What `load_pickle` makes of these bytes."""

    def load(data: bytes):
        (tmp_path / "x.pkl").write_bytes(data)
        return load_pickle(tmp_path / "x.pkl")

    return load


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output.pkl").write_bytes(HOSTILE[name])
    pickle.loads(HOSTILE["own function"])
    assert TRAP  # the bait is live
    TRAP.clear()
    with pytest.raises(InputError, match="output.pkl") as refusal:
        read_submission(tmp_path / "output.pkl")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    assert os.listdir(tmp_path) == ["output.pkl"] and not TRAP


def test_what_would_take_ages_to_print_or_hash_is_refused_unseen(loaded):
    for data in [
        b"\x80\x03cnumpy\ndtype\n(" + NESTED + b"tR.",
        b"\x80\x03cnumpy.core.multiarray\nscalar\n(" + NESTED + b"q\x1ah\x1atR.",
        b"\x80\x03cnumpy.core.numeric\n_frombuffer\n(" + NESTED + b"q\x1a" + b"h\x1a" * 3 + b"tR.",
        b"\x80\x04" + U1 + NESTED + b"b.",
        b"\x80\x04" + U1 + b"(K\x03" + NESTED + b"NNNtb.",
        b"\x80\x04" + NESTED + text("a") + b"\x93)R.",
    ]:
        start = time.process_time()
        with pytest.raises(InputError, match="x.pkl"):
            loaded(data)
        assert time.process_time() - start < 5  # unfolded, a minute


def zipped(pickled: bytes, method: int = zipfile.ZIP_DEFLATED, at="output.pkl", **others) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as archive:
        for name, data in {at: pickled, **others}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def submission(ids=("a",), mask=None) -> bytes:
    mask = np.ones((512, 512), np.uint8) if mask is None else mask
    return pickle.dumps({id: {"score": 0.5, "pred_area": mask} for id in ids}, 4)


def zip_with_a_long_directory(entries: int) -> bytes:
    directory = (b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x") * entries
    return directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)


GOOD = submission()
BOMBS = {
    "a text as an id": (zipped(submission(["a" * 2**24])), "bytes beside its masks", 20),
    "many short bytes": (zipped(b"\x80\x04" + (b"C\xff" + bytes(255)) * 100_000), "bytes beside its masks", 40),
    "instructions": (zipped(b"\x80\x04" + b"}\x94" * 200_000 + b"."), "takes more than 300000 steps", 50),
    "a huge mask": (zipped(submission(mask=np.zeros((2900, 2900), "i8"))), "takes 67280000 bytes, more", 20),
    "a long directory": (zip_with_a_long_directory(200_000), "has a long directory", 20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory_and_time(tmp_path, monkeypatch, name):
    monkeypatch.setattr("lib.pickles.MAX_STEPS", MAX_STEPS // 5)
    data, words, most = BOMBS[name]
    (tmp_path / "x.zip").write_bytes(data)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(InputError, match=words):
        read_submission(tmp_path / "x.zip")
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 15 and peak < most * 2**20


def test_files_and_masks_that_are_too_large_are_refused(tmp_path):
    with open(tmp_path / "sparse.pkl", "wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(InputError, match="sparse.pkl is refused: it has 5368709120 bytes"):
        read_submission(tmp_path / "sparse.pkl")
    (tmp_path / "x.pkl").write_bytes(submission(map(str, range(1000)), np.zeros((1000, 1000), np.uint8)))
    assert (tmp_path / "x.pkl").stat().st_size < 2**21  # one mask, referred to a thousand times
    with pytest.raises(InputError, match="masks take more than"):
        read_submission(tmp_path / "x.pkl", max_bytes=2**26)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_stay_in_the_file_until_they_are_asked_for(tmp_path, protocol):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({f"{k}": np.full((1000, 1000), k, np.uint8) for k in range(20)}, protocol))
    tracemalloc.start()
    result = load_pickle(path)
    loaded = tracemalloc.get_traced_memory()[1]
    sums = [int(np.asarray(array).sum()) for array in result.values()]
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded < 10**6 and read < 4 * 10**6  # of 20 MB
    assert sums == [k * 10**6 for k in range(20)]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_honest_pickles_are_read(loaded, protocol):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2, (40, 30)).astype(kind) for kind in ("u1", "?", ">i4", "<f8", "f2", "i8")]
    arrays += [np.asfortranarray(arrays[0]), arrays[0][::2, ::3], np.zeros((0, 4))]
    arrays += [np.float32(0.5), np.int64(3), np.True_]
    content = {f"id {k}": {"score": 0.25 * k, "pred_area": array, "more": [None, True, -5, "é", b"b"]}
               for k, array in enumerate(arrays)}  # fmt: skip
    data = pickle.dumps(content, protocol)
    if protocol == 3:  # as NumPy 1 wrote it
        data = data.replace(b"cnumpy._core.", b"cnumpy.core.")
    result = loaded(data)
    for id, entry in content.items():
        assert result[id]["score"] == entry["score"] and result[id]["more"] == entry["more"]
        assert result[id]["pred_area"].dtype == entry["pred_area"].dtype
        np.testing.assert_array_equal(result[id]["pred_area"], entry["pred_area"])


def test_a_large_submission_stays_far_from_the_limits(tmp_path, monkeypatch):
    """10,000 images take three times as much as these."""
    monkeypatch.setattr("lib.pickles.MAX_STEPS", MAX_STEPS // 4)
    monkeypatch.setattr("lib.pickles.MAX_REST", MAX_REST // 4)
    mask = np.ones((512, 4), np.uint8)
    stream_pickle(tmp_path / "x.pkl", ((f"image_{k:05d}", 0.5, mask) for k in range(3500)))
    assert len(load_pickle(tmp_path / "x.pkl")) == 3500


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 60))
def test_damaged_pickles_are_read_or_refused_but_never_crash(loaded, noise, place, removed):
    good = submission(mask=np.ones((4, 5), np.uint8))
    try:
        loaded(good[:place] + noise + good[place + removed :])
    except InputError as error:
        assert "\n" not in str(error)


ODD = {
    "a number as an id": {7: {"score": 0.5, "pred_area": np.ones((4, 4), np.uint8)}},
    "another dict": OrderedDict(a={"score": 0.5, "pred_area": np.ones((4, 4), np.uint8)}),
    "protocol 2": {"a": {"score": 0.5, "pred_area": np.ones((4, 4), np.uint8)}},
}


@pytest.mark.parametrize("name", ODD)
def test_honest_but_odd_files_are_told_what_to_save_instead(loaded, name):
    with pytest.raises(InputError, match=f"x.pkl is refused: .*; {re.escape(REMEDY)}$"):
        loaded(pickle.dumps(ODD[name], 2 if name == "protocol 2" else 4))


ZIPS = {
    "unpacks to much": (zipped(b"\0" * 11_000_000), "unpacks to more than"),
    # Says that it unpacks to 10 bytes, and holds a thousand times more.
    "lies": (zipped(b"\0" * 100_000).replace(struct.pack("<I", 100_000), struct.pack("<I", 10)), "s.zip"),
    "no output": (zipped(GOOD).replace(b"output.pkl", b"/tput.pkl/"), "must hold one output.pkl"),
    "in a folder": (zipped(GOOD, at="results/output.pkl"), "holds 'results/output.pkl', in a folder: zip the file"),
    "many files": (zipped(GOOD, **{f"n{k}": b"" for k in range(100)}), "101 files"),
    "hostile output": (zipped(HOSTILE["os.system inside a submission"]), "s.zip: output.pkl is refused: it asks for"),
    "damaged output": (zipped(GOOD[:-20]), "s.zip: output.pkl is not a whole pickle"),
    "large": (zipped(GOOD, noise=os.urandom(10_000_001)), "it has .* bytes; .* one output.pkl of up to 10000000 bytes"),
    "another method": (zipped(GOOD, zipfile.ZIP_LZMA), "has compressed output.pkl by another method"),
    "damaged": (zipped(GOOD)[:60] + b"\xff" * 9 + zipped(GOOD)[69:], "read .Error -3 while decompressing"),
    "encrypted": (zipped(GOOD).replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1"), "is encrypted"),
    "no zip": (b"PK\x03\x04 not really", "s.zip is not a zip file that can be read"),
    "empty": (b"", "s.zip is not a zip file that can be read"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_hostile_and_broken_zips_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, words = ZIPS[name]
    (tmp_path / "s.zip").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_submission(tmp_path / "s.zip", max_bytes=10_000_000)
    assert os.listdir(tmp_path) == ["s.zip"]


def test_zips_are_read_and_missing_ones_are_named(tmp_path):
    (tmp_path / "s.zip").write_bytes(zipped(GOOD, **{"readme.txt": "x"}))
    masks, notes = read_submission(tmp_path / "s.zip")
    assert masks.ids == ["a"] and masks.heatmap("a").all() and notes == []
    with pytest.raises(InputError, match="t.zip does not exist"):
        read_submission(tmp_path / "t.zip")
