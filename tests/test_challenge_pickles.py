"""Hostile pickles and zips: refused in one sentence, bounded in time and memory, and nothing is executed."""

import io
import os
import pickle
import pickletools
import re
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.challenge.pickles import MAX_INSTRUCTIONS, MAX_REST, REMEDY, load_pickle
from lib.challenge.submissions import read_submission, stream_pickle
from lib.errors import InputError

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


class Text(str):
    def __hash__(self):
        spring()
        return 1


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
    "os.system": pickle.dumps(Call(os.system, "touch executed")),
    "os.system inside a submission": pickle.dumps({"a": {"score": 1.0, "pred_area": Call(os.system, "touch it")}}),
    "os.system, protocol 2": pickle.dumps(Call(os.system, "touch executed"), 2),
    "eval": pickle.dumps(Call(eval, "__import__('os').system('touch executed')")),
    "own function": pickle.dumps(Call(spring, 1)),
    "open": pickle.dumps(Call(open, "executed", "w")),
    "getattr": pickle.dumps(Call(getattr, "", "format")),
    "subprocess": ask("subprocess", "Popen") + text("touch executed") + b"\x85R.",
    "numpy runstring": ask("numpy.testing._private.utils", "runstring") + text("spring()") + b"}\x86R.",
    "name out of a known module": ask("_codecs", "lookup") + text("zip") + b"\x85R.",
    "state of an object": pickle.dumps(Stateful()),
    "text with its own hash": pickle.dumps({Text("a"): 1}),
    "NEWOBJ": ask("builtins", "object") + b")\x81.",
    "extension registry": b"\x80\x02\x82\x01.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "object array": pickle.dumps({"a": {"score": 1.0, "pred_area": np.array([{}, None], object)}}),
    "structured array": pickle.dumps(np.zeros(2, [("x", "u1"), ("y", "O")])),
    "array subclass": pickle.dumps(np.ma.masked_array([1, 2], [True, False])),
    "array larger than its bytes": array_of(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"C\x04abcd"),
    "array of many dimensions": array_of(b"(" + b"K\x01" * 60 + b"t", b"C\x01a"),
    "array without state": ask("numpy._core.multiarray", "_reconstruct") + b")R.",
    "deep nesting": b"\x80\x04" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "exponential hash": b"\x80\x02}" + nested_tuple(60) + b"K\x01s.",
    "huge memo slot": b"\x80\x02}r\xff\xff\xff\x7f.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"abc.",
    "builds on a function": ask("numpy._core.multiarray", "scalar") + b"N}\x86b.",
    "the function itself": ask("numpy._core.multiarray", "scalar") + b".",
    "persistent id of another's bytes": pickle.dumps(np.zeros(400, np.uint8), 4)[:-1] + b"K\x00Q.",
    "short bytes for a huge array": array_of(b"J\xff\xff\xff\x7fK\x02\x86", LONG),
    "a state for bytes": b"\x80\x04" + LONG + b"N}\x8c\x06source\x8c\x0b/etc/passwds\x86b.",
    "bytes that are called": b"\x80\x04" + LONG + b")R.",
    "bytes as a module": b"\x80\x04" + LONG + text("system") + b"\x93.",
    "bytes as a dtype": ask("numpy", "dtype") + LONG + b"\x89\x88\x87R.",
    "bytes as the state of a dtype": b"\x80\x04" + U1 + LONG + b"b.",
    "bytes as a shape": array_of(LONG, b"C\x01a"),
    "bytes as a key": b"\x80\x04}" + LONG + b"K\x01s.",
    "bytes that are appended to": b"\x80\x04" + LONG + b"K\x01a.",
    "bytes for masks": b"\x80\x04}" + text("a") + b"}(" + text("score") + LONG + text("pred_area") + LONG + b"us.",
    "two pickles": pickle.dumps({}) + pickle.dumps(Call(os.system, "touch executed")),
    "cut short": pickle.dumps({"a": np.zeros((9, 9))})[:-20],
    "text file": b"score: 1.0\n",
    "unknown memo": b"\x80\x02h\x09.",
    "unknown instruction": b"\x80\x04\xfe.",
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
    TRAP.clear()  # making the files above may have sprung it
    with pytest.raises(InputError, match="output.pkl") as refusal:
        read_submission(tmp_path / "output.pkl")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    assert os.listdir(tmp_path) == ["output.pkl"] and not TRAP


