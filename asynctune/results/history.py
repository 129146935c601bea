"""Owns the reading of a trial's rows: result.json, and committed rows that it lacks. Writes nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from asynctune.breathing import breathe
from asynctune.files import LocalFiles
from asynctune.results.lines import changes_of
from asynctune.results.rows import OpeningInfo, TrialInfo, decode
from asynctune.results.timeline import plan
from asynctune.results.trial_files import RESULT_FILE

__all__ = ["read_history"]

logger = logging.getLogger(__name__)

_NOT_THERE = (
    "it was moved or removed, or its experiment runs and has not written it yet, "
    "a second after the first result"
)


async def read_history(
    path: str | os.PathLike[str],
    *,
    has_rows: bool = False,
    files: LocalFiles | None = None,
    trial: TrialInfo | None = None,
    unwritten: Sequence[tuple[bytes, OpeningInfo]] = (),
) -> list[dict[str, Any]]:
    """The rows of a trial in the order of its present timeline.

    A file that is being written may end in half a line: that is not returned. While the experiment runs, the
    newest rows come about a second after they were committed, unless they are given.

    Args:
        path: The trial's directory, or its result.json.
        has_rows: Whether the trial is known to have rows, so that a file that is not there has been lost.
        files: The file operations.
        trial: Whose they are; needed with `unwritten`.
        unwritten: Committed operations that the file may lack, and those before them that it has, in order.

    Returns:
        One dict a row, in the JSON forms of `asynctune.results.render`; empty for a trial without rows. Lines
        that are not rows are left out, with a warning in the log.

    Raises:
        OSError: The file cannot be read, or is not there and should be.
    """
    return await asyncio.to_thread(
        _read, os.fspath(path), files or LocalFiles(), trial, unwritten, has_rows=has_rows
    )


def _read(
    path: str,
    files: LocalFiles,
    trial: TrialInfo | None,
    unwritten: Sequence[tuple[bytes, OpeningInfo]],
    *,
    has_rows: bool,
) -> list[dict[str, Any]]:
    if os.path.isdir(path):
        path = os.path.join(path, RESULT_FILE)
    is_there = True
    try:
        lines = files.read(path).split(b"\n")[:-1]
    except FileNotFoundError:
        lines, is_there = [], False
    lacking = 0
    if unwritten:
        assert trial is not None
        changes, _ = changes_of(trial, ((decode(data), opening) for data, opening in unwritten))
        made = plan(lines, changes)
        lines, lacking = lines[: made.keep] + made.append, made.offset
    if not is_there and has_rows and (lacking or not lines):
        raise FileNotFoundError(errno.ENOENT, _NOT_THERE, path)
    if lacking:
        logger.warning(
            "%s lacks its first %d rows, and the journal does not have them any more", path, lacking
        )
    return _rows(lines, path)


def _rows(lines: list[bytes], path: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            logger.warning("%s: line %d is damaged and was left out", path, number)
        breathe()
    return rows
