"""Owns the rules that say which lines a trial's result.json must hold. Pure: lines in, a plan out.

The journal's row operations are the truth as far back as it reaches; what is before them only the file has.
Lines are matched with rows by content, because a file may lag behind, may have been cut or not when a crash
came, or may have lost its head when somebody deleted it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from asynctune.results.rows import Cut

__all__ = ["KnownLine", "Plan", "identity", "plan"]

# What a row's line may say differently when rendered again: the config is the trial's present one, and the
# date is told in the timezone of the machine.
_VOLATILE: Final = frozenset({"config", "date"})


@dataclass(frozen=True, slots=True)
class KnownLine:
    """A row that the journal has, as result.json should have it.

    Attributes:
        ordinal: Its line number in the timeline, from 1.
        text: The line, without newline.
        row: The full row as `render.plain` returns it.
    """

    ordinal: int
    text: bytes
    row: Mapping[str, Any]


@dataclass(slots=True)
class Plan:
    """How to bring a result.json in line.

    Attributes:
        keep: How many lines of the present file stay, from its start.
        append: Lines to write after those.
        known_from: Index of the first line that the journal has; earlier ones stay as the file has them.
        known: The journal's rows of the present timeline, from `known_from` on.
        aside: Lines to put into a cut file before anything is removed: rows that a rewind made void, and rows
            that the journal does not have.
        offset: How many lines the file lacks at its head: row `n` is the line with index `n - 1 - offset`.
        extra: How many lines were removed although no rewind explains it.
        damaged: How many of the removed ones are not rows at all.
    """

    keep: int = 0
    append: list[bytes] = field(default_factory=list)
    known_from: int = 0
    known: list[KnownLine] = field(default_factory=list)
    aside: list[bytes] = field(default_factory=list)
    offset: int = 0
    extra: int = 0
    damaged: int = 0


def identity(line: bytes) -> str | None:
    """What makes a line the same row as another one; None for a line that is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _identity(row) if isinstance(row, dict) else None


def _identity(row: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in _VOLATILE}, sort_keys=True)


def _same(line: bytes, known: KnownLine) -> bool:
    return line == known.text or identity(line) == _identity(known.row)


def plan(present: Sequence[bytes], operations: Iterable[KnownLine | Cut], offset: int = 0) -> Plan:
    """What to do with the file whose complete lines are `present`, so that it holds the timeline.

    Args:
        present: The file's lines, without newlines; a line cut short at the end is not among them.
        operations: The trial's rows and cuts as the journal has them, in order; some rows may be in the file
            already.
        offset: How many lines the file is known to lack at its head.
    """
    before, known, void, was_cut = _replay(operations, len(present) + offset)
    offset = _find_offset(present, [*known, *void], offset)
    start = min(max(before - offset, 0), len(present))
    made = Plan(known_from=start, known=known, offset=before - start)
    if known:  # counted from the end, should the journal itself lack rows in between
        made.offset = known[-1].ordinal - start - len(known)

    same = 0
    for line, row in zip(present[start:], known, strict=False):
        if not _same(line, row):
            break
        same += 1
    made.keep = start + same
    made.append = [row.text for row in known[same:]]
    _set_aside(made, present[made.keep :], void, was_cut=was_cut)
    return made


def _replay(
    operations: Iterable[KnownLine | Cut], total: int
) -> tuple[int, list[KnownLine], list[KnownLine], bool]:
    """Number of lines before the known ones, the known ones, the void ones, and whether anything was cut."""
    before: int | None = None
    known: list[KnownLine] = []
    void: list[KnownLine] = []
    was_cut = False
    for operation in operations:
        row = None if isinstance(operation, Cut) else operation
        if row is not None and _has(known, row):
            continue  # told twice
        keep = operation.keep if isinstance(operation, Cut) else operation.ordinal - 1
        if before is None:
            before = keep
            was_cut = row is None
        elif keep < (known[-1].ordinal if known else before):
            was_cut = True
            void += [each for each in known if each.ordinal > keep]
            known = [each for each in known if each.ordinal <= keep]
            before = min(before, keep)
        if row is not None:
            known.append(row)
    if before is None or not known:
        before = total if before is None else min(before, total)  # a cut beyond the end cuts nothing
    return before, known, void, was_cut


def _has(known: Sequence[KnownLine], row: KnownLine) -> bool:
    if not known or known[-1].ordinal < row.ordinal:
        return False
    return any(each.ordinal == row.ordinal and each.text == row.text for each in known)


def _find_offset(present: Sequence[bytes], rows: Sequence[KnownLine], offset: int) -> int:
    """How many lines the file lacks at its head, judged by a row that can be found in it."""
    for guess in dict.fromkeys((offset, 0)):
        for row in rows:
            index = row.ordinal - 1 - guess
            if 0 <= index < len(present) and _same(present[index], row):
                return guess
    first = {line: index for index, line in reversed(list(enumerate(present)))}
    for row in rows:
        if (index := first.get(row.text, -1)) >= 0:
            return row.ordinal - 1 - index
    return offset


def _set_aside(made: Plan, removed: Sequence[bytes], void: Sequence[KnownLine], *, was_cut: bool) -> None:
    """Fill in what of the removed lines, and of the rows made void, has to be kept in a cut file."""
    if not removed and not void:
        return
    stays = {_identity(row.row) for row in made.known} if removed else set()
    # A void row that had been written is kept as it was written.
    aside = dict.fromkeys(_identity(row.row) for row in void)
    lines: dict[str, bytes] = {}
    for line in removed:
        match identity(line):
            case None:
                made.damaged += 1
                made.extra += 1
            case key if key in stays:
                made.extra += 1
            case key:
                made.extra += key not in aside and not was_cut
                lines[key] = line
    for row in void:
        lines.setdefault(_identity(row.row), row.text)
    made.aside = list(lines.values())
