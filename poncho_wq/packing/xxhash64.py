"""XXH64, the checksum of zstd frames, for the few kilobytes that we frame ourselves.

In Python, so that a manifest can be written and checked where no zstd library is.  Source of the algorithm: the
specification that comes with xxHash, ``doc/xxhash_spec.md``.
"""

from __future__ import annotations

import struct

_1, _2, _3, _4, _5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_64 = 0xFFFFFFFFFFFFFFFF


def xxhash64(data: bytes) -> int:
    """XXH64 of ``data`` with seed 0.  Some 20 MB a second."""
    size = len(data)
    stripes = size - size % 32
    if stripes:
        a, b, c, d = (_1 + _2) & _64, _2, 0, -_1 & _64
        for one, two, three, four in struct.iter_unpack("<4Q", memoryview(data)[:stripes]):
            a = (a + one * _2) & _64
            a = ((a << 31 | a >> 33) & _64) * _1 & _64
            b = (b + two * _2) & _64
            b = ((b << 31 | b >> 33) & _64) * _1 & _64
            c = (c + three * _2) & _64
            c = ((c << 31 | c >> 33) & _64) * _1 & _64
            d = (d + four * _2) & _64
            d = ((d << 31 | d >> 33) & _64) * _1 & _64
        hashed = (_rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)) & _64
        for lane in (a, b, c, d):
            hashed = ((hashed ^ _round(0, lane)) * _1 + _4) & _64
    else:
        hashed = _5
    hashed = (hashed + size) & _64

    eights = stripes + (size - stripes) // 8 * 8
    for (lane,) in struct.iter_unpack("<Q", data[stripes:eights]):
        hashed = (_rotated(hashed ^ _round(0, lane), 27) * _1 + _4) & _64
    rest = data[eights:]
    if len(rest) >= 4:
        lane = int.from_bytes(rest[:4], "little")
        hashed = (_rotated(hashed ^ lane * _1 & _64, 23) * _2 + _3) & _64
        rest = rest[4:]
    for byte in rest:
        hashed = _rotated(hashed ^ byte * _5 & _64, 11) * _1 & _64

    hashed = (hashed ^ hashed >> 33) * _2 & _64
    hashed = (hashed ^ hashed >> 29) * _3 & _64
    return hashed ^ hashed >> 32


def _round(accumulator: int, lane: int) -> int:
    return _rotated((accumulator + lane * _2) & _64, 31) * _1 & _64


def _rotated(number: int, bits: int) -> int:
    return (number << bits | number >> (64 - bits)) & _64
