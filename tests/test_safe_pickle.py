"""Hostile pickles and zips: refused in one sentence, bounded in time and memory, and nothing is executed."""

import io
import os
import pickle
import re
import resource
import struct
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.challenge import pickle_scan
from lib.challenge.safe_pickle import load_pickle
from lib.challenge.submissions import read_submission
from lib.challenge.zips import unpack
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
    "os.system, protocol 0": pickle.dumps(Call(os.system, "touch executed"), 0),
    "os.system, protocol 2": pickle.dumps(Call(os.system, "touch executed"), 2),
    "eval": pickle.dumps(Call(eval, "__import__('os').system('touch executed')")),
    "exec": pickle.dumps(Call(exec, "open('executed', 'w')")),
    "own function": pickle.dumps(Call(spring, 1)),
    "open": pickle.dumps(Call(open, "executed", "w")),
    "getattr": pickle.dumps(Call(getattr, "", "format")),
    "subprocess": ask("subprocess", "Popen") + text("touch executed") + b"\x85R.",
    "numpy.load": ask("numpy", "load") + text("x.npy") + b"\x85R.",
    "numpy runstring": ask("numpy.testing._private.utils", "runstring") + text("spring()") + b"}\x86R.",
    "dotted name": ask("numpy", "ndarray.__class__") + b")R.",
    "name out of a known module": ask("_codecs", "lookup") + text("zip") + b"\x85R.",
    "codec": ask("_codecs", "encode") + text("text") + text("rot13") + b"\x86R.",
    "state of an object": pickle.dumps(Stateful()),
    "text with its own hash": pickle.dumps({Text("a"): 1}),
    "INST": b"(S'touch executed'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch executed'\no.",
    "NEWOBJ": ask("builtins", "object") + b")\x81.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02Pexecuted\n.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "object array": pickle.dumps({"a": {"score": 1.0, "pred_area": np.array([{}, None], object)}}),
    "object array by hand": array_of(b"K\x01\x85", b"]", b"\x8c\x02O8"),
    "structured array": pickle.dumps(np.zeros(2, [("x", "u1"), ("y", "O")])),
    "text array": pickle.dumps(np.array(["a", "b"])),
    "date array": pickle.dumps(np.array(["2025-01-01"], "M8[D]")),
    "array subclass": pickle.dumps(np.ma.masked_array([1, 2], [True, False])),
    "array larger than its bytes": array_of(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"C\x04abcd"),
    "array with a negative side": array_of(b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86", b"C\x04abcd"),
    "array of many dimensions": array_of(b"(" + b"K\x01" * 60 + b"t", b"C\x01a"),
    "array from a list": array_of(b"K\x01\x85", b"]"),
    "array without state": ask("numpy._core.multiarray", "_reconstruct") + b")R.",
    "direct ndarray of a gigabyte": ask("numpy", "ndarray") + b"J\x00\x00\x00\x40\x85\x85R.",
    "set": pickle.dumps({1, 2}),
    "complex": pickle.dumps(1j),
    "deep nesting": b"\x80\x04" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "deep tuples": b"\x80\x04)" + b"\x85" * 1_000_000 + b".",
    "unfinished nesting": b"\x80\x04" + b"(" * 1_000_000,
    "exponential hash": b"\x80\x02}" + nested_tuple(60) + b"K\x01s.",
    "tuple as a key": pickle.dumps({(1, 2): 3}),
    "huge memo slot": b"\x80\x02}r\xff\xff\xff\x7f.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "huge text": b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"abc.",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"abc.",
    "appends to a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a(K\x01e.",
    "builds on a function": ask("numpy._core.multiarray", "scalar") + b"N}\x86b.",
    "the function itself": ask("numpy._core.multiarray", "scalar") + b".",
    "persistent id of another's bytes": pickle.dumps(np.zeros(400, np.uint8), 4)[:-1] + b"K\x00Q.",
    "short bytes for a huge array": array_of(b"J\xff\xff\xff\x7fK\x02\x86", LONG),
    "a state for bytes": b"\x80\x04" + LONG + b"N}\x8c\x06source\x8c\x0b/etc/passwds\x86b.",
    "a state of attributes for bytes": b"\x80\x04" + LONG + b"(\x8c\x06sourceNtb.",
    "bytes that are called": b"\x80\x04" + LONG + b")R.",
    "bytes as a module": b"\x80\x04" + LONG + text("system") + b"\x93.",
    "bytes as a dtype": ask("numpy", "dtype") + LONG + b"\x89\x88\x87R.",
    "bytes as the state of a dtype": b"\x80\x04" + U1 + LONG + b"b.",
    "bytes as the state of an array": array_of(b"K\x01\x85", b"C\x01a")[:-1] + LONG + b"b.",
    "bytes as a shape": array_of(LONG, b"C\x01a"),
    "bytes as a scalar": ask("numpy._core.multiarray", "scalar") + U1 + LONG + b"\x86R.",
    "bytes as text to encode": ask("_codecs", "encode") + LONG + text("latin1") + b"\x86R.",
    "bytes as a key": b"\x80\x04}" + LONG + b"K\x01s.",
    "bytes that are appended to": b"\x80\x04" + LONG + b"K\x01a.",
    "bytes for masks": b"\x80\x04}" + text("a") + b"}(" + text("score") + LONG + text("pred_area") + LONG + b"us.",
    "an empty array of impossible sides": array_of(b"K\x00" + b"\x8a\x09" + b"\xff" * 8 + b"\x00\x86", b"C\x00"),
    "two pickles": pickle.dumps({}) + pickle.dumps(Call(os.system, "touch executed")),
    "cut short": pickle.dumps({"a": np.zeros((9, 9))})[:-20],
    "empty": b"",
    "text file": b"score: 1.0\n",
    "pop beyond the stack": b"\x80\x04R.",
    "unknown memo": b"\x80\x02h\x09.",
    "unknown protocol": b"\x80\xff}.",
    "unknown instruction": b"\x80\x04\xfe.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output.pkl").write_bytes(HOSTILE[name])
    TRAP.clear()  # making the files above may have sprung it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="output.pkl") as refusal:
        read_submission(tmp_path / "output.pkl")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    assert os.listdir(tmp_path) == ["output.pkl"] and not TRAP
    # Kilobytes on Linux; a file of a few MB may not take a gigabyte.
    assert sys.platform != "linux" or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_there_are_enough_hostile_files():
    assert len(HOSTILE) >= 20


