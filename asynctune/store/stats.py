"""Owns the figures a store shows of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from asynctune.state.writer import WriterStats

__all__ = ["StoreStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Figures since the opening, as of the call. Seconds and bytes.

    Attributes:
        commits: How many commits this opening made.
        committed_seq: Number of the last durable commit of the experiment.
        mirrored_seq: The last one in `upload_dir`; `None` without one.
        dirty_keys: Records changed and not yet durable.
        checkpoint_seconds: Time spent on commits and snapshots: capture, encoding, writing, syncing.
        elapsed_seconds: Time since the opening.
        checkpoint_fraction: The one divided by the other; the 5 % rule is about this.
        interval_s: The rest that the rule asks for between two commits at present.
        oldest_dirty_age_s: How long the oldest change that is not yet durable has been waiting; 0 if there is none.
        journal_bytes: Size of the journal since the last snapshot.
        snapshot_bytes: Size of the last snapshot.
        snapshots: How many snapshots this opening made.
        uploads_pending: Checkpoints not yet in `upload_dir`.
        uploads_done: Uploads finished.
        uploads_failed: Uploads that failed and will be tried again.
        upload_bytes: Bytes uploaded.
        trials: How many trials there are, without replaced ones.
    """

    commits: int
    committed_seq: int
    mirrored_seq: int | None
    dirty_keys: int
    checkpoint_seconds: float
    elapsed_seconds: float
    checkpoint_fraction: float
    interval_s: float
    oldest_dirty_age_s: float
    journal_bytes: int
    snapshot_bytes: int
    snapshots: int
    uploads_pending: int
    uploads_done: int
    uploads_failed: int
    upload_bytes: int
    trials: int

    @classmethod
    def of_writer(cls, writer: WriterStats, elapsed_s: float, **others: Any) -> StoreStats:
        """What the writer counted, over the time since the opening."""
        fraction = writer.checkpoint_seconds / elapsed_s if elapsed_s > 0 else 0.0
        return cls(**asdict(writer), elapsed_seconds=elapsed_s, checkpoint_fraction=fraction, **others)

    @classmethod
    def of_reader(cls, seq: int, journal_bytes: int, snapshot_bytes: int, **others: Any) -> StoreStats:
        """What a reader knows; it spends no time on commits."""
        return cls(
            commits=0,
            committed_seq=seq,
            dirty_keys=0,
            checkpoint_seconds=0.0,
            elapsed_seconds=0.0,
            checkpoint_fraction=0.0,
            interval_s=0.0,
            oldest_dirty_age_s=0.0,
            journal_bytes=journal_bytes,
            snapshot_bytes=snapshot_bytes,
            snapshots=0,
            **others,
        )
