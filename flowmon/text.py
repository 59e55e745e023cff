"""Addresses as text, a column at a time (RFC 5952)."""

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, np.dtype[Any]]

_IPV6_WORDS = 8


def address_column(addresses: Array, is_ipv4: Array) -> pa.DictionaryArray:
    """Dictionary-encoded text of uint8[n, 16] (IPv4 in the last four bytes).

    Each distinct address is written once, whatever the number of rows.
    """
    indices = np.empty(len(addresses), np.int32)
    texts = []
    used = 0
    for chosen, width, write in ((is_ipv4, 4, _ipv4_text), (~is_ipv4, 16, _ipv6_text)):
        raw = np.ascontiguousarray(addresses[chosen][:, -width:])
        buffer = pa.py_buffer(raw)
        encoded = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(raw), [None, buffer]
        ).dictionary_encode()
        indices[chosen] = encoded.indices.to_numpy() + used
        distinct = encoded.dictionary
        used += len(distinct)
        texts.append(
            write(np.frombuffer(distinct.buffers()[1], "u1", len(distinct) * width).reshape(-1, width))
        )
    return pa.DictionaryArray.from_arrays(indices, pa.concat_arrays(texts))


def _ipv4_text(addresses: Array) -> pa.StringArray:
    octets = [_decimal(addresses[:, column]) for column in range(4)]
    return pc.binary_join_element_wise(*octets, ".")


def _decimal(column: Array) -> pa.StringArray:
    return pc.cast(pa.array(np.ascontiguousarray(column)), pa.string())


def _ipv6_text(addresses: Array) -> pa.StringArray:
    """Eight hexadecimal words, then the longest run of zeros (the first of equals) becomes '::'."""
    words = np.ascontiguousarray(addresses).view(">u2").astype("u4")
    text = pc.binary_join_element_wise(*(_hexadecimal(words[:, i]) for i in range(_IPV6_WORDS)), ":")
    compressed = pc.match_substring(text, "::")
    for run in range(_IPV6_WORDS, 1, -1):
        zeros = ":".join(["0"] * run)
        shorter = pc.replace_substring_regex(text, rf"(^|:){zeros}(:|$)", "::", max_replacements=1)
        text = pc.if_else(compressed, text, shorter)
        compressed = pc.match_substring(text, "::")
    # A mapped address keeps its dotted form (RFC 5952 section 5).
    mapped = (addresses[:, :10] == 0).all(axis=1) & (addresses[:, 10:12] == 0xFF).all(axis=1)
    if mapped.any():
        dotted = pc.binary_join_element_wise("::ffff:", _ipv4_text(addresses[:, -4:]), "")
        text = pc.if_else(pa.array(mapped), dotted, text)
    return text


@cache
def _all_words() -> pa.StringArray:
    return pa.array([f"{word:x}" for word in range(1 << 16)])


def _hexadecimal(words: Array) -> pa.StringArray:
    return _all_words().take(pa.array(words))
