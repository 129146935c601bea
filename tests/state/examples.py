"""What the tests of the state room share."""

from __future__ import annotations

from asynctune.state.epochs import Claim
from asynctune.state.segments import History, SegmentHeader

__all__ = ["claim_of", "header_of"]


def claim_of(epoch: int, nonce: bytes | None = None) -> Claim:
    """A claim; unless told otherwise, its nonce follows from the epoch."""
    return Claim(epoch, nonce or bytes([epoch % 251]) * 16, "host.example", 4711, "boot/1", 1_764_000_000.0)


def header_of(
    epoch: int,
    first_seq: int,
    *,
    attempt: int = 0,
    nonce: bytes | None = None,
    history: History | None = None,
    prev_crc: int = 5,
) -> SegmentHeader:
    """A segment header; unless told otherwise, its history is that of one opening."""
    claim = claim_of(epoch, nonce)
    return SegmentHeader(
        "e4be1c0f", claim, first_seq, prev_crc, history or [(epoch, claim.nonce, 0)], "192.0.2.7", attempt
    )