def test_the_bait_is_live():
    pickle.loads(HOSTILE["own function"])
    assert TRAP.pop() == "executed"


def test_text_encoded_again_and_again_is_refused():
    # One text of 1,000 bytes, and a thousand instructions that make bytes of it.
    again = b"h\x00h\x01h\x02\x86Ra"
    bomb = b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 1000) + b"a" * 1000
    bomb += b"q\x01X\x06\x00\x00\x00latin1q\x02]" + again * 1000
    with pytest.raises(InputError, match="encodes more text"):
        load_pickle(bomb + b".")


def test_text_that_is_no_array_is_told_when_it_is_read():
    good = pickle.dumps({"a": np.full((50, 50), 200, np.uint8)}, 2)
    assert np.asarray(load_pickle(good)["a"]).tolist() == [[200] * 50] * 50
    for bad in ("\u0148".encode(), b"\xff\x88"):  # beyond Latin-1, and no UTF-8
        damaged = load_pickle(good.replace("\xc8".encode(), bad, 1))["a"]
        with pytest.raises(InputError, match="The pickle holds an array of damaged text"):
            np.asarray(damaged)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (b"numpy\ndtype\n", 1),
        (b"numpy\ndtype\n", 3),
        (b"numpy.core.multiarray\n_reconstruct\n", 3),
        (b"numpy.core.multiarray\nscalar\n", 2),
        (b"numpy.core.numeric\n_frombuffer\n", 4),
        (b"_codecs\nencode\n", 2),
    ],
)
def test_arguments_of_other_types_are_refused_unseen(name, count):
    start = time.perf_counter()
    with pytest.raises(InputError, match="with arguments of other types"):
        load_pickle(b"\x80\x02c" + name + b"(" + NESTED + b"q\x1a" + b"h\x1a" * (count - 1) + b"tR.")
    assert time.perf_counter() - start < 1


def test_states_of_other_types_are_refused_unseen():
    start = time.perf_counter()
    for state in (NESTED + b"b.", b"(K\x03" + NESTED + b"NNNtb."):
        with pytest.raises(InputError, match="a dtype with fields"):
            load_pickle(b"\x80\x04" + U1 + state)
    assert time.perf_counter() - start < 1


