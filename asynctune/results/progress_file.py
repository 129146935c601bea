"""Owns progress.csv: adding rows to it, and making it anew from result.json where the two do not agree.

Blocking, for one thread. When a row brings a new column the file is made again with the longer header, at
once for readers; earlier rows have empty cells there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asynctune.breathing import breathe
from asynctune.results.placing import Placer
from asynctune.results.render import Columns, csv_lines, csv_records, flatten

__all__ = ["ProgressFiles", "ProgressState", "read_cells"]

_NONE: Final[Mapping[bytes, Mapping[str, Any]]] = {}
_LINES_AT_ONCE: Final = 32


@dataclass(slots=True)
class ProgressState:
    """A trial's progress.csv as this process left it; None where that is not known.

    Attributes:
        columns: Number of its columns in the `ProgressFiles` that wrote it: most trials share theirs.
        size: In bytes.
    """

    columns: int | None = None
    size: int | None = None


def read_cells(
    lines: Iterable[bytes], known: Mapping[bytes, Mapping[str, Any]] = _NONE
) -> Iterator[dict[str, Any]]:
    """The cells of each line of a result.json; none for a line that is no row.

    Args:
        lines: Without newlines.
        known: Rows by the line they were rendered to, which then need not be parsed.
    """
    for line in lines:
        row: Any = known.get(line)
        if row is None:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
        yield flatten(row) if isinstance(row, dict) else {}
        breathe()


class ProgressFiles:
    """Writes the progress.csv of every trial.

    Args:
        placer: What writes them.
    """

    def __init__(self, placer: Placer) -> None:
        self._placer = placer
        self._columns: list[Columns] = []
        self._numbers: dict[tuple[str, ...], int] = {}

    def append(self, path: str, state: ProgressState, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Add flattened rows. False where the file is not as it was left, or lacks a column: align it."""
        if state.columns is None or state.size is None or self._placer.size(path) != state.size:
            return False
        columns = self._columns[state.columns]
        if not columns.hold(rows):
            return False
        if rows:
            text = csv_lines(columns, rows)
            self._placer.append(path, text, size=state.size)
            state.size += len(text)
        return True

    def align(
        self,
        path: str,
        state: ProgressState,
        lines: Sequence[bytes],
        known_from: int,
        known: Mapping[bytes, Mapping[str, Any]] = _NONE,
    ) -> None:
        """Complete the file, or make it anew where it does not agree with result.json.

        Args:
            path: The file.
            state: Updated.
            lines: All lines of result.json.
            known_from: Rows before this index were synced before the journal let go of them: they are
                counted, not compared.
            known: As for `read_cells`.
        """
        data = self._placer.read(path)
        found = None if data is None else csv_records(data)
        if data is None or found is None or not known_from <= found[1] <= len(lines):
            if lines or data:
                self.make(path, state, lines, known)
            return
        names, count = found
        columns = Columns(names)
        first = max(0, min(known_from, count - 1))
        rows = list(read_cells(lines[first:], known))
        if not columns.hold(rows) or not data.endswith(csv_lines(columns, rows[: count - first])):
            self.make(path, state, lines, known)
            return
        state.columns, state.size = self._number(columns), len(data)
        self.append(path, state, rows[count - first :])

    def make(
        self,
        path: str,
        state: ProgressState,
        lines: Sequence[bytes],
        known: Mapping[bytes, Mapping[str, Any]] = _NONE,
    ) -> None:
        """Make the file anew from the lines of result.json."""
        state.size = None
        rows = list(read_cells(lines, known))
        columns = Columns.of(rows)
        parts = [csv_lines(columns, (), header=True)] if rows else []
        for start in range(0, len(rows), _LINES_AT_ONCE):
            parts.append(csv_lines(columns, rows[start : start + _LINES_AT_ONCE]))
            breathe()
        text = b"".join(parts)
        self._placer.replace(path, text)
        state.columns, state.size = self._number(columns), len(text)

    def _number(self, columns: Columns) -> int:
        number = self._numbers.setdefault(columns.names, len(self._columns))
        if number == len(self._columns):
            self._columns.append(columns)
        return number
