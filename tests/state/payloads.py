"""Payloads that attack the rule that no sector of a valid frame is all zeros."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["payloads"]

_zeros = st.integers(0, 3000).map(bytes)
_sparse = st.builds(
    lambda gap, times, byte: (bytes(gap) + bytes([byte])) * times,
    st.integers(90, 600),
    st.integers(1, 40),
    st.sampled_from([1, 128, 255]),
)
_repeats = st.builds(
    lambda data, times: data * times, st.binary(min_size=1, max_size=300), st.integers(1, 100)
)
_tails = st.builds(lambda data, zeros: data + bytes(zeros), st.binary(max_size=600), st.integers(0, 1200))

payloads = st.lists(st.one_of(st.binary(max_size=700), _zeros, _sparse, _repeats, _tails), max_size=4).map(
    b"".join
)
"""Zeros, sparse bytes, repeats and tails of zeros, in any mixture, up to about 100 kB."""
