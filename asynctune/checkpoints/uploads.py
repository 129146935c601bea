"""Owns the uploads of an experiment's checkpoints: what is sent when, how often it is tried, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UploadLeft", "UploadStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStats:
    """Figures since the opening.

    Attributes:
        pending: Checkpoints that are to be uploaded, those under way included.
        done: Uploads finished.
        failed: How many of the pending have failed at least once, and are tried again.
        sent_bytes: Bytes sent by finished uploads.
    """

    pending: int = 0
    done: int = 0
    failed: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UploadLeft:
    """A checkpoint that was not uploaded before the close. It stays recorded as pending: the next opening goes on.

    Attributes:
        trial_id: Whose.
        step: Which.
        reason: Why, in words.
    """

    trial_id: str
    step: int
    reason: str