def test_too_many_instructions_and_too_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_scan, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(InputError, match="more than 1000 instructions"):
        load_pickle(pickle.dumps(list(range(2000))))
    with open(tmp_path / "sparse.pkl", "wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(InputError, match="sparse.pkl is refused: it has 5368709120 bytes"):
        read_submission(tmp_path / "sparse.pkl")


def test_one_mask_referred_to_a_thousand_times_is_bounded(tmp_path):
    mask = np.zeros((1000, 1000), np.uint8)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({f"i{k}": {"score": 0.5, "pred_area": mask} for k in range(1000)}))
    assert path.stat().st_size < 2**21
    with pytest.raises(InputError, match="masks take more than"):
        read_submission(path, max_bytes=2**28)


def test_arrays_that_share_their_bytes_are_read():
    """Two arrays of 300 bytes, the second of which takes the first one's out of the memo."""
    one, two = array_of(b"K\x1eK\x0a\x86", LONG + b"q\x00")[2:-1], array_of(b"M\x2c\x01\x85", b"h\x00")[2:-1]
    result = load_pickle(b"\x80\x04}" + text("one") + one + b"s" + text("two") + two + b"s.")
    np.testing.assert_array_equal(result["one"], np.full((30, 10), ord("a"), np.uint8), strict=True)
    np.testing.assert_array_equal(result["two"], np.full(300, ord("a"), np.uint8), strict=True)


def test_bytes_outside_arrays_can_be_read(tmp_path):
    content = {"short": b"a" * 255, "long": b"b" * 256, "changeable": bytearray(b"c")}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, 5))
    result = load_pickle(tmp_path / "x.pkl")
    assert result["short"] == content["short"]
    assert result["long"].read() == content["long"] and result["changeable"].read() == content["changeable"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_stay_in_the_file_until_they_are_asked_for(tmp_path, protocol):
    path = tmp_path / "x.pkl"
    content = {f"{k}": np.full((1000, 1000), k, np.uint8) for k in range(50)}
    path.write_bytes(pickle.dumps(content, protocol))
    tracemalloc.start()
    result = load_pickle(path)
    loaded = tracemalloc.get_traced_memory()[1]
    sums = [int(np.asarray(array).sum()) for array in result.values()]
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded < 10**6 and read < 4 * 10**6  # of 50 MB
    assert sums == [k * 10**6 for k in range(50)]


def test_shared_dicts_do_not_multiply():
    level = {f"k{k}": 1 for k in range(300)}
    for _ in range(4):
        level = {f"k{k}": level for k in range(300)}
    assert len(load_pickle(pickle.dumps(level))) == 300


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_honest_pickles_of_every_protocol_are_read(protocol):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2, (40, 30)).astype(kind) for kind in ("u1", "?", ">i4", "<f8", "f2", "i8")]
    arrays += [np.asfortranarray(arrays[0]), arrays[0][::2, ::3], np.zeros((0, 4))]
    arrays += [np.float32(0.5), np.int64(3), np.True_]
    content = {f"id {k}": {"score": 0.25 * k, "pred_area": array, "more": [None, True, -5, "é"]}
               for k, array in enumerate(arrays)}  # fmt: skip
    result = load_pickle(pickle.dumps(content, protocol))
    for id, entry in content.items():
        assert result[id]["score"] == entry["score"] and result[id]["more"] == entry["more"]
        assert result[id]["pred_area"].dtype == entry["pred_area"].dtype
        np.testing.assert_array_equal(result[id]["pred_area"], entry["pred_area"])


def test_pickles_of_numpy_1_are_read():
    old = pickle.dumps(np.arange(6, dtype="u1").reshape(2, 3), 3).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old and np.asarray(load_pickle(old)).tolist() == [[0, 1, 2], [3, 4, 5]]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 60))
def test_damaged_pickles_are_read_or_refused_but_never_crash(noise, place, removed):
    good = pickle.dumps({"a": {"score": 0.5, "pred_area": np.ones((4, 5), np.uint8)}})
    try:
        load_pickle(good[:place] + noise + good[place + removed :])
    except InputError as error:
        assert "\n" not in str(error)


