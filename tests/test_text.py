"""Addresses as text, against Python's ipaddress."""

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.text import address_column, are_mapped
from samples import packed

# Many zeros, so that runs of equal length and at either end are common.
words = st.sampled_from((0, 0, 0, 1, 0x10, 0x100, 0xFFFF))
few_words = st.lists(words, min_size=8, max_size=8).map(
    lambda of: b"".join(word.to_bytes(2, "big") for word in of)
)
ipv6 = st.one_of(few_words, st.binary(min_size=16, max_size=16))
ipv4 = st.binary(min_size=4, max_size=4)
addresses = st.one_of(ipv6.map(ipaddress.IPv6Address), ipv4.map(ipaddress.IPv4Address))


def text_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """A mapped address keeps its dots (RFC 5952 section 5), which ipaddress does from Python 3.13 on."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return f"::ffff:{address.ipv4_mapped}"
    return str(address)


@given(st.lists(addresses, max_size=20))
def test_text_is_that_of_ipaddress(rows: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    raw = np.array([packed(str(row)) for row in rows], "u1").reshape(-1, 16)
    column = address_column(raw, np.array([row.version == 4 for row in rows], bool))
    column.validate(full=True)
    assert column.to_pylist() == [text_of(row) for row in rows]
    assert len(column.dictionary) == len(set(rows))


@pytest.mark.parametrize(
    "text",
    [
        "::",
        "::1",
        "1::",
        "2001:db8::1",
        "2001:0:0:1::1",  # the longest run
        "2001:db8::1:0:0:1",  # the first of equals
        "2001:db8:0:1:1:1:1:1",  # a single zero word stays
        "0:1:0:1:0:1:0:1",
        "10:100::10:100",
        "::ffff:192.0.2.1",
        "::fffe:c000:201",
        "abcd:ef01:2345:6789:abcd:ef01:2345:6789",
    ],
)
def test_ipv6_text_is_canonical(text: str) -> None:
    raw = np.array([packed(text)], "u1")
    assert address_column(raw, np.array([False])).to_pylist() == [text]


def test_rows_of_a_larger_array() -> None:
    table = np.zeros(3, [("padding", "u1", 3), ("address", "u1", 16)])
    table["address"] = [packed(text) for text in ("192.0.2.1", "2001:db8::1", "192.0.2.1")]
    column = address_column(table["address"], np.array([True, False, True]))
    assert column.to_pylist() == ["192.0.2.1", "2001:db8::1", "192.0.2.1"]


def test_every_octet_and_every_word_in_every_place() -> None:
    random = np.random.default_rng(1)
    ipv4 = np.zeros((256, 16), "u1")
    ipv4[:, 10:12] = 255
    ipv4[:, 12:] = np.array([random.permutation(256) for _ in range(4)]).T
    words = np.array([random.permutation(1 << 16) for _ in range(8)]).T.astype(">u2")
    rows = np.concatenate([ipv4, np.ascontiguousarray(words).view("u1")])
    expected = [str(ipaddress.IPv4Address(row[12:].tobytes())) for row in ipv4]
    expected += [text_of(ipaddress.IPv6Address(row.tobytes())) for row in rows[256:]]
    assert address_column(rows, np.arange(len(rows)) < 256).to_pylist() == expected


def test_mapped_address_among_others() -> None:
    texts = ["2001:db8::1", "::ffff:255.255.255.255", "::", "::ffff:0.0.0.0", "::fffe:0:0", "10.0.0.0"]
    raw = np.array([packed(text) for text in texts], "u1")
    column = address_column(raw, np.array([":" not in text for text in texts]))
    column.validate(full=True)
    assert column.to_pylist() == texts
    mapped = [text.startswith("::ffff:") or ":" not in text for text in texts]
    assert are_mapped(raw).tolist() == mapped


def test_no_rows() -> None:
    assert address_column(np.zeros((0, 16), "u1"), np.zeros(0, bool)).to_pylist() == []


def test_every_pattern_of_zero_words() -> None:
    words_of = [[0 if pattern >> place & 1 else 0x10 for place in range(8)] for pattern in range(256)]
    rows = [ipaddress.IPv6Address(b"".join(word.to_bytes(2, "big") for word in of)) for of in words_of]
    raw = np.frombuffer(b"".join(row.packed for row in rows), "u1").reshape(-1, 16)
    assert address_column(raw, np.zeros(256, bool)).to_pylist() == [str(row) for row in rows]
