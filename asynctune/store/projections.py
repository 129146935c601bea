"""Owns the way of committed rows to the result files: first what a crash left over, then what is committed now.

The files are projections of the journal. If they cannot be written, the journal keeps the rows, and that is said; it
is no failure of the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from asynctune.errors import StorageError, TrialNotFoundError
from asynctune.results.projector import ResultFiles
from asynctune.results.rows import OpeningInfo, TrialInfo
from asynctune.state.recovered import SegmentRows
from asynctune.store.events import EventStream
from asynctune.store.trials import TrialTable

__all__ = ["Projections", "with_openings"]

logger = logging.getLogger("asynctune")

T = TypeVar("T")


class Projections:
    """Feeds the result files of one opening.

    Args:
        results: The files.
        table: Tells the name and config of a trial.
        events: Where a failure is published.
        opening: Who drives.
        recovered: Rows of earlier openings that the files may lack.
    """

    def __init__(
        self,
        results: ResultFiles,
        table: TrialTable,
        events: EventStream,
        opening: OpeningInfo,
        recovered: list[SegmentRows],
    ) -> None:
        self._results = results
        self._table = table
        self._events = events
        self._opening = opening
        self._recovered = recovered
        self._settled = asyncio.Event()
        self._feeding = False
        self._held: list[tuple[int, list[bytes]]] = []
        self._failure: Exception | None = None

    async def prepare(self) -> None:
        """Import what is needed off the loop.

        Raises:
            MissingExtraError: TensorBoard was asked for, and its extra is not installed.
        """
        await self._results.prepare()

    def committed(self, seq: int, rows: list[bytes]) -> None:
        """Take the rows of a durable commit. Loop only, no I/O."""
        if self._failure is not None:
            return
        if self._feeding:
            self._results.add(seq, rows, self._trial_info, self._opening)
        else:
            self._held.append((seq, rows))

    async def run(self) -> None:
        """Complete the files from what was recovered, then write what is committed; until cancelled."""
        try:
            rows, self._recovered = self._recovered, []
            if any(segment.data for segment in rows):
                await self._results.complete(with_openings(rows), self._trial_info)
            del rows
            for seq, held in self._held:
                self._results.add(seq, held, self._trial_info, self._opening)
            self._held.clear()
            self._feeding = True
            self._settled.set()
            await self._results.run()
        except Exception as error:  # noqa: BLE001 - a fault in a projection must not end what it is a projection of
            self._fail(error)
        finally:
            self._held.clear()
            self._settled.set()

    def _fail(self, error: Exception) -> None:
        self._failure = error
        message = f"the result files are not written any more ({error!r}); the journal keeps all rows"
        logger.error("%s", message, exc_info=error)
        self._events.emit("write_failed", message=message)

    async def written(self) -> None:
        """Return when the files have all committed rows; not synced.

        Raises:
            StorageError: They cannot be written.
        """
        await self._settled.wait()
        if self._failure is not None:
            raise StorageError(
                f"the result files are not written any more: {self._failure!r}",
                operation="write",
                key="result.json",
            ) from self._failure
        await self._results.flush()

    async def sync(self) -> int | None:
        """Make the files durable; the commit they cover, or `None` where they cannot be: keep the journal then."""
        await self._settled.wait()
        if self._failure is not None:
            return None
        try:
            return await self._results.sync()
        except StorageError as error:
            logger.warning("the journal is kept, and the result files are completed later: %s", error)
            return None

    async def between_writes(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread while no result file is written."""
        return await self._results.between_writes(work)

    async def aclose(self, *, write: bool) -> None:
        """Let the files go. `write`: finish them first; not for an opening that was fenced."""
        try:
            await self._results.aclose(write=write and self._failure is None)
        except StorageError as error:
            logger.warning("the result files are completed at the next opening: %s", error)

    def _trial_info(self, trial_id: str) -> TrialInfo | None:
        try:
            name, _, config, _ = self._table.given(trial_id)
        except TrialNotFoundError:
            return None
        return TrialInfo(trial_id=trial_id, trial_name=name, config=config)


def with_openings(rows: Iterable[SegmentRows]) -> Iterator[tuple[int, bytes, OpeningInfo]]:
    """Recovered rows as the result files take them; one by one, for a crash may leave very many."""
    for segment in rows:
        claim = segment.claim
        info = OpeningInfo(hostname=claim.hostname, node_ip=segment.node_ip, pid=claim.pid)
        for seq, data in segment:
            yield seq, data, info
