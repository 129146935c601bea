"""Owns the TensorBoard event file of each trial: adding rows, and making it agree with result.json.

Blocking, for one thread. One file for a trial's whole life, `events.out.tfevents.<first row's
time>.<host>.asynctune`, continued by later openings: no step twice, no thread and no open file between
batches.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asynctune.breathing import breathe
from asynctune.results.events import EventCodec, checksum
from asynctune.results.placing import Placer
from asynctune.results.progress_file import read_cells

__all__ = ["EventFiles", "EventState"]

EVENT_FILE: Final = re.compile(r"events\.out\.tfevents\..*\.asynctune")


@dataclass(slots=True)
class EventState:
    """A trial's event file as this process left it.

    Attributes:
        name: Its name; empty where that is not known.
        size: In bytes; None where that is not known.
    """

    name: str = ""
    size: int | None = None


class EventFiles:
    """Writes the event file of every trial.

    Args:
        placer: What writes them.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, placer: Placer) -> None:
        self._placer = placer
        self._codec = EventCodec()

    def append(
        self, directory: str, state: EventState, rows: Sequence[Mapping[str, Any]], ordinal: int
    ) -> bool:
        """Add flattened rows, the first of them row `ordinal`. False where the file is not as it was left."""
        path = os.path.join(directory, state.name)
        if state.size is None or self._placer.size(path) != state.size:
            return False
        self._add(path, state, self._records(rows, ordinal))
        return True

    def align(
        self,
        directory: str,
        state: EventState,
        lines: Sequence[bytes],
        known_from: int,
        *,
        offset: int,
        hostname: str,
    ) -> None:
        """Complete the file, void what a rewind cut, or make it anew if it does not agree with result.json.

        Args:
            directory: The trial's.
            state: Updated.
            lines: All lines of result.json.
            known_from: Rows before this index were synced before the journal let go of them: they are
                counted, not compared.
            offset: How many rows of the timeline are missing before `lines`.
            hostname: For the name of a new file.
        """
        names = sorted(filter(EVENT_FILE.fullmatch, self._placer.names(directory)))
        state.name = names[-1] if names else ""
        if names:
            path = os.path.join(directory, state.name)
            if self._complete(path, state, lines, known_from, offset):
                return
        if lines or names:
            self._make(directory, state, lines, offset, hostname)

    def _complete(
        self, path: str, state: EventState, lines: Sequence[bytes], known_from: int, offset: int
    ) -> bool:
        data = self._placer.read(path) or b""
        found = self._codec.scan(data)
        if found.size == 0 or len(found.rows) < known_from:
            return False
        if len(data) > found.size:  # the last record was cut short
            self._placer.truncate(path, found.size)
        state.size = found.size
        ordinal = offset + known_from + 1
        rows = list(read_cells(lines[known_from:]))
        steps = [self._codec.step_of(row, ordinal + index) for index, row in enumerate(rows)]
        records = self._records(rows, ordinal)
        has = found.rows[known_from:]
        if has == [(step, checksum(record)) for step, record in zip(steps, records, strict=True)][: len(has)]:
            self._add(path, state, records[len(has) :])
            return True
        first = min([*steps, *(step for step, _ in has)])
        if not self._codec.can_void([step for step, _ in found.rows], known_from, first):
            return False
        self._add(path, state, [self._codec.start(first, _wall_time(rows)), *records])
        return True

    def _make(
        self, directory: str, state: EventState, lines: Sequence[bytes], offset: int, hostname: str
    ) -> None:
        state.size = None
        rows = list(read_cells(lines))
        when = _wall_time(rows)
        state.name = state.name or f"events.out.tfevents.{int(when):010d}.{hostname}.asynctune"
        data = b"".join([self._codec.version(when), *self._records(rows, offset + 1)])
        self._placer.replace(os.path.join(directory, state.name), data)
        state.size = len(data)

    def _add(self, path: str, state: EventState, records: Sequence[bytes]) -> None:
        if data := b"".join(records):
            self._placer.append(path, data, size=state.size)
            state.size = (state.size or 0) + len(data)

    def _records(self, rows: Sequence[Mapping[str, Any]], ordinal: int) -> list[bytes]:
        parts = []
        for index, row in enumerate(rows):
            parts.append(self._codec.row(row, self._codec.step_of(row, ordinal + index)))
            breathe()
        return parts


def _wall_time(rows: Sequence[Mapping[str, Any]]) -> float:
    when = rows[0].get("timestamp") if rows else None
    return float(when) if isinstance(when, int | float) and 0 <= when < 1 << 62 else 0.0
