"""Owns the running mirror: when it swaps, who waits for it, and what happens while the bucket is away."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from asynctune.clock import Clock
from asynctune.files import LocalFiles
from asynctune.state.epochs import Claim
from asynctune.state.mirror.claiming import Claimed
from asynctune.state.segments import History
from asynctune.storage.base import ObjectStorage

__all__ = ["Identity", "MirrorStats", "Observer", "StateMirror"]


class Observer(Protocol):
    """What the mirror tells, and asks, the store above. On the loop."""

    def happened(self, kind: str, message: str, **data: Any) -> None:
        """`mirrored` (seq), `mirror_away`, `mirror_back`, `mirror_claimed`, `mirror_fenced`, `mirror_unfenced`."""
        ...

    async def project(self, seq: int) -> None:
        """Return when the result files in the bucket are complete up to commit `seq`, at least.

        Raises:
            StorageError: They cannot be put there at present.
        """
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who mirrors what: written into every CURRENT.

    Attributes:
        experiment_id: Of the state.
        claim: This opening's, number and nonce.
        history: Of the local journal, with this opening's entry last.
        node_ip: This host's address.
    """

    experiment_id: str
    claim: Claim
    history: History
    node_ip: str


@dataclass(frozen=True, slots=True)
class MirrorStats:
    """Figures since the opening.

    Attributes:
        mirrored_seq: Newest commit that the bucket holds, 0 while that is not known.
        swaps: How often CURRENT was replaced.
        swap_seconds: Wall time that took, segments included.
        put_bytes: What was put, CURRENT included.
        snapshots: How many snapshots were put.
        refs: How many segments CURRENT names.
        away_s: For how long the bucket has been away, seconds; `None`: it is not.
        claimed: Whether the mirror is ours.
    """

    mirrored_seq: int
    swaps: int
    swap_seconds: float
    put_bytes: int
    snapshots: int
    refs: int
    away_s: float | None
    claimed: bool


class StateMirror:
    """Brings what the local journal acknowledges into the bucket.

    Args:
        storage: At the experiment's place.
        claimed: As `claim_mirror` returned it; `None`: opened without the bucket, it is claimed when that is back.
        identity: Who mirrors what.
        committed_seq: Newest local commit at the opening.
        state_dir: The `.asynctune` directory.
        files: The disk.
        clock: Time.
        observer: The store above.
        interval_s: Least seconds between two swaps; `None`: 1.0 on Google Cloud Storage, which asks for it, else 0.
        quiet_s: As for `claim_mirror`, for a claim made later.
        is_dead: Likewise.
        rng: Where the jitter comes from.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        claimed: Claimed | None,
        *,
        identity: Identity,
        committed_seq: int,
        state_dir: str,
        files: LocalFiles,
        clock: Clock,
        observer: Observer,
        interval_s: float | None = None,
        quiet_s: float = 30.0,
        is_dead: Callable[[Claim], bool] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        raise NotImplementedError

    # -- what the store tells (loop, no I/O) ---------------------------------------------------------------

    def committed(self, seq: int) -> None:
        """Commit `seq` is durable on the local disk."""
        raise NotImplementedError

    def snapshot_written(self, seq: int, size_bytes: int) -> None:
        """A local snapshot of commit `seq` is durable."""
        raise NotImplementedError

    def projected(self, seq: int) -> None:
        """The result files in the bucket are complete up to commit `seq`."""
        raise NotImplementedError

    # -- what the store asks -------------------------------------------------------------------------------

    @property
    def mirrored_seq(self) -> int:
        """Newest commit that the bucket holds; 0 while that is not known."""
        raise NotImplementedError

    @property
    def stats(self) -> MirrorStats:
        """Figures as of the present moment."""
        raise NotImplementedError

    async def flush(self, seq: int) -> int:
        """Return when CURRENT names commit `seq`, without waiting for the pace; what it names then.

        While the bucket is away this waits until it is back: put a deadline around it. A cancelled caller stops
        waiting, and nothing else.

        Raises:
            FencedError: Another opening owns the mirror.
            StorageError: The bucket refused in a way that does not pass by itself.
            StoreClosedError: The mirror was closed before.
        """
        raise NotImplementedError

    async def reached(self, seq: int) -> None:
        """Return when CURRENT names commit `seq`, without hurrying anything. Raises as `flush`, fenced or closed."""
        raise NotImplementedError

    async def run(self) -> None:
        """Mirror what is committed when it is due, until cancelled. Owned by the store's TaskGroup.

        Raises:
            FencedError: Another opening owns the mirror.
        """
        raise NotImplementedError

    async def close(self, timeout_s: float | None = None) -> bool:
        """Bring the rest into the bucket and mark it as closed; whether that is done. Call it while `run` runs.

        Args:
            timeout_s: After so many seconds what is left stays for the next opening; `None`: until it is done.

        Raises:
            FencedError: Another opening owns the mirror.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """End the thread, after `run` was cancelled. Waiters get a `StoreClosedError`."""
        raise NotImplementedError
