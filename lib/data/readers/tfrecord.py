"""TFRecord files of tf.train.Example without TensorFlow.

Source: `tensorflow/core/lib/io/record_reader.cc` and `tensorflow/core/example/{example,feature}.proto`.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lib.errors import InputError
from lib.files import what_it_is

LENGTH = 12  # bytes of a record's length and its checksum


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes, rotated and shifted as TFRecord stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_tfrecord(path: Path) -> Iterator[tuple[dict[str, list], str]]:
    """The records of a file, one at a time: ({feature: its values}, what is wrong with it).

    Values are bytes or floats. A record whose checksum is wrong comes with empty features and a reason; so
    does the last one when the file ends within it. Raises InputError when the file is no TFRecord at all.
    """
    size, number = path.stat().st_size, 0
    with open(path, "rb") as file:
        while head := file.read(LENGTH):
            number += 1
            length, check = struct.unpack("<QI", head) if len(head) == LENGTH else (0, 0)
            if len(head) < LENGTH or masked_crc(head[:8]) != check:
                if number == 1:
                    raise InputError(f"{path} is no TFRecord file.{what_it_is(path)}")
                yield {}, f"record {number} has a damaged length; nothing after it can be read"
                return
            if file.tell() + length + 4 > size:
                yield {}, f"the file ends within record {number}; copy it again"
                return
            data, check = file.read(length), struct.unpack("<I", file.read(4))[0]
            if masked_crc(data) != check:
                yield {}, f"record {number} is damaged (its checksum is wrong)"
                continue
            try:
                yield _example(data), ""
            except (ValueError, IndexError, struct.error):
                yield {}, f"record {number} is no tf.train.Example"


def _example(data: bytes) -> dict[str, list]:
    features = {}
    for _, entry in _fields(b"".join(value for number, value in _fields(data) if number == 1)):
        parts = dict(_fields(entry))  # 1 the name, 2 the feature
        features[parts[1].decode()] = [
            value for kind, part in _fields(parts.get(2, b"")) for value in _values(kind, part)
        ]
    return features


def _values(kind: int, part: bytes) -> list:
    """The values of a bytes_list (1) or float_list (2); nobody asks for those of an int64_list (3)."""
    found = [value for number, value in _fields(part) if number == 1]
    return np.frombuffer(b"".join(found), "<f4").tolist() if kind == 2 else found


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of the fields of a protobuf message: bytes, also of fixed widths, or an integer."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 2, 5):
            length, place = _varint(data, place) if kind == 2 else (8 if kind == 1 else 4, place)
            if place + length > len(data):
                raise ValueError("a field is longer than its message")
            value, place = data[place : place + length], place + length
        else:
            raise ValueError(f"unknown wire type {kind}")
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while data[place] & 128:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1
