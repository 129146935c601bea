"""Owns when a snapshot is due, and the keeping of two generations: capture, write, then drop what neither needs.

The task around it belongs to the writer. A snapshot that cannot be written costs nothing but journal space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

from asynctune.clock import Clock
from asynctune.files import LocalFiles
from asynctune.state.journal import Journal
from asynctune.state.snapshot import Image, write_snapshot
from asynctune.state.thread import WorkThread

__all__ = ["Generations", "SnapshotDone"]

_MIN_JOURNAL_BYTES: Final = 1024 * 1024
# Every opening begins a segment: many short ones leave many, all of which the next has to read.
_MAX_SEGMENTS: Final = 64
_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class SnapshotDone:
    """A snapshot that is durable: of which commit, its size, what it took, and the journal until the next is due."""

    seq: int
    size_bytes: int
    cost_s: float
    bytes_to_next: int


class Generations:
    """The snapshots of one opening.

    Args:
        journal: Whose image they are of.
        journal_thread: Where the journal lives; the image is captured there, between two commits.
        clock: For their cost.
        snapshots: Seqs of those on the disk, rising.
        snapshot_bytes: Size of the newest.
        journal_bytes: Size of the journal after it.
    """

    def __init__(
        self,
        journal: Journal,
        journal_thread: WorkThread,
        clock: Clock,
        *,
        snapshots: list[int],
        snapshot_bytes: int,
        journal_bytes: int,
    ) -> None:
        self._journal = journal
        self._journal_thread = journal_thread
        self._thread = WorkThread("asynctune-snapshot")
        self._clock = clock
        self._on_disk = snapshots
        self._threshold = max(_MIN_JOURNAL_BYTES, snapshot_bytes)
        self._most_segments = _MAX_SEGMENTS
        self.snapshot_bytes = snapshot_bytes
        self.journal_bytes = journal_bytes
        self.count = 0

    @property
    def bytes_to_next(self) -> int:
        """How much the journal has to grow until the next snapshot is due; 0 if it is."""
        return max(0, self._threshold - self.journal_bytes)

    @property
    def due(self) -> bool:
        """Whether the journal has outgrown the last snapshot, and a mebibyte, or lies in too many segments."""
        return self.journal_bytes > self._threshold or self._journal.segments > self._most_segments

    def grew(self, size_bytes: int) -> None:
        """A commit added so many bytes to the journal."""
        self.journal_bytes += size_bytes

    async def write(self) -> SnapshotDone:
        """Write one; it is durable when this returns.

        Raises:
            OSError, FrameError: The disk refused, or gave back something else; `due` again when the journal doubled.
            FencedError: Another opening owns the experiment.
        """
        covered = self.journal_bytes
        self._threshold = max(2 * covered, _MIN_JOURNAL_BYTES)
        self._most_segments = self._journal.segments + _MAX_SEGMENTS
        image, captured_s = await self._journal_thread.run(self._capture)
        size, written_s = await self._thread.run(self._write_image, image)
        self.count += 1
        self.snapshot_bytes = size
        self.journal_bytes -= covered
        self._threshold = max(_MIN_JOURNAL_BYTES, size)
        self._on_disk.append(image.seq)
        return SnapshotDone(image.seq, size, captured_s + written_s, self.bytes_to_next)

    def _capture(self) -> tuple[Image, float]:
        busy = self._clock.busy()
        return self._journal.capture(), self._clock.busy() - busy

    def _write_image(self, image: Image) -> tuple[int, float]:
        """Its size, and what it cost: what was computed, and the time inside of the disk's calls."""
        journal, busy = self._journal, self._clock.busy()
        files = _TimedFiles(journal.files, self._clock)
        size = write_snapshot(
            journal.directory,
            image,
            experiment_id=journal.experiment_id,
            claim=journal.claim,
            history=journal.history,
            files=cast("LocalFiles", files),
        )
        return size, self._clock.busy() - busy + files.waited_s

    @property
    def droppable(self) -> int | None:
        """The seq up to which the journal may be dropped for all that recovery needs; `None`: none of it."""
        return self._on_disk[-_KEPT] if len(self._on_disk) >= _KEPT else None

    async def prune(self, keep_from: int) -> None:
        """Drop snapshots below `keep_from` and the journal up to it.

        Raises:
            OSError: The disk refused; the rest goes the next time.
            FencedError: Another opening owns the experiment.
        """
        await self._thread.run(self._journal.prune, keep_from)
        self._on_disk = [seq for seq in self._on_disk if seq >= keep_from]

    def forget(self) -> None:
        """Let the thread end without waiting; from any thread."""
        self._thread.stop()

    async def aclose(self) -> None:
        """Wait for what is under way, and let the thread end."""
        try:
            await self._thread.run(lambda: None)
        finally:
            self._thread.stop()


class _TimedFiles:
    """File operations, and how long their callers waited in them."""

    def __init__(self, files: LocalFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self.waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._files, name)

        def timed(*args: Any, **settings: Any) -> Any:
            start, busy = self._clock.monotonic(), self._clock.busy()
            try:
                return operation(*args, **settings)
            finally:
                self.waited_s += max(0.0, self._clock.monotonic() - start - (self._clock.busy() - busy))

        return timed
