"""Checksums joined are the checksum of what was joined."""

from __future__ import annotations

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.storage.crc import crc32c_joined, crc32c_of_text, crc32c_text


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_the_checksum_of_pieces_joined(pieces):
    known = [(google_crc32c.value(piece), len(piece)) for piece in pieces]
    assert crc32c_joined(known) == google_crc32c.value(b"".join(pieces))


def test_pieces_of_the_size_of_parts():
    zeros, ones = bytes(5 << 20), b"\1" * ((5 << 20) + 1)
    known = [(google_crc32c.value(piece), len(piece)) for piece in (zeros, ones)]
    assert crc32c_joined(known) == google_crc32c.value(zeros + ones)
    assert crc32c_joined(reversed(known)) == google_crc32c.value(ones + zeros)


@given(st.integers(0, 2**32 - 1))
def test_as_buckets_spell_it(crc32c):
    assert crc32c_of_text(crc32c_text(crc32c)) == crc32c


def test_the_spelling_is_that_of_s3():
    assert crc32c_text(google_crc32c.value(b"123456789")) == "4waSgw=="  # RFC 3720: 0xe3069283


@pytest.mark.parametrize("text", [None, "", "4waSgw==-3", "4waS", "not base64", "AAAAAAAA"])
def test_what_is_no_checksum_of_a_whole(text):
    assert crc32c_of_text(text) is None