def write_zip(path, members: dict, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


GOOD = pickle.dumps({"a": {"score": 0.5, "pred_area": np.ones((512, 512), np.uint8)}})


def test_zips_are_read(tmp_path):
    masks, notes = read_submission(write_zip(tmp_path / "s.zip", {"output.pkl": GOOD, "readme.txt": "x"}))
    assert masks.ids == ["a"] and masks.heatmap("a").all() and notes == []


def lying_zip() -> bytes:
    """Says that it unpacks to 10 bytes, and holds a thousand times more."""
    buffer = io.BytesIO()
    write_zip(buffer, {"output.pkl": b"\0" * 100_000})
    return buffer.getvalue().replace(struct.pack("<I", 100_000), struct.pack("<I", 10))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"output.pkl": b"\0" * 20_000_000}, "unpacks to more than"),
        ({"other.pkl": GOOD}, "must hold one output.pkl"),
        ({"../output.pkl": GOOD}, "must hold one output.pkl"),
        ({"/tmp/output.pkl": GOOD}, "must hold one output.pkl"),
        ({"output.pkl": GOOD, **{f"n{k}": b"" for k in range(100)}}, "101 files"),
        ({"output.pkl": HOSTILE["os.system"]}, "output.pkl is refused: it asks for"),
    ],
)
def test_hostile_zips_are_refused(tmp_path, monkeypatch, members, words):
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "s.zip", members)
    with pytest.raises(InputError, match=words):
        read_submission(tmp_path / "s.zip", max_bytes=10_000_000)
    assert os.listdir(tmp_path) == ["s.zip"]


def test_a_zip_that_is_too_large_itself_is_refused(tmp_path):
    write_zip(tmp_path / "s.zip", {"output.pkl": GOOD, "noise": os.urandom(100_000)})
    with pytest.raises(InputError, match="s.zip is refused: it has .* bytes; .* one output.pkl of up to 50000 bytes"):
        read_submission(tmp_path / "s.zip", max_bytes=50_000)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_zip_that_is_not_there_and_a_full_disk_are_told(tmp_path):
    with pytest.raises(InputError, match="s.zip does not exist"):
        read_submission(tmp_path / "s.zip")
    path = write_zip(tmp_path / "s.zip", {"output.pkl": GOOD})
    with pytest.raises(InputError, match="s.zip cannot be unpacked into .*: No space left on device; free space there"):
        unpack(path, "output.pkl", "/dev/full", 10**9)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (HOSTILE["os.system"], "refused: it asks for"),
        (GOOD[:-20], "not a whole pickle"),
        (pickle.dumps({"a": {"score": 0.5, "pred_area": np.full((50, 50), 200, np.uint8)}}, 2).replace(
            "\xc8".encode(), b"\xff\x88"), "holds an array of damaged text"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_zip_is_told_of_the_zip_and_its_member(tmp_path, data, words):
    path = write_zip(tmp_path / "s.zip", {"output.pkl": data})
    with pytest.raises(InputError) as refusal:
        read_submission(path)
    assert str(refusal.value).startswith(f"{path}: output.pkl ") and words in str(refusal.value)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({7: {"score": 0.5, "pred_area": np.ones((4, 4), np.uint8)}}),
        pickle.dumps(OrderedDict(a={"score": 0.5, "pred_area": np.ones((4, 4), np.uint8)})),
        pickle.dumps({"a": {"score": 0.5, "pred_area": np.ones((4, 4), np.uint8)}}, 0),
        b"\x80\x02}U\x01aK\x01s.",  # as Python 2 writes text
    ],
)
def test_honest_but_odd_files_are_told_what_to_save_instead(tmp_path, data):
    (tmp_path / "x.pkl").write_bytes(data)
    remedy = 'save a plain dict {id: {"score": float, "pred_area": uint8 array}} with pickle protocol 4 and ids as text'
    with pytest.raises(InputError, match=f"x.pkl is refused: .*; {re.escape(remedy)}$"):
        read_submission(tmp_path / "x.pkl")


@pytest.mark.parametrize("data", [lying_zip(), b"PK\x03\x04 not really", b"", GOOD])
def test_broken_zips_are_refused(tmp_path, data):
    (tmp_path / "s.zip").write_bytes(data)
    with pytest.raises(InputError, match="s.zip"):
        read_submission(tmp_path / "s.zip")


def test_a_zip_with_two_outputs_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("output.pkl", GOOD)
        archive.writestr("output.pkl", GOOD)
    with pytest.raises(InputError, match="one output.pkl"):
        read_submission(tmp_path / "s.zip")
