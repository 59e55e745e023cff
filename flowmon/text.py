"""Addresses as text, a column at a time (RFC 5952).

Each address is laid out in a row of fixed width, each number and each mark of punctuation at its own place, and NUL
where nothing stands. Then the NULs are dropped from all rows at once.
"""

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.arrow import from_numpy, to_numpy

Array = np.ndarray[Any, np.dtype[Any]]

_IPV6_WORDS = 8
_IPV6_WORD = np.dtype([("colon", "u1"), ("digits", "u4")])  # as text, the colon before it
_MAPPED = np.frombuffer(b"::ffff:", "u1")


def address_column(addresses: Array, is_ipv4: Array) -> pa.DictionaryArray:
    """Dictionary-encoded text of uint8[n, 16] (IPv4 in the last four bytes).

    Each distinct address is written once, whatever the number of rows.
    """
    quarters = np.ascontiguousarray(addresses).view("u4")
    is_ipv6 = ~is_ipv4
    ipv4 = from_numpy(quarters[is_ipv4, 3]).dictionary_encode()
    ipv6 = _fixed_width(quarters[is_ipv6]).dictionary_encode()
    indices = np.empty(len(addresses), np.int32)
    indices[is_ipv4] = to_numpy(ipv4.indices)
    indices[is_ipv6] = to_numpy(ipv6.indices) + len(ipv4.dictionary)
    texts = (
        _without_nuls(_ipv4_rows(_octets(ipv4.dictionary, 4))),
        _without_nuls(_ipv6_rows(_octets(ipv6.dictionary, 16))),
    )
    return pa.DictionaryArray.from_arrays(from_numpy(indices), pa.concat_arrays(texts))


def _fixed_width(rows: Array) -> pa.FixedSizeBinaryArray:
    """Of quarters, uint32[n, 4]."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(rows)])


def _octets(column: pa.Array, width: int) -> Array:
    """uint8[n, width] of a column without nulls."""
    return np.frombuffer(column.buffers()[1], "u1", len(column) * width).reshape(-1, width)


def _ipv4_rows(addresses: Array) -> Array:
    """uint8[n, 16] of uint8[n, 4]: each number and the dot before it."""
    rows = _decimals().take(addresses).view("u1")
    rows[:, 0] = 0
    return rows


def _ipv6_rows(addresses: Array) -> Array:
    """uint8[n, 40] of uint8[n, 16]: each word and the colon before it.

    Of the longest run of zero words (the first of equals) the colons stay that make it '::'.
    """
    words = addresses.view(">u2")
    zeros = np.packbits((words == 0).reshape(-1), bitorder="little")
    colons, kept = _zero_patterns()
    rows = np.empty(words.shape, _IPV6_WORD)
    rows["colon"] = colons.take(zeros, axis=0)
    rows["digits"] = _hexadecimals().take(words) & kept.take(zeros, axis=0)
    plain = rows.view("u1")
    # A mapped address keeps its dotted form (RFC 5952 section 5).
    mapped = np.flatnonzero(are_mapped(addresses))
    if len(mapped):
        plain[mapped] = 0
        plain[mapped, : len(_MAPPED)] = _MAPPED
        plain[mapped, -16:] = _ipv4_rows(addresses[mapped, 12:])
    return plain


def are_mapped(addresses: Array) -> Array:
    """bool[n] of uint8[n, 16]: whether they are IPv4-mapped, as the table holds IPv4 addresses."""
    halves = np.ascontiguousarray(addresses).view(">u4")
    return (halves[:, 0] == 0) & (halves[:, 1] == 0) & (halves[:, 2] == 0xFFFF)


def _without_nuls(rows: Array) -> pa.StringArray:
    """The texts of uint8[n, width], width a multiple of 8 below 256."""
    is_text = rows != 0
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(_count_by_row(is_text), out=offsets[1:])
    return pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(rows[is_text]))


def _count_by_row(truths: Array) -> Array:
    """int32[n]: how many of bool[n, width] are true."""
    # Eight at a time, as the octets of a word: NumPy is slow where it adds up few at once.
    words = np.add.reduce(np.ascontiguousarray(truths.view("u8").T))
    return (words * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.int32)


@cache
def _decimals() -> Array:
    """uint32[256]: the four characters of each octet with its dot."""
    return np.array([b".%d" % octet for octet in range(256)], "S4").view("u4")


@cache
def _hexadecimals() -> Array:
    """uint32[65536]: the four characters of each word."""
    return np.array([b"%x" % word for word in range(1 << 16)], "S4").view("u4")


@cache
def _zero_patterns() -> tuple[Array, Array]:
    """(uint8[256, 8], uint32[256, 8]): before which words a colon stands, and of which the digits stay (all ones).

    By which words are zero, bit n for word n.
    """
    colons = np.full((256, _IPV6_WORDS), ord(":"), "u1")
    kept = np.full((256, _IPV6_WORDS), 0xFFFFFFFF, "u4")
    colons[:, 0] = 0
    for pattern in range(256):
        start, length = _longest_run(pattern)
        if length < 2:
            continue
        run = slice(start, start + length)
        colons[pattern, run], kept[pattern, run] = 0, 0
        # One colon of '::' here, the other before the next word, or here too where there is none.
        colons[pattern, start] = ord(":")
        if start + length == _IPV6_WORDS:
            colons[pattern, -1] = ord(":")
    return colons, kept


def _longest_run(pattern: int) -> tuple[int, int]:
    """(first, number) of the longest run of bits that are set, the first of equals."""
    is_zero = [bool(pattern >> word & 1) for word in range(_IPV6_WORDS)] + [False]
    runs = [(first, is_zero.index(False, first) - first) for first in range(_IPV6_WORDS)]
    return max(runs, key=lambda run: run[1])
