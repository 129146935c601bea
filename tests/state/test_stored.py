"""Payloads as stored: they come back, and never hold a long run of zeros."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asynctune.state.stored import SECTOR, STUFFED, ZLIB, restored, stored
from tests.state.payloads import payloads

RUN = bytes(SECTOR // 4)
CAP = 1 << 20


@given(payloads, st.booleans())
@example(bytes(300_000), False)
@example(RUN, False)
@example(RUN[:-1], True)
@example(b"", True)
def test_what_is_stored_comes_back_and_has_no_long_run_of_zeros(payload, compress):
    data, flags = stored(payload, compress=compress)
    assert restored(data, flags, max_bytes=CAP) == payload
    assert RUN not in data
    assert len(data) <= len(payload) + len(payload) // 127


def test_a_plain_payload_is_stored_as_it_is(rng):
    payload = rng.randbytes(1000)
    assert stored(payload, compress=False) == (payload, 0)


def test_compression_is_kept_only_where_it_helps(rng):
    assert stored(b"abc" * 1000, compress=True)[1] == ZLIB
    payload = rng.randbytes(1000)
    assert stored(payload, compress=True) == (payload, 0)


def test_a_run_of_zeros_that_compression_leaves_is_stuffed(monkeypatch, rng):
    # what another zlib may do: a stored block, or a code of nothing but zero bits
    monkeypatch.setattr(zlib, "compress", lambda data, _level: data[:-1])
    payload = rng.randbytes(200) + bytes(5000) + rng.randbytes(200)
    data, flags = stored(payload, compress=True)
    assert flags == ZLIB | STUFFED
    assert RUN not in data
    assert restored(data, STUFFED, max_bytes=CAP) == payload[:-1]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 253, 254, 255, 10_000])
def test_stuffing_at_its_boundaries(size, monkeypatch):
    monkeypatch.setattr(zlib, "compress", lambda data, _level: data)
    payload = RUN + bytes(size)
    data, flags = stored(payload, compress=True)
    assert flags == STUFFED
    assert RUN not in data
    assert restored(data, flags, max_bytes=CAP) == payload


def test_marks_that_are_missing_are_refused():
    with pytest.raises(ValueError, match="marks"):
        restored(bytes(300), STUFFED, max_bytes=CAP)


def test_a_compressed_payload_over_the_cap_is_refused():
    with pytest.raises(ValueError, match="cap"):
        restored(zlib.compress(bytes(5000)), ZLIB, max_bytes=4999)
    with pytest.raises(ValueError, match="cap"):
        restored(bytes(11), 0, max_bytes=10)
    assert restored(zlib.compress(bytes(5000)), ZLIB, max_bytes=5000) == bytes(5000)


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d + b"x", lambda _: b""], ids=["cut", "more", "none"]
)
def test_a_compressed_payload_that_does_not_end_with_its_data_is_refused(change):
    with pytest.raises((ValueError, zlib.error)):
        restored(change(zlib.compress(b"abc" * 100)), ZLIB, max_bytes=CAP)
