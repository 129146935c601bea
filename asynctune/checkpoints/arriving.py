"""Owns what a checkpoint is that its worker brings when the commit has said where to: values only, no I/O.

A worker on another machine cannot stage beside the trial. What it reports is a promise: when the trial's turn has come,
`bring` is awaited, and returns what has come of it. The commit is `arriving_commits`'.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from asynctune.checkpoints.staging import StagedCheckpoint

__all__ = ["ArrivalPlace", "ArrivingCheckpoint", "InBucket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalPlace:
    """What the commit has decided about a checkpoint before its bytes are anywhere.

    Attributes:
        trial_id: Whose it is.
        step: Its step.
        epoch: Number of the opening that commits it.
        attempt: Which start of the trial wrote it.
        directory: Its directory below the experiment, `<trial_name>/checkpoint_000005[-<epoch>.<attempt>]`: in the
            bucket it has to be this one. One that comes home is put in its place by the commit.
    """

    trial_id: str
    step: int
    epoch: int
    attempt: int
    directory: str


@dataclass(frozen=True, slots=True)
class InBucket:
    """A checkpoint that was put into the bucket by its worker, at the directory that it was told, its manifest last.

    Attributes:
        manifest: Its manifest as it is there, encoded, and named after the place: `Manifest.named(...).encode()`.
    """

    manifest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivingCheckpoint:
    """A checkpoint whose bytes are not here yet; `adopt_checkpoint` takes it.

    Attributes:
        bring: Awaited once at most, in the trial's turn, and for as long as it takes. It returns a `StagedCheckpoint`:
            the files have come to this disk, beside the trial; or `InBucket`: they are in `upload_dir`, and nothing of
            them is here; or `None`: they do not come, and nothing of them is or will be in the bucket. What it raises
            passes. It is cancelled when its caller is, and when the store is closed before it has ended; who has put
            something into the bucket by then removes it, the manifest first, as far as that can be done.
        late: A Tuner answers the report without waiting for the commit.
        files: Paths of what `bring` may put into the bucket. When it fails, they are deleted there: its worker may be
            gone, and with it whoever would do so.
    """

    bring: Callable[[ArrivalPlace], Awaitable[StagedCheckpoint | InBucket | None]]
    late: bool = False
    files: Collection[str] = field(default=(), repr=False)