def test_the_bait_is_live():
    pickle.loads(HOSTILE["own function"])
    assert TRAP.pop() == "executed"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (b"numpy\ndtype\n", 3),
        (b"numpy.core.multiarray\n_reconstruct\n", 3),
        (b"numpy.core.multiarray\nscalar\n", 2),
        (b"numpy.core.numeric\n_frombuffer\n", 4),
    ],
)
def test_what_would_take_ages_to_print_or_hash_is_refused_unseen(loaded, name, count):
    start = time.perf_counter()
    with pytest.raises(InputError, match="is refused: it"):
        loaded(b"\x80\x03c" + name + b"(" + NESTED + b"q\x1a" + b"h\x1a" * (count - 1) + b"tR.")
    for state in (NESTED + b"b.", b"(K\x03" + NESTED + b"NNNtb."):
        with pytest.raises(InputError, match="x.pkl"):
            loaded(b"\x80\x04" + U1 + state)
    with pytest.raises(InputError, match="x.pkl is refused: it calls something that is no function"):
        loaded(b"\x80\x04" + NESTED + text("a") + b"\x93)R.")
    assert time.perf_counter() - start < 1


def zipped(pickled: bytes, method: int = zipfile.ZIP_DEFLATED, **others) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as archive:
        for name, data in {"output.pkl": pickled, **others}.items():
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
    "instructions": (zipped(b"\x80\x04" + b"}\x94" * 1_000_000 + b"."), "more than 700000", 250),
    "a huge mask": (zipped(submission(mask=np.zeros((2900, 2900), "i8"))), "takes 67280000 bytes, more", 20),
    "a long directory": (zip_with_a_long_directory(200_000), "has a long directory", 20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory_and_time(tmp_path, name):
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
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="x.pkl became shorter"):
        np.asarray(result["0"])


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_honest_pickles_are_read(loaded, protocol):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2, (40, 30)).astype(kind) for kind in ("u1", "?", ">i4", "<f8", "f2", "i8")]
    arrays += [np.asfortranarray(arrays[0]), arrays[0][::2, ::3], np.zeros((0, 4))]
    arrays += [np.float32(0.5), np.int64(3), np.True_]
    content = {f"id {k}": {"score": 0.25 * k, "pred_area": array, "more": [None, True, -5, "é", b"b"]}
               for k, array in enumerate(arrays)}  # fmt: skip
    result = loaded(pickle.dumps(content, protocol))
    for id, entry in content.items():
        assert result[id]["score"] == entry["score"] and result[id]["more"] == entry["more"]
        assert result[id]["pred_area"].dtype == entry["pred_area"].dtype
        np.testing.assert_array_equal(result[id]["pred_area"], entry["pred_area"])


def test_pickles_of_numpy_1_are_read(loaded):
    old = pickle.dumps(np.arange(6, dtype="u1").reshape(2, 3), 3).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old and np.asarray(loaded(old)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_large_submission_stays_far_from_the_limits(tmp_path):
    """Of its 8 MiB and 700,000 instructions; 10,000 images take three times as much as these."""
    mask = np.ones((512, 4), np.uint8)
    stream_pickle(tmp_path / "x.pkl", ((f"image_{k:05d}", 0.5, mask) for k in range(3500)))
    assert (tmp_path / "x.pkl").stat().st_size - 3500 * mask.nbytes < MAX_REST / 3
    assert len(load_pickle(tmp_path / "x.pkl")) == 3500
    instructions = sum(1 for _ in pickletools.genops((tmp_path / "x.pkl").read_bytes()))
    assert instructions < MAX_INSTRUCTIONS / 3


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def zip_of_two_outputs() -> bytes:
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("output.pkl", GOOD)
        archive.writestr("output.pkl", GOOD)
    return buffer.getvalue()


ZIPS = {
    "unpacks to much": (zipped(b"\0" * 11_000_000), "unpacks to more than"),
    # Says that it unpacks to 10 bytes, and holds a thousand times more.
    "lies": (zipped(b"\0" * 100_000).replace(struct.pack("<I", 100_000), struct.pack("<I", 10)), "s.zip"),
    "no output": (zipped(GOOD).replace(b"output.pkl", b"/tput.pkl/"), "must hold one output.pkl"),
    "two outputs": (zip_of_two_outputs(), "must hold one output.pkl"),
    "many files": (zipped(GOOD, **{f"n{k}": b"" for k in range(100)}), "101 files"),
    "hostile output": (zipped(HOSTILE["os.system"]), "s.zip: output.pkl is refused: it asks for"),
    "damaged output": (zipped(GOOD[:-20]), "s.zip: output.pkl is not a whole pickle"),
    "large": (zipped(GOOD, noise=os.urandom(10_000_001)), "it has .* bytes; .* one output.pkl of up to 10000000 bytes"),
    "another method": (zipped(GOOD, zipfile.ZIP_LZMA), "has compressed output.pkl by another method"),
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
