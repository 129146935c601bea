"""Which keys there are; what the suite for storages cannot ask of each of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError
from asynctune.storage.keys import MAX_KEY_BYTES, check_key, check_prefix


@given(st.text())
def test_every_beginning_of_a_key_is_a_prefix(text):
    try:
        key = check_key(text)
    except ConfigError:
        return
    assert 0 < len(key.encode()) <= MAX_KEY_BYTES
    for end in range(len(key) + 1):
        assert check_prefix(key[:end]) == key[:end]


@pytest.mark.parametrize("value", [None, b"a", 1])
def test_only_text(value):
    with pytest.raises(ConfigError, match="string"):
        check_key(value)
    with pytest.raises(ConfigError, match="string"):
        check_prefix(value)


def test_lengths_are_counted_in_bytes():
    assert check_key("é" * 127)
    with pytest.raises(ConfigError, match="255"):
        check_key("é" * 128)
    assert check_key("a/" * 511 + "bc")
    with pytest.raises(ConfigError, match="1025 bytes"):
        check_key("a/" * 511 + "bcd")
    with pytest.raises(ConfigError, match="10 are the most"):
        check_key("12345678901", 10)
