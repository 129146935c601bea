"""Owns the files of each trial: params.json, result.json, the cut files, and with them what is made of these.

Blocking, for one thread. `TrialFiles.project` takes a trial's row operations in order and leaves its files
as the timeline then is. Usually that is one append to each file. The first time in an opening, after a
rewind, after a failure and whenever a file is not as it was left, the file is read and brought in line
instead (`timeline.plan`); doing that again with the same operations changes nothing.

Rows of a rewind go to `result.cut-<n>.json`, a new number each time, durably before a line is removed
anywhere.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from asynctune.results.event_files import EVENT_FILE, EventFiles, EventState
from asynctune.results.lines import changes_of
from asynctune.results.placing import Placer
from asynctune.results.progress_file import ProgressFiles, ProgressState
from asynctune.results.render import flatten, params_json
from asynctune.results.rows import Cut, OpeningInfo, RowOperation, TrialInfo
from asynctune.results.timeline import KnownLine, Plan, identity, plan

__all__ = ["CUT_FILE", "PARAMS_FILE", "PROGRESS_FILE", "RESULT_FILE", "Notice", "TrialFiles"]

logger = logging.getLogger(__name__)

PARAMS_FILE: Final = "params.json"
RESULT_FILE: Final = "result.json"
PROGRESS_FILE: Final = "progress.csv"
CUT_FILE: Final = re.compile(r"result\.cut-(\d+)\.json")
"""Names of the files with rows that a rewind made void."""
_OURS: Final = frozenset({PARAMS_FILE, RESULT_FILE, PROGRESS_FILE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something about a trial's files that the user should hear of.

    Attributes:
        kind: `results_incomplete` (rows that nobody has any more) or `results_repaired`.
        trial_id: Whose files.
        message: What was found and done.
        data: The same for programs.
    """

    kind: str
    trial_id: str
    message: str
    data: dict[str, Any]


_PackedState = tuple[bool, int, int, int | None, int | None, int | None, str, int | None]


@dataclass(slots=True)
class _State:
    """A trial's files as this process left them.

    Attributes:
        in_line: False until they have been looked at, and after a failure.
        lines: How many lines result.json has.
        offset: How many rows it lacks at its head.
        size: Its size in bytes; None where there is no such file.
    """

    in_line: bool = False
    lines: int = 0
    offset: int = 0
    size: int | None = None
    progress: ProgressState = field(default_factory=ProgressState)
    events: EventState = field(default_factory=EventState)

    def packed(self) -> _PackedState:
        """As a tuple, which the garbage collector need not visit: there may be 100 000."""
        progress, events = self.progress, self.events
        return (
            self.in_line,
            self.lines,
            self.offset,
            self.size,
            progress.columns,
            progress.size,
            events.name,
            events.size,
        )

    @classmethod
    def unpacked(cls, packed: _PackedState) -> _State:
        """The inverse of `packed`."""
        in_line, lines, offset, size, columns, progress_size, name, events_size = packed
        progress, events = ProgressState(columns, progress_size), EventState(name, events_size)
        return cls(in_line, lines, offset, size, progress, events)


class TrialFiles:
    """All trials' files of one experiment.

    Args:
        root: The experiment's directory.
        placer: What writes them.
        events: For TensorBoard; None: no events are written.

    Attributes:
        notices: What the user should hear of; whoever tells takes them out.
    """

    def __init__(self, root: str, placer: Placer, events: EventFiles | None = None) -> None:
        self._root = root
        self._placer = placer
        self._progress = ProgressFiles(placer)
        self._events = events
        self._states: dict[str, _PackedState] = {}
        self.notices: list[Notice] = []

    def project(self, trial: TrialInfo, operations: Sequence[tuple[RowOperation, OpeningInfo]]) -> None:
        """Bring the trial's files to the timeline that these operations, in order, lead to.

        Raises:
            OSError: A file could not be written. Calling again with the same operations and those after them
                completes the work, whatever was written already.
        """
        packed = self._states.get(trial.trial_id)
        state = _State() if packed is None else _State.unpacked(packed)
        changes, is_announced = changes_of(trial, operations)
        if is_announced and (state.in_line or not changes):  # else it is looked at with the other files
            self._write_params(trial)
        if not changes:
            return
        try:
            self._apply(trial, state, changes, operations[-1][1].hostname)
        finally:
            self._states[trial.trial_id] = state.packed()

    def _apply(
        self, trial: TrialInfo, state: _State, changes: Sequence[KnownLine | Cut], hostname: str
    ) -> None:
        rows = [each for each in changes if isinstance(each, KnownLine)]
        at_the_end = len(rows) == len(changes) and state.in_line and self._follow(trial, state, rows)
        state.in_line = False  # until everything has been written
        if at_the_end:
            self._append(trial, state, rows, hostname)
        else:
            self._bring_in_line(trial, state, changes, hostname)
        state.in_line = True

    def _follow(self, trial: TrialInfo, state: _State, rows: Sequence[KnownLine]) -> bool:
        ordinal = state.offset + state.lines + 1
        return (
            all(row.ordinal == ordinal + index for index, row in enumerate(rows))
            and self._placer.size(self._path(trial, RESULT_FILE)) == state.size
        )

    def _append(self, trial: TrialInfo, state: _State, rows: Sequence[KnownLine], hostname: str) -> None:
        text = _joined([row.text for row in rows])
        self._placer.append(self._path(trial, RESULT_FILE), text, size=state.size)
        state.size = (state.size or 0) + len(text)
        state.lines += len(rows)

        cells = [flatten(row.row) for row in rows]
        path = self._path(trial, PROGRESS_FILE)
        if not self._progress.append(path, state.progress, cells):
            self._progress.make(path, state.progress, self._lines(trial))
        if self._events is None:
            return
        directory = self._path(trial)
        if not self._events.append(directory, state.events, cells, rows[0].ordinal):
            self._events.align(
                directory,
                state.events,
                self._lines(trial),
                state.lines - len(rows),
                offset=state.offset,
                hostname=hostname,
            )

    def _bring_in_line(
        self, trial: TrialInfo, state: _State, changes: Sequence[KnownLine | Cut], hostname: str
    ) -> None:
        path = self._path(trial, RESULT_FILE)
        data = self._placer.read(path)
        present = (data or b"").split(b"\n")
        torn = present.pop()
        if torn:
            logger.info("%s: left out its last line, which was cut short (%d bytes)", path, len(torn))
        made = plan(present, changes, state.offset)
        if made.aside:
            self._write_aside(trial, made.aside)
        state.size = None if data is None else sum(map(len, present[: made.keep])) + made.keep
        if data is not None and len(data) != state.size:
            self._placer.truncate(path, state.size or 0)
        if made.append:
            text = _joined(made.append)
            self._placer.append(path, text, size=state.size)
            state.size = (state.size or 0) + len(text)
        if data is not None:
            for name in self._placer.names(self._path(trial)):
                if name in _OURS or CUT_FILE.fullmatch(name) or EVENT_FILE.fullmatch(name):
                    self._placer.rely_on(self._path(trial, name))
        self.notices += _notices(trial, path, made, state.offset)
        lines = present[: made.keep] + made.append
        state.lines, state.offset = len(lines), made.offset

        self._write_params(trial)
        progress = self._path(trial, PROGRESS_FILE)
        known = {row.text: row.row for row in made.known}
        self._progress.align(progress, state.progress, lines, made.known_from, known)
        if self._events is not None:
            self._events.align(
                self._path(trial),
                state.events,
                lines,
                made.known_from,
                offset=made.offset,
                hostname=hostname,
            )

    def _write_aside(self, trial: TrialInfo, lines: Sequence[bytes]) -> None:
        """Put lines into a new cut file, durably; not those that one has already."""
        directory = self._path(trial)
        number = 0
        have: set[str | None] = set()
        for name in self._placer.names(directory):
            if found := CUT_FILE.fullmatch(name):
                number = max(number, int(found[1]))
                data = self._placer.read(os.path.join(directory, name)) or b""
                have.update(map(identity, data.split(b"\n")))
        todo = [line for line in lines if identity(line) not in have]
        if todo:
            path = os.path.join(directory, f"result.cut-{number + 1}.json")
            self._placer.replace(path, _joined(todo), durable=True)

    def _write_params(self, trial: TrialInfo) -> None:
        path, text = self._path(trial, PARAMS_FILE), params_json(trial.config)
        if self._placer.read(path) == text:
            self._placer.rely_on(path)
        else:
            self._placer.replace(path, text)

    def _lines(self, trial: TrialInfo) -> list[bytes]:
        return (self._placer.read(self._path(trial, RESULT_FILE)) or b"").split(b"\n")[:-1]

    def _path(self, trial: TrialInfo, *name: str) -> str:
        return os.path.join(self._root, trial.trial_name, *name)


def _joined(lines: Sequence[bytes]) -> bytes:
    return b"".join([line + b"\n" for line in lines])


def _notices(trial: TrialInfo, path: str, made: Plan, offset: int) -> list[Notice]:
    told = []
    if made.offset > offset:
        missing = made.offset - offset
        told.append(
            Notice(
                kind="results_incomplete",
                trial_id=trial.trial_id,
                message=(
                    f"{path} lacks {missing} row(s) at or before row {made.offset + made.known_from}, which "
                    "the journal does not have any more: they are gone. Later rows are complete"
                ),
                data={"path": path, "missing": missing},
            )
        )
    if made.extra:
        told.append(
            Notice(
                kind="results_repaired",
                trial_id=trial.trial_id,
                message=(
                    f"{path} had {made.extra} line(s) that are not in the journal's timeline, "
                    f"{made.damaged} of them damaged; removed, and whole rows kept in result.cut-*.json"
                ),
                data={"path": path, "removed": made.extra, "damaged": made.damaged},
            )
        )
    return told
